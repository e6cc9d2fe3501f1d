"""GGUF in parts, keys that change the numbers, and headers that lie."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from outrider.errors import CheckpointError
from outrider.formats.gguf.checkpoint import convert_gguf
from outrider.formats.locate import locate
from outrider.models.spec import DecoderSpec

GgufWriter = Callable[..., Path]
U32, F32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32


def split(file: Path, stem: str, counts: tuple[int, ...], **changes: Any) -> list[Path]:
    """Write the tensors of a file into parts, `counts[k]` in part k and the rest in the last."""
    reader = gguf.GGUFReader(file)
    left, parts = list(reader.tensors), []
    total = len(left)
    for number in range(len(counts) + 1):
        path = file.with_name(f"{stem}-{number + 1:05d}-of-{len(counts) + 1:05d}.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", changes.get("no", number))
        writer.add_uint16("split.count", len(counts) + 1)
        writer.add_int32("split.tensors.count", changes.get("total", total))
        here = left[: counts[number]] if number < len(counts) else left
        left = left[len(here) :]
        for tensor in here:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(path)
    return parts


def converted(file: Path) -> Path:
    directory = file.with_suffix(".converted")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    convert_gguf(file, directory)
    return directory


@pytest.mark.parametrize("counts", [(20,), (0,), (5, 5)])
def test_all_parts_are_read_whichever_is_named(
    counts: tuple[int, ...], tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    for part in split(write_gguf(tmp_path / "whole.gguf", tiny_llama), "model", counts):
        again = AutoModelForCausalLM.from_pretrained(converted(part), dtype=torch.float32)
        tokens = torch.arange(3, 40)[None]
        with torch.no_grad():
            assert torch.equal(again(tokens).logits, tiny_llama(tokens).logits)


def test_parts_that_do_not_fit_are_refused(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", tiny_llama)
    first, second = split(whole, "model", (19,))
    shutil.copy(first, tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"is part 1 of 2; put all parts into one directory"):
        converted(tmp_path / "renamed.gguf")
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="says that it is part 0 of 2"):
        converted(first)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.gguf is missing"):
        converted(first)
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.gguf is missing"):
        locate(first)
    with pytest.raises(CheckpointError, match="hold 21 tensors, expected 22"):
        converted(split(whole, "less", (19,), total=22)[0])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ({"rope.scaling.type": "none"}, {"type": "default"}),
        ({"rope.scale_linear": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"type": "default"}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
        ({"logit_scale": 1.0, "attention.causal": True, "expert_used_count": 0}, {"type": "default"}),
    ],
)
def test_rope_keys_and_missing_ones_mean_what_llama_cpp_takes(
    metadata: dict[str, Any],
    expected: dict[str, Any],
    tiny_llama: PreTrainedModel,
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    keys = {f"llama.{key}": value for key, value in metadata.items()}
    rope = DecoderSpec.from_config_file(converted(write_gguf(tmp_path / "a.gguf", tiny_llama, metadata=keys))).rope
    assert {key: getattr(rope, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"llama.logit_scale": 0.5}, r"sets llama\.logit_scale to 0\.5, which is not converted"),
        ({"llama.embedding_scale": 12.0}, r"sets llama\.embedding_scale"),
        ({"llama.residual_scale": 0.2}, r"sets llama\.residual_scale"),
        ({"llama.attention.scale": 0.3}, r"sets llama\.attention\.scale"),
        ({"llama.final_logit_softcapping": 30.0}, r"sets llama\.final_logit_softcapping"),
        ({"llama.attention.causal": False}, r"sets llama\.attention\.causal"),
        ({"llama.something_new": 0}, r"sets llama\.something_new"),
        ({"llama.attention.value_length": 4}, "has keys of 8 and values of 4 numbers"),
        ({"llama.rope.freq_base": float("nan")}, r"llama\.rope\.freq_base is NaN"),
        ({"llama.embedding_length": "32"}, r"llama\.embedding_length is '32' but must be an integer"),
        ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count is 0"),
        ({"llama.context_length": 0}, r"llama\.context_length is 0"),
        ({"tokenizer.ggml.add_eos_token": True}, "would end every prompt"),
        ({"tokenizer.ggml.eos_token_id": 9999}, r"eos_token_id is 9999"),
        ({"tokenizer.ggml.unknown_token_id": 9999}, r"unknown_token_id is 9999"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merges holds 'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "tokenizer cannot be built"),
        ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"tokenizer.ggml.token_type": None}, r"tokenizer\.ggml\.token_type is missing"),
        ({"tokenizer.ggml.merges": None}, r"tokenizer\.ggml\.merges is missing"),
        ({"tokenizer.ggml.token_type": [1, 1]}, r"token_type is .* must be a list of"),
        ({"general.type": "adapter"}, "is a LoRA adapter; merge it"),
        ({"general.type": "mmproj"}, "is the image part of a model"),
    ],
)
def test_metadata_that_cannot_be_honoured_is_refused_by_name(
    metadata: dict[str, Any], sentence: str, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama, metadata=metadata))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_values_that_are_not_finite_are_refused(
    value: float, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    tiny_llama.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(CheckpointError, match=r"tensor blk\.1\.ffn_up\.weight in .*tiny\.gguf"):
        converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama))


@pytest.mark.parametrize("at", [8, 16, 24], ids=["tensors", "keys", "first-name"])
def test_a_header_that_promises_too_much_is_found_at_once(
    at: int, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    data = bytearray(file.read_bytes())
    data[at : at + 8] = struct.pack("<Q", 2**60)
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not a complete GGUF file"):
        converted(file)
