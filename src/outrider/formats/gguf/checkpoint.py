"""Conversion of a GGUF file to a Hugging Face directory.

GGUF packs metadata, a tokenizer and (usually quantized) tensors into one file. `convert_gguf` converts each part:

    tensors      dequantized and rounded to bf16, renamed, written as safetensors (sharded above 4 GB)
    q and k      a `llama` file stores the rows of each head interleaved, for rotary planes (0, 1), (2, 3), ...;
                 Hugging Face pairs row i with row i + D/2. With D/2 planes: [plane, half] -> [half, plane]
    tokenizer    see `tokenizer.py`
    config       metadata keys -> `config.json`, in the layout that every version of `transformers` reads

Defaults: without `output.weight` the embeddings are tied, and every control token that ends a turn or a document stops
generation, the file's own first (SmolLM2: `<|im_end|>` = 2, then `<|endoftext|>` = 0). The result defines the target:
dequantized weights differ from the original ones.

Example: of a head with D = 4, a `llama` file holds the rows (0, 2, 1, 3) of the Hugging Face matrix.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from gguf import ReaderTensor
from gguf.quants import dequantize
from torch import Tensor

from outrider.errors import CheckpointError, as_error
from outrider.formats.gguf.config import config_of_gguf
from outrider.formats.gguf.file import GgufFile, open_gguf
from outrider.formats.gguf.tokenizer import end_ids, write_tokenizer
from outrider.formats.weights import StoredTensor, Weights, cast, check_finite
from outrider.models.spec import DecoderSpec
from outrider.records.files import save_tensors

__all__ = ["CONVERTER_VERSION", "convert_gguf"]

CONVERTER_VERSION: Final = 1
SHARD_BYTES: Final = 4 * 10**9
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


def convert_gguf(file: str | Path, directory: str | Path) -> None:
    """Write the model in `file` into the existing, empty `directory` as a Hugging Face checkpoint in bf16.

    Raises:
        CheckpointError: for a damaged file, and for a model that cannot be reproduced exactly.
    """
    source, target = open_gguf(Path(file)), Path(directory)
    config = config_of_gguf(source)
    names = {_hugging_face_name(name, source.path): name for name in source.tensors if name != "rope_freqs.weight"}
    _write_json(target / "config.json", config)
    # before anything large is dequantized
    _check_tensors(source, names, DecoderSpec.from_config_file(target))
    _write_json(target / "generation_config.json", _generation_config(source, config))
    write_tokenizer(source.metadata, source.architecture, target)
    _write_weights(source, names, config, target)


def _check_tensors(source: GgufFile, names: Mapping[str, str], spec: DecoderSpec) -> None:
    """Refuse a file with a missing, extra or misshapen tensor."""
    stored = {
        name: StoredTensor(
            name=name,
            file=source.path,
            dtype=source.tensors[given].tensor_type.name,
            shape=tuple(int(size) for size in reversed(source.tensors[given].shape)),
        )
        for name, given in names.items()
    }
    Weights(stored).check(spec.weight_shapes())


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
        save_tensors(directory / f"model{of}.safetensors", tensors)
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
    what = f"{source.path} stores {name} as {stored.tensor_type.name}, which is not read"
    with as_error(CheckpointError, what, "use a Q8_0 or F16 file"):
        values = torch.tensor(dequantize(stored.data, stored.tensor_type))
    # GGUF lists dimensions from the innermost, PyTorch from the outermost
    values = values.reshape([int(size) for size in reversed(stored.shape)])
    rotated = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if source.architecture == "llama" and rotated:
        values = _halves_first(values, config[rotated])
    check_finite(values, f"tensor {name} in {source.path}")
    return cast(values, torch.bfloat16, f"tensor {name} in {source.path}").contiguous()


def _halves_first(rows: Tensor, num_heads: int) -> Tensor:
    """Reverse the interleaving of each head's rows: [head, plane, half] -> [head, half, plane]."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
