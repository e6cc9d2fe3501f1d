"""A GGUF file becomes a Hugging Face directory that computes and tokenizes the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from outrider.errors import CheckpointError
from outrider.formats.gguf import checkpoint as converter
from outrider.formats.gguf.checkpoint import convert_gguf
from outrider.formats.gguf.layout import halves_first
from outrider.formats.weights import read_weights
from outrider.models.rope import rope_frequencies
from outrider.models.spec import DecoderSpec

F32, F16, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))
GgufWriter = Callable[..., Path]
Rounding = Callable[[PreTrainedModel], PreTrainedModel]


def converted(file: Path) -> Path:
    directory = file.with_suffix(".converted")
    directory.mkdir()
    convert_gguf(file, directory)
    return directory


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


EXPERTS = {
    "head_dim": 16,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.25, 2.5],
    "long_factor": [1.0, 4.0, 9.5],
}
MODELS = [
    (
        Llama4ForCausalLM,
        Llama4TextConfig,
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_local_experts": 3,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96,
        },
    ),
    (Phi3ForCausalLM, Phi3Config, {"pad_token_id": 0, "original_max_position_embeddings": 128, "sliding_window": 9}),
    (
        Phi3ForCausalLM,
        Phi3Config,
        {
            "pad_token_id": 0,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONGROPE,
            "tie_word_embeddings": True,
        },
    ),
    (LlamaForCausalLM, LlamaConfig, {}),
    (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": {"rope_theta": 5e5}},
    ),
    (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    (Qwen2ForCausalLM, Qwen2Config, {}),
    (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    (Qwen3MoeForCausalLM, Qwen3MoeConfig, EXPERTS),
    (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}),
]


@pytest.mark.parametrize("kind", [F32, F16])
@pytest.mark.parametrize(("model_class", "config_class", "fields"), MODELS)
def test_logits_survive_the_round_trip_exactly(
    model_class: Any,
    config_class: Any,
    fields: dict[str, Any],
    kind: gguf.GGMLQuantizationType,
    tiny_sizes: dict[str, int],
    with_bf16_weights: Rounding,
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    config = config_class(**tiny_sizes | fields)
    model = with_bf16_weights(model_class(config))
    if kind is F16:
        for parameter in model.parameters():
            parameter.data = parameter.half().to(torch.bfloat16).float()
    directory = converted(write_gguf(tmp_path / "tiny.gguf", model, kind=kind))
    again = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(again) is model_class
    assert torch.equal(logits(again), logits(model))
    assert {tensor.dtype for tensor in read_weights(directory).values()} == {torch.bfloat16}
    spec = DecoderSpec.from_config_file(directory)
    read_weights(directory).check(spec.weight_shapes())
    expected = DecoderSpec.from_config(config)
    assert (spec.rope, spec.head_dim, spec.rms_norm_eps) == (expected.rope, expected.head_dim, expected.rms_norm_eps)


def test_q8_blocks_that_bf16_can_hold_survive_exactly(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    """Integers up to 127 times a power of two: the scale of every block is exact, and so is every product."""
    generator = torch.Generator().manual_seed(1)
    for parameter in tiny_llama.parameters():
        if parameter.ndim == 2:
            integers = torch.randint(-127, 128, parameter.shape, generator=generator)
            integers[:, ::32] = 127
            parameter.data = integers / 1024
    directory = converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama, kind=Q8_0))
    again = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert torch.equal(logits(again), logits(tiny_llama))


def test_large_models_are_sharded(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "SHARD_BYTES", 20_000)
    directory = converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama))
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    assert not (directory / "model.safetensors").exists()
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in tiny_llama.parameters())
    again = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert torch.equal(logits(again), logits(tiny_llama))


@pytest.mark.parametrize(("high", "factor"), [(4.0, 32.0), (1.0, 16.0)], ids=["llama3", "llama4"])
def test_llama3_rope_is_recovered_from_the_stored_divisors(
    high: float,
    factor: float,
    tiny_sizes: dict[str, int],
    with_bf16_weights: Rounding,
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0}
    sizes = tiny_sizes | {"head_dim": 64, "max_position_embeddings": 131_072}
    rope |= {"high_freq_factor": high, "original_max_position_embeddings": 8192}
    config = LlamaConfig(**sizes, rope_parameters=rope)
    model = with_bf16_weights(LlamaForCausalLM(config))
    spec = DecoderSpec.from_config(config)
    plain = 5e5 ** -(torch.arange(0, 64, 2) / 64)
    divisors = (plain / rope_frequencies(spec).inv_freq).numpy()
    file = write_gguf(tmp_path / "tiny.gguf", model, tensors={"rope_freqs.weight": divisors})
    assert DecoderSpec.from_config_file(converted(file)).rope == spec.rope
    other = write_gguf(tmp_path / "other.gguf", model, tensors={"rope_freqs.weight": divisors[::-1].copy()})
    with pytest.raises(CheckpointError, match="rope_freqs that are not Llama's"):
        converted(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gemma"},
            "has architecture 'gemma'; GGUF files of llama, qwen2, qwen3, qwen3moe, ",
        ),
        ({"metadata": {"llama.block_count": None}}, r"no metadata key \.block_count"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"llama.attention.sliding_window": 8}}, "sliding attention window"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 2.0}}, r"sets llama\.rope\.scaling\.attn_factor"),
        ({"metadata": {"llama.block_count": 3}}, r"no tensor model\.layers\.2\."),
        ({"metadata": {"llama.feed_forward_length": 60}}, r"has shape \(64, 32\), expected \(60, 32\)"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "different number of heads per layer"),
        ({"metadata": {"llama.rope.dimension_count": 4}}, "rotates only part of each head"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "rope scaling 'longrope'"),
        (
            {"tensors": {"rope_factors_long.weight": np.ones(4, np.float32)}},
            r"holds tensor rope_factors_long\.weight",
        ),
        ({"tensors": {"blk.0.mystery.weight": np.ones(2, np.float32)}}, r"holds tensor blk\.0\.mystery\.weight"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "biases on attn_q only"),
        ({"metadata": {"tokenizer.ggml.model": "t5"}}, r"tokenizer model is 't5', only 'gpt2'"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, r"tokenizer\.ggml\.scores is missing"),
        ({"metadata": {"tokenizer.ggml.pre": "qwen"}}, "pre-tokenizer 'qwen' is not known; did you mean 'qwen2'"),
        ({"metadata": {"tokenizer.ggml.pre": "a" * 5000}}, r"pre-tokenizer 'a{60}\.\.\.' is not known"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    changes: dict[str, Any], message: str, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"phi3.rope.scaling.type": "yarn"}}, "rope scaling 'yarn'; of phi3, none"),
        ({"metadata": {"phi3.rope.scaling.factor": 2.0}}, "rope scaling 'none' by 2.0; of phi3"),
        ({"metadata": {"phi3.rope.scaling.type": "longrope"}}, r"no tensor rope_factors_short\.weight"),
        ({"metadata": {"phi3.rope.scaling.attn_factor": 1.2}}, r"no tensor rope_factors_short\.weight"),
        ({"tensors": {"rope_factors_short.weight": np.ones(4, np.float32)}}, r"no tensor rope_factors_long\.weight"),
        (
            {"tensors": {f"rope_factors_{kind}.weight": np.ones(3, np.float32) for kind in ("long", "short")}},
            r"rope_factors_short\.weight as F32 \[3\], expected F32 \[4\]",
        ),
        (
            {"tensors": {f"rope_factors_{kind}.weight": np.zeros(4, np.float32) for kind in ("long", "short")}},
            r"a divisor in rope_factors_short\.weight that is no number above 0",
        ),
        ({"metadata": {"phi3.rope.dimension_count": 9}}, r"rope\.dimension_count"),
        ({"metadata": {"phi3.rope.dimension_count": 5}}, "turns 5 of the 8 numbers of a head"),
    ],
)
def test_what_cannot_be_reproduced_of_phi_3_is_refused(
    changes: dict[str, Any], message: str, tiny_sizes: dict[str, int], write_gguf: GgufWriter, tmp_path: Path
) -> None:
    model = Phi3ForCausalLM(Phi3Config(**tiny_sizes, pad_token_id=0, original_max_position_embeddings=128))
    with pytest.raises(CheckpointError, match=message):
        converted(write_gguf(tmp_path / "tiny.gguf", model, **changes))


def test_an_attention_factor_of_its_own_is_kept(
    tiny_sizes: dict[str, int], write_gguf: GgufWriter, tmp_path: Path
) -> None:
    model = Phi3ForCausalLM(Phi3Config(**tiny_sizes, pad_token_id=0, rope_parameters=dict(LONGROPE)))
    file = write_gguf(tmp_path / "tiny.gguf", model, metadata={"phi3.rope.scaling.attn_factor": 1.25})
    assert DecoderSpec.from_config_file(converted(file)).rope.attention_factor == 1.25


def test_a_type_that_cannot_be_dequantized_is_named(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: object, kind: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(converter, "dequantize", refuse)
    with pytest.raises(CheckpointError, match=r"stores token_embd\.weight as F32, which is not read"):
        converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama))


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5, 0.99])
def test_a_damaged_file_is_one_sentence(
    keep: float, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content) if keep < 1 else keep)])
    with pytest.raises(CheckpointError, match="is not a complete GGUF file"):
        converted(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf does not exist"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path)


def test_a_head_s_rows_are_paired_as_documented() -> None:
    stored = torch.tensor([[0], [2], [1], [3]])
    assert halves_first(stored, 1).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.model
def test_the_embedded_target_speaks(smollm2_dir: Path) -> None:
    """Greedy decoding writes this answer: at each of its positions one forward has its next token on top."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer(tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False))["input_ids"]
    answer = tokenizer("The capital of France is Paris.<|im_end|>")["input_ids"]
    with torch.no_grad():
        top = model(torch.tensor([prompt + answer])).logits[0].argmax(-1).tolist()
    assert top[len(prompt) - 1 : -1] == answer
