"""A GGUF file opened as stored: the values of the file under Hugging Face names, by ranges, with nothing on disk."""

import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf_blocks import KINDS, random_blocks
from test_gguf_parts import split
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from outrider import load_target
from outrider.draft import Draft
from outrider.errors import CheckpointError
from outrider.formats.gguf.checkpoint import convert_gguf
from outrider.formats.gguf.stored import StoredModel, open_stored
from outrider.formats.tokenizer import load_tokenizer
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantisedMatrix, QuantRows, dequantised
from outrider.target import Target

Kind = gguf.GGMLQuantizationType
GgufWriter = Callable[..., Path]
Rounding = Callable[[PreTrainedModel], PreTrainedModel]
WIDE = {"hidden_size": 256, "intermediate_size": 512}
PLACES = [
    *("token_embd", "output", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output", "blk.0.ffn_gate"),
    *("blk.0.ffn_up", "blk.0.ffn_down", "blk.1.attn_q", "blk.1.attn_k", "blk.1.ffn_up", "blk.1.ffn_down"),
]


def values_of(model: StoredModel, name: str) -> torch.Tensor:
    return all_values(model.weights[name])


def all_values(found: torch.Tensor | QuantisedMatrix) -> torch.Tensor:
    if isinstance(found, QuantisedMatrix):
        return torch.from_numpy(dequantised(found.format, found.rows(0, found.shape[0])))
    return found


@pytest.fixture
def wide_llama(tiny_sizes: dict[str, int]) -> PreTrainedModel:
    """A llama whose rows hold whole superblocks."""
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**tiny_sizes | WIDE))


@pytest.fixture
def mixed(wide_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path) -> Path:
    """A file with a matrix of every quantised type, the others in F16."""
    matrices = {name: tensor for name, tensor in wide_llama.state_dict().items() if tensor.ndim == 2}
    by_place = {gguf_name(name): tensor for name, tensor in matrices.items()}
    blocks = {}
    for seed, (place, kind) in enumerate(zip(PLACES, KINDS, strict=True)):
        rows, columns = by_place[f"{place}.weight"].shape
        features = gguf.GGML_QUANT_SIZES[Kind[kind]][0]
        blocks[f"{place}.weight"] = (random_blocks(kind, rows, columns // features, seed), Kind[kind])
    return write_gguf(tmp_path / "mixed.gguf", wide_llama, kind=Kind.F16, blocks=blocks)


def gguf_name(name: str) -> str:
    """The file's name of a llama matrix, from gguf-py's own table."""
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 8).get_name(name.removesuffix(".weight"))
    assert found is not None
    return f"{found}.weight"


def in_halves(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Interleaved rows in the order of Hugging Face, listed one by one."""
    size = len(values) // num_heads
    order = [
        head * size + 2 * plane + half for head in range(num_heads) for half in (0, 1) for plane in range(size // 2)
    ]
    return values[order]


def test_every_type_of_one_file_has_the_values_that_gguf_py_reads(mixed: Path, wide_llama: PreTrainedModel) -> None:
    model = open_stored(mixed)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(mixed).tensors}
    seen = set()
    for name in wide_llama.state_dict():
        tensor = stored[gguf_name(name)]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        np.testing.assert_array_equal(
            values_of(model, name).float().numpy(), in_halves(expected, heads) if heads else expected, err_msg=name
        )
        seen.add(tensor.tensor_type.name)
    assert seen >= {*KINDS, "F16", "F32"}
    assert model.weights.num_bytes == sum(tensor.n_bytes for tensor in stored.values())
    assert set(model.weights) == set(wide_llama.state_dict())


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_a_range_of_rows_is_that_part_of_the_matrix(name: str, mixed: Path) -> None:
    matrix = open_stored(mixed).weights[f"model.layers.0.{name}.weight"]
    assert isinstance(matrix, QuantisedMatrix)
    num_rows = matrix.shape[0]
    whole = matrix.rows(0, num_rows)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(bounds=st.lists(st.integers(0, num_rows), min_size=2, max_size=2).map(sorted))
    def check(bounds: list[int]) -> None:
        part = matrix.rows(*bounds)
        for field in QuantRows.__dataclass_fields__:
            expected, found = getattr(whole, field), getattr(part, field)
            assert (expected is None) == (found is None)
            if expected is not None:
                np.testing.assert_array_equal(found, expected[slice(*bounds)])

    check()


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16])
def test_tensors_that_are_not_quantised_keep_their_dtype(
    kind: Kind, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    dtype = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}[kind]
    model = open_stored(write_gguf(tmp_path / "tiny.gguf", tiny_llama, kind=kind))
    for name, expected in tiny_llama.state_dict().items():
        found = model.weights[name]
        assert isinstance(found, torch.Tensor)
        assert found.dtype == (dtype if expected.ndim == 2 else torch.float32)
        assert torch.equal(found, expected.to(found.dtype))


def test_a_quantised_bias_is_widened(tiny_sizes: dict[str, int], write_gguf: GgufWriter, tmp_path: Path) -> None:
    config = LlamaConfig(**tiny_sizes, attention_bias=True)
    stored = gguf.quants.quantize(np.linspace(-1, 1, 32, dtype=np.float32), Kind.Q8_0)
    blocks = {"blk.1.attn_output.bias": (stored, Kind.Q8_0)}
    model = open_stored(write_gguf(tmp_path / "tiny.gguf", LlamaForCausalLM(config), blocks=blocks))
    expected = gguf.quants.dequantize(stored, Kind.Q8_0)
    np.testing.assert_array_equal(values_of(model, "model.layers.1.self_attn.o_proj.bias").numpy(), expected)


def test_rounding_what_is_stored_gives_the_converted_model(
    tiny_sizes: dict[str, int], write_gguf: GgufWriter, tmp_path: Path
) -> None:
    config = Qwen3Config(**tiny_sizes, head_dim=16, tie_word_embeddings=True)
    file = write_gguf(tmp_path / "tiny.gguf", Qwen3ForCausalLM(config), kind=Kind.Q5_1)
    directory = tmp_path / "converted"
    directory.mkdir()
    convert_gguf(file, directory)
    model, widened = open_stored(file), read_weights(directory)
    assert model.spec == DecoderSpec.from_config_file(directory)
    assert model.spec.tie_word_embeddings
    assert model.spec.eos_ids == (2, 0)
    assert set(model.weights) == set(widened)
    for name in widened:
        assert torch.equal(values_of(model, name).bfloat16(), widened[name])


def test_the_tokenizer_is_the_converted_one_and_nothing_stays_on_disk(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    directory, scratch = tmp_path / "converted", tmp_path / "scratch"
    directory.mkdir()
    scratch.mkdir()
    convert_gguf(file, directory)
    expected = load_tokenizer(directory)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    found = open_stored(file).tokenizer
    assert list(scratch.iterdir()) == []
    chat = [{"role": "user", "content": "hello world 12"}]
    text = found.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == expected.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.get_vocab() == expected.get_vocab()
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.name_or_path == str(file)


def test_parts_are_one_model_whichever_is_named(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    for part in split(write_gguf(tmp_path / "whole.gguf", tiny_llama), "model", (7, 6)):
        model = open_stored(part)
        assert model.file.name == "model-00001-of-00003.gguf"
        for name, expected in tiny_llama.state_dict().items():
            assert torch.equal(values_of(model, name), expected)


# --- what is refused ---


def blocks_of(kind: str, rows: int, columns: int) -> tuple[np.ndarray, Kind]:
    features, num_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    return np.zeros((rows, columns // features * num_bytes), np.uint8), Kind[kind]


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("IQ2_XXS", "requantise to Q4_K_M or Q8_0 with llama-quantize, or use --weights bf16"),
        ("TQ2_0", "requantise to Q4_K_M or Q8_0 with llama-quantize, or use --weights bf16"),
        ("Q8_K", "use the original checkpoint"),
    ],
)
def test_a_type_that_does_not_run_as_stored_is_named_with_a_remedy_that_works(
    kind: str, remedy: str, wide_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    blocks = {"blk.1.ffn_up.weight": blocks_of(kind, 512, 256)}
    file = write_gguf(tmp_path / "odd.gguf", wide_llama, blocks=blocks)
    message = rf"stores blk\.1\.ffn_up\.weight as {kind}, which does not run as stored; {remedy}$"
    with pytest.raises(CheckpointError, match=message):
        open_stored(file)
    directory = tmp_path / "converted"
    directory.mkdir()
    if "bf16" in remedy:
        convert_gguf(file, directory)
    else:
        with pytest.raises(CheckpointError, match=f"as {kind}, which is not read"):
            convert_gguf(file, directory)


def test_biases_of_an_mlp_are_refused(tiny_sizes: dict[str, int], write_gguf: GgufWriter, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**tiny_sizes, attention_bias=True, mlp_bias=True))
    with pytest.raises(CheckpointError, match=r"has biases in its MLP, .*; use --weights bf16"):
        open_stored(write_gguf(tmp_path / "tiny.gguf", model))


def patched(file: Path, name: str, *, width: int | None = None, kind: int | None = None) -> Path:
    """Change a matrix's innermost size or its type, in the header alone."""
    data = bytearray(file.read_bytes())
    sizes = data.index(name.encode()) + len(name) + 4
    if width is not None:
        data[sizes : sizes + 8] = struct.pack("<Q", width)
    if kind is not None:
        data[sizes + 16 : sizes + 20] = struct.pack("<I", kind)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 31}, r"stores blk\.1\.ffn_down\.weight as type 31, which is not known; use the original checkpoint"),
        ({"width": 48}, r"ffn_down\.weight as Q4_0 in rows of 48, no multiple of its blocks of 32; download it again"),
        ({"width": 96}, r"stores blk\.1\.ffn_down\.weight and \S+ in the same place"),
        ({"width": 32}, r"has shape \(32, 32\), expected \(32, 64\)"),
        ({"width": 2**63}, r"ffn_down\.weight would end at byte \d+ of \d+"),
        ({"kind": int(Kind.Q8_0)}, r"stores blk\.1\.ffn_down\.weight and \S+ in the same place"),
    ],
)
def test_a_matrix_that_is_not_what_its_header_says_is_refused(
    change: dict[str, int], message: str, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama, kind=Kind.Q4_0)
    with pytest.raises(CheckpointError, match=message):
        open_stored(patched(file, "blk.1.ffn_down.weight", **change))


def scales() -> Iterator[Any]:
    half = {"nan": b"\x00\x7e", "inf": b"\x00\x7c", "-inf": b"\x00\xfc"}
    for value, data in half.items():
        yield pytest.param("Q4_0", 0, data, value, id=f"Q4_0-d-{value}")
        yield pytest.param("Q4_1", 2, data, value, id=f"Q4_1-m-{value}")
        yield pytest.param("Q6_K", 208, data, value, id=f"Q6_K-d-{value}")
    yield pytest.param("Q4_K", 2, half["nan"], "nan", id="Q4_K-dmin-nan")
    yield pytest.param("MXFP4", 0, b"\xff", "nan", id="MXFP4-nan")
    # 12 times 2 ** 126 is infinite in fp32
    yield pytest.param("MXFP4", 0, b"\xfe", r"8\.50\d+e\+37", id="MXFP4-huge")


@pytest.mark.parametrize(("kind", "at", "data", "value"), list(scales()))
def test_a_scale_that_is_not_finite_is_found_when_its_row_is_read(
    kind: str,
    at: int,
    data: bytes,
    value: str,
    wide_llama: PreTrainedModel,
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    blocks, number = blocks_of(kind, 512, 256)
    blocks[37, at : at + len(data)] = np.frombuffer(data, np.uint8)
    stored = {"blk.1.ffn_up.weight": (blocks, number)}
    matrix = open_stored(write_gguf(tmp_path / "nan.gguf", wide_llama, blocks=stored)).weights[
        "model.layers.1.mlp.up_proj.weight"
    ]
    assert isinstance(matrix, QuantisedMatrix)
    matrix.rows(0, 37)
    with pytest.raises(CheckpointError, match=rf"blk\.1\.ffn_up\.weight in .* has a scale of {value} in row 37; "):
        matrix.rows(30, 40)


def test_a_vector_that_is_not_finite_is_found_when_it_is_read(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    tiny_llama.model.norm.weight.data[5] = float("nan")
    model = open_stored(write_gguf(tmp_path / "tiny.gguf", tiny_llama))
    with pytest.raises(CheckpointError, match=r"tensor output_norm\.weight in .* holds nan at \[5\]"):
        model.weights["model.norm.weight"]


def test_a_file_that_is_cut_or_removed_after_opening_is_one_sentence(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama, kind=Kind.Q8_0)
    weights = open_stored(file).weights
    file.write_bytes(file.read_bytes()[:-40])  # the last tensor of the file
    with pytest.raises(CheckpointError, match=r"tiny\.gguf ended inside tensor output\.weight"):
        all_values(weights["lm_head.weight"])
    file.unlink()
    with pytest.raises(CheckpointError, match=r"tensor output\.weight in .*tiny\.gguf cannot be read"):
        all_values(weights["lm_head.weight"])


def test_an_unknown_weight_is_refused(tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path) -> None:
    weights = open_stored(write_gguf(tmp_path / "tiny.gguf", tiny_llama)).weights
    assert "model.norm.weight" in weights
    assert "model.norm.bias" not in weights
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm\.bias; did you mean 'model\.norm\.weight'"):
        weights["model.norm.bias"]


def last_logits(target: Target, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's logits [V] after one text, and those of the model that was written."""
    tokens = list(range(3, 40))
    session = target.open(target.plan(1, 64, 4))
    session.prefill([0], [tokens[:-1]])
    logits_V = session.forward([0], [tokens[-1]], Draft.empty(1)).logits_BMV[0][0]
    with torch.no_grad():
        return logits_V, model(torch.tensor([tokens])).logits[0, -1]


def test_gemma_3_runs_as_stored_and_equals_the_model_that_was_written(
    tiny_sizes: dict[str, int],
    with_bf16_weights: Callable[..., PreTrainedModel],
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    """Seven layers, so that the sixth alone sees the whole text; prompts are longer than a window."""
    sizes = tiny_sizes | {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}
    model = with_bf16_weights(Gemma3ForCausalLM(Gemma3TextConfig(**sizes)))
    file = write_gguf(tmp_path / "tiny.gguf", model, kind=gguf.GGMLQuantizationType.F32)
    target = load_target(str(file), dtype="float32")
    logits_V, wanted_V = last_logits(target, model)
    torch.testing.assert_close(logits_V, wanted_V, atol=2e-4, rtol=1e-4)


def check_last_logits(kind: gguf.GGMLQuantizationType, target: Target, model: PreTrainedModel) -> None:
    """Compare a file's last logits with those of the model that was written: up to rounding in F32, closely in Q8_0."""
    logits_V, wanted_V = last_logits(target, model)
    if kind == gguf.GGMLQuantizationType.F32:
        torch.testing.assert_close(logits_V, wanted_V, atol=2e-4, rtol=1e-4)
    else:  # weights and activations of 8 bits
        assert (logits_V - wanted_V).norm() <= 0.05 * wanted_V.norm()


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0], ids=["F32", "Q8_0"])
def test_phi_3_runs_as_stored_and_equals_the_model_that_was_written(
    kind: gguf.GGMLQuantizationType,
    tiny_sizes: dict[str, int],
    with_bf16_weights: Callable[..., PreTrainedModel],
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "longrope", "partial_rotary_factor": 0.75}
    rope |= {"short_factor": [1.0, 1.25, 2.5], "long_factor": [1.0, 4.0, 9.5]}
    limits = {"original_max_position_embeddings": 80, "max_position_embeddings": 320}
    model = with_bf16_weights(Phi3ForCausalLM(Phi3Config(**tiny_sizes | limits, pad_token_id=0, rope_parameters=rope)))
    target = load_target(str(write_gguf(tmp_path / "tiny.gguf", model, kind=kind)), dtype="float32")
    assert target.spec.max_positions == 80
    check_last_logits(kind, target, model)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0], ids=["F32", "Q8_0"])
def test_llama_4_runs_as_stored_and_equals_the_model_that_was_written(
    kind: gguf.GGMLQuantizationType,
    tiny_sizes: dict[str, int],
    with_bf16_weights: Callable[..., PreTrainedModel],
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    """Four layers, so that the last does not rotate; mixtures in the second and the last."""
    experts = {"num_local_experts": 6, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96}
    sizes = tiny_sizes | {"num_hidden_layers": 4, "head_dim": 16}
    model = with_bf16_weights(Llama4ForCausalLM(Llama4TextConfig(**sizes, **experts)))
    target = load_target(str(write_gguf(tmp_path / "tiny.gguf", model, kind=kind)), dtype="float32")
    check_last_logits(kind, target, model)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0], ids=["F32", "Q8_0"])
def test_experts_run_as_stored_and_equal_the_model_that_was_written(
    kind: gguf.GGMLQuantizationType,
    tiny_sizes: dict[str, int],
    with_bf16_weights: Callable[..., PreTrainedModel],
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    model = with_bf16_weights(Qwen3MoeForCausalLM(Qwen3MoeConfig(**tiny_sizes, head_dim=16, **experts)))
    target = load_target(str(write_gguf(tmp_path / "tiny.gguf", model, kind=kind)), dtype="float32")
    assert target.spec.weights == ("float32" if kind == gguf.GGMLQuantizationType.F32 else "Q8_0, float32")
    check_last_logits(kind, target, model)
