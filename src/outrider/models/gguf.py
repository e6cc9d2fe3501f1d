"""From a GGUF file to a normal Hugging Face directory, once.

GGUF packs a model in one file: metadata, a tokenizer and (usually quantized) tensors. `convert_gguf` undoes each part:

    tensors      dequantized and rounded to bf16, renamed, written as safetensors (sharded above 4 GB)
    q and k      a `llama` file stores the rows of each head interleaved, for rotary planes (0, 1), (2, 3), ...;
                 Hugging Face pairs row i with row i + D/2. With D/2 planes: [plane, half] -> [half, plane]
    tokenizer    see `gguf_tokenizer.py`
    config       metadata keys -> `config.json`, in the layout that every version of `transformers` reads

What the file leaves open is decided here: a file without `output.weight` ties its embeddings, and every control token
that ends a turn or a document in its vocabulary stops generation, the file's own first (SmolLM2: `<|im_end|>` = 2, then
`<|endoftext|>` = 0). The result is the target by definition: dequantized weights are not the original ones.

Example: of a head with D = 4, a `llama` file holds the rows (0, 2, 1, 3) of the Hugging Face matrix.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors.torch import save_file
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.models.gguf_tokenizer import end_ids, write_tokenizer
from outrider.models.spec import DecoderSpec
from outrider.models.weights import read_weights

__all__ = ["CONVERTER_VERSION", "convert_gguf"]

CONVERTER_VERSION: Final = 1
SHARD_BYTES: Final = 4 * 10**9
ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALING_KEYS: Final = {"type", "factor", "original_context_length", "finetuned"}
TOP_NAMES: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An opened GGUF file: its metadata as Python values and its tensors by name, still quantized."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    @property
    def architecture(self) -> str:
        return str(self.require("general.architecture"))

    def require(self, key: str) -> Any:
        """A metadata value; `{arch}.x` keys are written without their prefix, as `.x`. Raises `CheckpointError`."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no metadata key {key}; it is not a language model this reads")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value or the default."""
        return self.metadata.get(self.architecture + key if key.startswith(".") else key, default)


def convert_gguf(file: str | Path, directory: str | Path) -> None:
    """Write the model in `file` into the existing, empty `directory` as a Hugging Face checkpoint in bf16.

    Raises `CheckpointError` for a damaged file and for a model this cannot reproduce exactly.
    """
    source, target = _open(Path(file)), Path(directory)
    config = _config(source)
    names = {_hugging_face_name(name, source.path): name for name in source.tensors if name != "rope_freqs.weight"}
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", _generation_config(source, config))
    write_tokenizer(source.metadata, source.architecture, target)
    _write_weights(source, names, config, target)
    read_weights(target).check(DecoderSpec.from_config_file(target).weight_shapes())


def _open(path: Path) -> GgufFile:
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a complete GGUF file ({error}); download it again") from error
    source = GgufFile(path=path, metadata=metadata, tensors=tensors)
    known = ", ".join(ARCHITECTURES)
    if metadata.get("general.architecture") not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} has architecture {metadata.get('general.architecture')!r}; GGUF files of {known} are converted"
        )
    if source.get(".attention.sliding_window", 0):
        raise CheckpointError(
            f"{path} has a sliding attention window, which is not converted; use its original checkpoint"
        )
    if source.get(".expert_count", 0):
        raise CheckpointError(f"{path} is a mixture of experts; dense GGUF files of {known} are converted")
    return source


def _config(source: GgufFile) -> dict[str, Any]:
    heads, kv_heads = source.require(".attention.head_count"), source.get(".attention.head_count_kv")
    kv_heads = heads if kv_heads is None else kv_heads
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise CheckpointError(f"{source.path} has a different number of heads per layer, which is not converted")
    width = source.require(".embedding_length")
    architecture = source.architecture
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": int(source.tensors["token_embd.weight"].shape[1]),
        "hidden_size": width,
        "intermediate_size": source.require(".feed_forward_length"),
        "num_hidden_layers": source.require(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": source.get(".attention.key_length", width // heads),
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(source.require(".attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": source.require(".context_length"),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "rope_theta": _shortest(source.get(".rope.freq_base", 10_000.0)),
        "torch_dtype": "bfloat16",
        "bos_token_id": source.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.get("tokenizer.ggml.padding_token_id"),
    }
    scaling = _rope_scaling(source, config["head_dim"], config["rope_theta"])
    return config | _biases(source) | ({"rope_scaling": scaling} if scaling else {})


def _biases(source: GgufFile) -> dict[str, bool]:
    if source.architecture == "qwen2":
        return {}
    attention = {
        name for name in ("attn_q", "attn_k", "attn_v", "attn_output") if f"blk.0.{name}.bias" in source.tensors
    }
    if 0 < len(attention) < 4:
        raise CheckpointError(
            f"{source.path} has biases on {', '.join(sorted(attention))} only, which is not converted"
        )
    return {"attention_bias": bool(attention), "mlp_bias": "blk.0.ffn_up.bias" in source.tensors}


def _rope_scaling(source: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    if source.get(".rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{source.path} rotates only part of each head, which is not converted")
    scaling = f"{source.architecture}.rope.scaling."
    unknown = [key for key in source.metadata if key.startswith(scaling) and key[len(scaling) :] not in SCALING_KEYS]
    if unknown:
        raise CheckpointError(f"{source.path} sets {unknown[0]}, which is not converted; use the original checkpoint")
    if "rope_freqs.weight" in source.tensors:
        return _llama3_scaling(source, head_dim, theta)
    kind, factor = source.get(".rope.scaling.type", "none"), source.get(".rope.scaling.factor", 1.0)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _shortest(factor)}
    if kind == "yarn":
        original = source.require(".rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": _shortest(factor), "original_max_position_embeddings": original}
    raise CheckpointError(f"{source.path} has rope scaling {kind!r}; none, linear, yarn and Llama 3's are converted")


def _llama3_scaling(source: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Recover the rule behind a stored table of divisors: its largest is the factor, the rest must then agree."""
    stored = torch.from_numpy(source.tensors["rope_freqs.weight"].data.astype("float32"))
    low, high, context, factor = 1.0, 4.0, 8192, round(float(stored.max()), 3)
    turns = context * theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim) / (2 * torch.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    if not torch.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise CheckpointError(f"{source.path} has rope_freqs that are not Llama 3's; use the original checkpoint")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _generation_config(source: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    ends = end_ids(source.metadata)
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config[key] is not None}
    return ids | ({"eos_token_id": ends} if ends else {})


def _hugging_face_name(name: str, path: Path) -> str:
    stem, _, kind = name.rpartition(".")
    block, _, inner = stem.removeprefix("blk.").partition(".")
    if stem in TOP_NAMES and kind == "weight":
        return f"{TOP_NAMES[stem]}.weight"
    if stem.startswith("blk.") and block.isdecimal() and inner in LAYER_NAMES and kind in ("weight", "bias"):
        return f"model.layers.{block}.{LAYER_NAMES[inner]}.{kind}"
    raise CheckpointError(
        f"{path} holds tensor {name}, which no supported architecture has; use the original checkpoint"
    )


def _write_weights(source: GgufFile, names: Mapping[str, str], config: Mapping[str, Any], directory: Path) -> None:
    shards = list(_shards({name: source.tensors[stored] for name, stored in names.items()}))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        of = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tensors = {name: _tensor(source, names[name], config) for name in shard}
        save_file(tensors, directory / f"model{of}.safetensors", metadata={"format": "pt"})
        (directory / f"model{of}.safetensors").chmod(0o644)  # written as 0600, which a shared cache cannot read
        weight_map |= dict.fromkeys(shard, f"model{of}.safetensors")
    if len(shards) > 1:
        total = 2 * sum(int(source.tensors[stored].n_elements) for stored in names.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _shards(tensors: Mapping[str, ReaderTensor]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        num_bytes = 2 * int(tensor.n_elements)
        if shard and size + num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += num_bytes
    yield shard


def _tensor(source: GgufFile, name: str, config: Mapping[str, Any]) -> Tensor:
    stored = source.tensors[name]
    try:
        values = torch.tensor(dequantize(stored.data, stored.tensor_type))
    except NotImplementedError as error:
        raise CheckpointError(
            f"{source.path} stores {name} as {stored.tensor_type.name}, which is not read; use a Q8_0 or F16 file"
        ) from error
    values = values.reshape([int(size) for size in reversed(stored.shape)])
    rotated = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if source.architecture == "llama" and rotated:
        values = _halves_first(values, config[rotated])
    return values.to(torch.bfloat16).contiguous()


def _halves_first(rows: Tensor, num_heads: int) -> Tensor:
    """Undo the interleaving of each head's rows: [head, plane, half] -> [head, half, plane]."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _shortest(value: float) -> float:
    """The decimal that was meant by a stored fp32: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
