"""Tiny GGUF files, written from `transformers` models the way llama.cpp's converter lays them out; a made-up report."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from outrider.results.rows import Lossless, Report, Row
from outrider.results.statistics import Interval

BYTES = list(bytes_to_unicode().values())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "1 2", "Ġ 1"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>"]
PADDING = ["[PAD0]", "[PAD1]"]
TOKENS = SPECIAL + BYTES + [merge.replace(" ", "") for merge in MERGES] + USER_DEFINED + PADDING
KINDS = [3] * 3 + [1] * (len(BYTES) + len(MERGES)) + [4] + [5] * 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MOE_STEMS = STEMS | {"mlp.gate": "ffn_gate_inp"}
PHI3_STEMS = STEMS | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
LLAMA4_STEMS = {name: stem for name, stem in STEMS.items() if not name.startswith("mlp.")} | {
    "feed_forward.router": "ffn_gate_inp",
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"feed_forward.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}
GEMMA3_STEMS = STEMS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOPS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
GgufWriter = Callable[..., Path]


def gguf_name(name: str, stems: dict[str, str] = STEMS) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in TOPS:
        return f"{TOPS[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{stems[inner]}.{kind}"


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rotary halves to pairs, by listing rows one by one."""
    size = rows.shape[0] // num_heads
    order = [
        head * size + half * (size // 2) + plane
        for head in range(num_heads)
        for plane in range(size // 2)
        for half in (0, 1)
    ]
    return rows[order]


def gguf_metadata(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    config = model.config
    rope = config.rope_parameters
    return {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": getattr(config, "head_dim", None),
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def own_metadata(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    """The keys that only one family has."""
    config = model.config
    if architecture == "gemma3":
        return {"gemma3.attention.sliding_window": config.sliding_window}
    if architecture == "phi3":
        head_dim = config.hidden_size // config.num_attention_heads
        original, rope = config.original_max_position_embeddings, config.rope_parameters
        ratio = config.max_position_embeddings / original
        scale = {"phi3.rope.scaling.attn_factor": math.sqrt(1 + math.log(ratio) / math.log(original))}
        return {
            "phi3.rope.dimension_count": int(head_dim * rope["partial_rotary_factor"]),
            "phi3.rope.scaling.original_context_length": original,
            "phi3.attention.sliding_window": config.sliding_window or 0,
        } | (scale if rope["rope_type"] == "longrope" else {})
    if architecture == "llama4":
        return {
            "llama4.feed_forward_length": config.intermediate_size_mlp,
            "llama4.expert_count": config.num_local_experts,
            "llama4.expert_used_count": config.num_experts_per_tok,
            "llama4.expert_feed_forward_length": config.intermediate_size,
            "llama4.interleave_moe_layer_step": config.interleave_moe_layer_step,
        }
    if architecture == "qwen3moe":
        return {
            "qwen3moe.expert_count": config.num_experts,
            "qwen3moe.expert_used_count": config.num_experts_per_tok,
            "qwen3moe.expert_feed_forward_length": config.moe_intermediate_size,
        }
    return {}


def divisors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The tables of LongRoPE."""
    rope = model.config.rope_parameters
    if rope.get("rope_type") != "longrope":
        return {}
    return {
        f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], dtype=np.float32) for kind in ("long", "short")
    }


def transposed(name: str, values: np.ndarray) -> np.ndarray:
    """Matrices [expert][row][feature]; Llama 4's model holds features first."""
    return np.ascontiguousarray(values.transpose(0, 2, 1)) if ".feed_forward." in name else values


def stacked_experts(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a layer's experts, [expert][row][feature], from those of `transformers`."""
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return {f"{block}.ffn_down_exps.weight": transposed(name, values)}
    gate, up = np.split(transposed(name, values), 2, axis=1)
    return {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    (writer.add_array if isinstance(value, list) else adders[type(value)])(key, value)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    blocks: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
) -> Path:
    """Write `model`; matrices are stored as `kind`, vectors as fp32. A metadata value of None leaves its key out.

    `tensors` come in addition; `blocks` (by GGUF name: bytes and their type) in place of the model's own values.
    """
    is_gemma3 = model.config.model_type == "gemma3_text"
    names = {"gemma3_text": "gemma3", "qwen3_moe": "qwen3moe", "llama4_text": "llama4"}
    own = names.get(model.config.model_type, model.config.model_type)
    all_stems = {"gemma3": GEMMA3_STEMS, "qwen3moe": MOE_STEMS, "phi3": PHI3_STEMS, "llama4": LLAMA4_STEMS}
    stems = all_stems.get(own, STEMS)
    writer = gguf.GGUFWriter(path, architecture or own)
    for key, value in (gguf_metadata(model, own) | own_metadata(model, own) | (metadata or {})).items():
        if value is not None:
            add_value(writer, key, value)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if ".experts." in name:
            for stacked, experts in stacked_experts(name, values).items():
                writer.add_tensor(stacked, gguf.quants.quantize(experts, kind), raw_dtype=kind)
            continue
        if model.config.model_type == "llama" and name.split(".")[-2] in heads:
            values = interleaved(values, heads[name.split(".")[-2]])
        if is_gemma3 and name.endswith("norm.weight"):
            values = values + 1
        stored = (
            kind
            if values.ndim == 2 and not name.endswith(("mlp.gate.weight", "feed_forward.router.weight"))
            else gguf.GGMLQuantizationType.F32
        )
        data, stored = (blocks or {}).get(gguf_name(name, stems)) or (gguf.quants.quantize(values, stored), stored)
        writer.add_tensor(gguf_name(name, stems), data, raw_dtype=stored)
    for name, values in (divisors(model) | (tensors or {})).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bf16_valued(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with weights that bf16 can hold, and biases that are not all zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter + noise).to(torch.bfloat16))
    return model.eval()


@pytest.fixture(name="write_gguf")
def write_gguf_fixture() -> GgufWriter:
    """Writes a `transformers` model as a GGUF file with a byte-level tokenizer; see `write_gguf` above."""
    return write_gguf


@pytest.fixture
def tiny_sizes() -> dict[str, int]:
    """Sizes of a model small enough to convert in milliseconds, with rows that fill a quantization block."""
    return {
        "vocab_size": len(TOKENS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }


@pytest.fixture
def tiny_llama(tiny_sizes: dict[str, int]) -> PreTrainedModel:
    """A two-layer Llama with random bf16 weights."""
    return bf16_valued(LlamaForCausalLM(LlamaConfig(**tiny_sizes, rms_norm_eps=1e-5)))


@pytest.fixture
def with_bf16_weights() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Gives a model random weights that bf16 holds exactly."""
    return bf16_valued


def row(method: str, category: str, speedup: tuple[float, float | None, float | None] | None, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "engine": "outrider",
        "batch": 1,
        "temperature": 0.0,
        "num_prompts": 12,
        "num_repeats": 3,
        "tokens_per_s": 50.0,
        "lossless": Lossless(verdict="exact"),
    }
    interval = None if speedup is None else Interval(point=speedup[0], low=speedup[1], high=speedup[2])
    return Row(method=method, category=category, speedup=interval, **(fields | changes))


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """One browser for all tests of pages."""
    from browsing import chromium

    with chromium() as running:
        yield running


@pytest.fixture
def report() -> Report:
    """Two categories and all, a losing and an undecided cell, a second setting, a baseline from outside."""
    return Report(
        run="runs/made-up",
        target="tiny <&> model",
        dtype="bfloat16",
        device="cpu",
        commit="0123456789abcdef",
        dirty=True,
        notes=("a slice.",),
        rows=(
            row("none", "all", (1.0, 1.0, 1.0)),
            row("lookup", "all", (1.5, 1.2, 1.8)),
            row("none", "editing", (1.0, 1.0, 1.0)),
            row("lookup", "editing", (2.5, 2.0, 3.0), lossless=Lossless(verdict="ties", ties=2)),
            row("slow", "editing", (0.5, 0.4, 0.7)),
            row("none", "chat | talk", (1.0, 1.0, 1.0)),
            row("lookup", "chat | talk", (1.05, 0.9, 1.2), lossless=Lossless()),
            row(
                "lookup", "editing", (1.25, None, None), batch=4, temperature=1.0, lossless=Lossless(verdict="violated")
            ),
            row("lookup", "editing", (3.0, 2.5, 3.5), state="warm"),
            row("lookup", "summary", None),
            row("generate", "editing", (0.25, 0.2, 0.5), engine="elsewhere", lossless=Lossless()),
        ),
    )
