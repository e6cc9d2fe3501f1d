"""Conversion of a GGUF file to a Hugging Face directory.

GGUF packs metadata, a tokenizer and (usually quantized) tensors into one file. `convert_gguf` converts each part:

    tensors      dequantized and rounded to bf16, renamed, written as safetensors (sharded above 4 GB)
    q and k      rows in another order, see `layout.py`
    tokenizer    see `tokenizer.py`
    config       metadata keys -> `config.json`, in the layout that every version of `transformers` reads

Defaults: without `output.weight` the embeddings are tied, and every control token that ends a turn or a document stops
generation, the file's own first (SmolLM2: `<|im_end|>` = 2, then `<|endoftext|>` = 0). The result defines the target:
dequantized weights differ from the original ones.

Example: `convert_gguf("model.gguf", directory)` writes `config.json`, `tokenizer.json`, `model.safetensors` and more.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from outrider.errors import CheckpointError, as_error
from outrider.formats.gguf.config import config_of_gguf
from outrider.formats.gguf.file import GgufFile, open_gguf
from outrider.formats.gguf.gemma3 import norm_offset
from outrider.formats.gguf.layout import (
    check_tensors,
    generation_config,
    halves_first,
    hugging_face_names,
    rotated_heads,
)
from outrider.formats.gguf.tokenizer import write_tokenizer
from outrider.formats.tensors.stored import fuse, fused_names
from outrider.formats.weights import cast, check_finite
from outrider.models.spec import DecoderSpec
from outrider.records.files import save_tensors

__all__ = ["CONVERTER_VERSION", "convert_gguf"]

CONVERTER_VERSION: Final = 1
SHARD_BYTES: Final = 4 * 10**9


def convert_gguf(file: str | Path, directory: str | Path) -> None:
    """Write the model in `file` into the existing, empty `directory` as a Hugging Face checkpoint in bf16.

    Raises:
        CheckpointError: for a damaged file, and for a model that cannot be reproduced exactly.
    """
    source, target = open_gguf(Path(file)), Path(directory)
    config = config_of_gguf(source)
    names = hugging_face_names(source)
    _write_json(target / "config.json", config)
    # before anything large is dequantized
    check_tensors(source, names, DecoderSpec.from_config_file(target))
    _write_json(target / "generation_config.json", generation_config(source, config))
    write_tokenizer(source.metadata, source.architecture, target)
    _write_weights(source, names, config, target)


def _write_weights(source: GgufFile, names: Mapping[str, str], config: Mapping[str, Any], directory: Path) -> None:
    joined = fused_names(names)
    sizes = {
        name: 2 * sum(math.prod(source.tensors[names[member]].shape) for member in members)
        for name, members in joined.items()
    }
    shards = list(_shards(sizes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        of = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tensors = {
            name: fuse(name, [_tensor(source, names[member], config) for member in joined[name]]) for name in shard
        }
        save_tensors(directory / f"model{of}.safetensors", tensors)
        weight_map |= dict.fromkeys(shard, f"model{of}.safetensors")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, num_bytes in sizes.items():
        if shard and size + num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += num_bytes
    yield shard


def _tensor(source: GgufFile, name: str, config: Mapping[str, Any]) -> Tensor:
    stored = source.tensors[name]
    data = stored.read()
    what = f"{source.path} stores {name} as {stored.kind}, which is not read"
    with as_error(CheckpointError, what, "use a Q8_0 or F16 file"):
        values = torch.tensor(dequantize(data, GGMLQuantizationType[stored.kind]))
    values = values.reshape(stored.shape)
    num_heads = rotated_heads(source, name, config)
    if num_heads is not None:
        values = halves_first(values, num_heads)
    check_finite(values, f"tensor {name} in {source.path}")
    values -= norm_offset(source, name)
    return cast(values, torch.bfloat16, f"tensor {name} in {source.path}").contiguous()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
