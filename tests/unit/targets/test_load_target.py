"""Loading a target from disk: what is wrong is named, with its value and what to do about it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

import outrider
from outrider.draft import Draft
from outrider.errors import CheckpointError, ConfigError
from outrider.sampling import SamplingParams
from outrider.targets.llama.binding import library
from outrider.targets.native import NativeTarget

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
LLAMA = LlamaConfig(**SIZES)
GPT2 = GPT2Config(vocab_size=31, n_positions=96, n_embd=16, n_layer=2, n_head=4)


def save(config: PreTrainedConfig, directory: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(LLAMA, tmp_path / "llama")


@pytest.fixture(params=[LLAMA, GPT2], ids=["native", "hf"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory for each of the two back ends."""
    return save(request.param, tmp_path / "model")


def load(directory: Path, **settings: Any) -> outrider.target.Target:
    return outrider.load_target(str(directory), **({"dtype": "float32", "device": "cpu"} | settings))


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_directory_loads(llama: Path) -> None:
    target = load(llama, dtype="bfloat16")
    assert isinstance(target, NativeTarget)
    assert target.spec.dtype == torch.bfloat16
    assert target.spec.source == str(llama)
    assert target.tokenizer is None


def test_unknown_dtype(llama: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        load(llama, dtype="bfloat61")


def test_unknown_backend(llama: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'nativ'; did you mean 'native'"):
        load(llama, backend="nativ")


def test_keys_and_values_in_int8(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each number of a key or value becomes a multiple of its head's scale, so logits move a little."""
    caplog.set_level("INFO", logger="outrider")
    plain, target = load(llama), load(llama, kv_dtype="int8")
    assert [one.message.endswith("B, keys and values int8") for one in caplog.records] == [False, True]
    assert target.spec.kv_dtype == "int8"
    assert target.spec.numbers == "float32, float32, keys and values int8"
    logits = []
    for one in (plain, target):
        session = one.open(one.plan(1, 32, 1))
        session.prefill([0], [list(range(20))])
        logits.append(session.forward([0], [20], Draft.empty(1)).logits_BMV[0][0])
    difference = (logits[0] - logits[1]).abs().max()
    assert 0 < difference < 0.05 * logits[0].std()


def test_keys_and_values_in_int8_are_refused_where_they_do_not_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="unknown kv_dtype 'int4'"):
        load(llama, kv_dtype="int4")
    for backend in ("hf", "llama_cpp"):
        with pytest.raises(ConfigError, match=f"kv_dtype='int8' needs the native decoder, not backend='{backend}'"):
            load(llama, kv_dtype="int8", backend=backend)
    with pytest.raises(ConfigError, match="kv_dtype='int8' needs a Llama-family model"):
        load(save(GPT2, tmp_path / "gpt2"), kv_dtype="int8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="kv_dtype='int8' runs on the CPU, not on cuda; leave it out"):
        load(llama, kv_dtype="int8", device="cuda")


def test_llama_cpp_takes_gguf_files_alone(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"backend='llama_cpp' needs a GGUF file, and .* is none; convert it with"):
        load(llama, backend="llama_cpp")


def test_the_package_of_llama_cpp_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    with pytest.raises(ConfigError, match=r"needs the package llama_cpp.*; run pip install 'outrider\[llama\]'"):
        library()


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no model directory, .gguf file or hub id '{tmp_path}/nothing'"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("backend", ["auto", "native", "hf"])
def test_directory_without_config(backend: str, llama: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(llama, backend=backend)


def test_truncated_weights(either: Path) -> None:
    file = either / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    wanted = f"model.safetensors is {size - 100} bytes, expected {size}: it is truncated or damaged; download it again"
    with pytest.raises(CheckpointError, match=wanted):
        load(either)


def test_weights_cut_inside_the_header(either: Path) -> None:
    file = either / "model.safetensors"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(CheckpointError, match="is 60 bytes, too short for its own header; download it again"):
        load(either)


def test_a_missing_tensor_is_named_native(llama: Path) -> None:
    edit_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    wanted = (
        r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight; did you mean model\.layers\.0\.mlp\.up_proj\.weight"
    )
    with pytest.raises(CheckpointError, match=wanted):
        load(llama)


def test_a_missing_tensor_is_named_hf(llama: Path) -> None:
    edit_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    wanted = r"lack model\.layers\.1\.mlp\.up_proj\.weight \(1 such in all\); check that config\.json belongs"
    with pytest.raises(CheckpointError, match=wanted):
        load(llama, backend="hf")


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_misshapen_tensor_is_refused(backend: str, llama: Path) -> None:
    def widen(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"] = torch.ones(17)

    edit_weights(llama, widen)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load(llama, backend=backend)


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_missing_head_is_not_taken_as_tied(backend: str, llama: Path) -> None:
    edit_weights(llama, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load(llama, backend=backend)


def test_a_stored_head_that_differs_is_used_although_the_config_ties_it(llama: Path) -> None:
    """`transformers` 5 believes the tensors: both are there and differ, so they are not tied."""
    edit(llama / "config.json", lambda config: config.update(tie_word_embeddings=True))
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    wanted = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 3:]
    for backend in ("native", "hf"):
        target = load(llama, backend=backend)
        engine = outrider.Engine(target, outrider.load_proposer("none", target))
        found = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8, ignore_eos=True))[0].tokens
        assert list(found) == wanted.tolist()
        assert torch.equal(target.shared_weights().head_VE.float(), model.lm_head.weight)


def test_a_stored_head_that_is_the_embedding_is_tied(llama: Path) -> None:
    edit(llama / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit_weights(llama, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    target = load(llama)
    assert isinstance(target, NativeTarget)
    assert target.decoder.spec.tie_word_embeddings


def test_more_layers_than_the_config_says(llama: Path) -> None:
    edit(llama / "config.json", lambda config: config.update(num_hidden_layers=1))
    wanted = r"holds tensor model\.layers\.1\..*, which this model does not have \(9 such in all\); check that config"
    with pytest.raises(CheckpointError, match=wanted):
        load(llama)


def test_only_pickled_weights(either: Path) -> None:
    (either / "model.safetensors").unlink()
    torch.save({}, either / "pytorch_model.bin")
    wanted = r"holds only pickled weights \(pytorch_model\.bin\), which are never opened .* convert them to safetensors"
    with pytest.raises(CheckpointError, match=wanted):
        load(either)


def test_no_weights_at_all(either: Path) -> None:
    (either / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load(either)


def test_native_refuses_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has model_type 'gpt2'; the native decoder runs llama, qwen2"):
        load(save(GPT2, tmp_path), backend="native")


def test_an_unknown_architecture_is_named(llama: Path) -> None:
    edit(llama / "config.json", lambda config: config.update(model_type="nosuch", architectures=["NoSuch"]))
    with pytest.raises(CheckpointError, match=r"transformers cannot load .* `nosuch`"):
        load(llama)


def test_model_code_is_not_run_unasked(llama: Path) -> None:
    """A config that points to Python code beside the weights is refused, and the code is not imported."""
    (llama / "modeling_own.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")

    def point(config: dict[str, Any]) -> None:
        config["model_type"] = "own"
        config["auto_map"] = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.OwnModel"}

    edit(llama / "config.json", point)
    with pytest.raises(
        CheckpointError, match="needs Python code that comes with it; read that code, then pass trust_remote_code=True"
    ):
        load(llama)


def test_a_broken_tokenizer_is_named(llama: Path) -> None:
    (llama / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"the tokenizer in {llama} cannot be read"):
        load(llama)


def test_loading_does_not_need_the_directory_afterwards(llama: Path) -> None:
    target = load(llama)
    shutil.rmtree(llama)
    engine = outrider.Engine(target, outrider.load_proposer("none", target))
    assert len(engine.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))[0].tokens) == 4


@pytest.mark.parametrize("backend", ["native", "hf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_weights_that_are_not_finite_are_refused_by_name(backend: str, value: float, name: str, llama: Path) -> None:
    def spoil(weights: dict[str, Any]) -> None:
        weights[name].view(-1)[7] = value

    edit_weights(llama, spoil)
    with pytest.raises(CheckpointError, match=rf"tensor {name} in .* holds {value} at .*not finite"):
        load(llama, backend=backend)


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_weights_too_large_for_the_dtype_are_refused(backend: str, llama: Path) -> None:
    def grow(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][3] = 1e6

    edit_weights(llama, grow)
    load(llama, dtype="bfloat16", backend=backend)
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight.*float16"):
        load(llama, dtype="float16", backend=backend)


@pytest.mark.parametrize("backend", ["native", "hf"])
@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.o_proj.bias", "mlp.up_proj.weight_scale"])
def test_tensors_that_the_model_would_not_use_are_refused(backend: str, name: str, llama: Path) -> None:
    extra = f"model.layers.0.{name}"
    edit_weights(llama, lambda weights: weights.update({extra: torch.ones(16)}))
    with pytest.raises(CheckpointError, match=extra.replace(".", r"\.")):
        load(llama, backend=backend)


def test_longrope_ends_where_its_second_set_of_frequencies_begins(llama: Path) -> None:
    factors = {"short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0], "original_max_position_embeddings": 32}

    def scale(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}

    edit(llama / "config.json", scale)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    prompt = [[place % 31 for place in range(20)]]
    wanted = model.generate(torch.tensor(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 20:]
    target = load(llama)
    assert target.spec.max_positions == 32
    engine = outrider.Engine(target, outrider.load_proposer("none", target))
    assert list(engine.generate(prompt, SamplingParams(max_tokens=12, ignore_eos=True))[0].tokens) == wanted.tolist()
