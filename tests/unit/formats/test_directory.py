"""A directory that is no model is told what it is, and what makes a model of it."""

from pathlib import Path

import pytest

import outrider
from outrider.errors import OutriderError

CASES: dict[str, tuple[dict[str, str], str]] = {
    "empty": ({}, "is empty"),
    "adapter": (
        {"adapter_config.json": '{"base_model_name_or_path": "a/b"}', "adapter_model.safetensors": ""},
        "holds a LoRA adapter of 'a/b', not a model; merge it into its base model",
    ),
    "adapter-weights": ({"adapter_model.safetensors": ""}, "holds a LoRA adapter, not a model"),
    "adapter-config-damaged": ({"adapter_config.json": "{"}, "adapter_config.json cannot be read as JSON"),
    "gguf": ({"a-Q8_0.gguf": "", "README.md": ""}, "holds GGUF files; pass the file itself, such as .*a-Q8_0.gguf"),
    "pickled": ({"pytorch_model.bin": ""}, "holds only pickled weights"),
    "meta": ({"consolidated.00.pth": "", "params.json": ""}, "holds weights in another layout"),
    "pipeline": ({"model_index.json": "{}"}, "holds a pipeline of several models"),
    "training": ({"step-100/config.json": "{}"}, "pass one of the model directories in it, such as .*step-100"),
    "tokenizer": ({"tokenizer.json": "{}"}, "has no config.json"),
    "config-only": ({"config.json": '{"model_type": "llama"}'}, "vocab_size is missing"),
    "both": (
        {"config.json": "{}", "adapter_config.json": "{}", "model.safetensors": ""},
        "holds a model and a LoRA adapter, which would change its text",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_model_is_named(name: str, tmp_path: Path) -> None:
    files, sentence = CASES[name]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(OutriderError, match=sentence):
        outrider.load_target(str(tmp_path), device="cpu")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(OutriderError, match="is a file; pass the directory that holds the model"):
        outrider.load_target(str(file), device="cpu")
    folder = tmp_path / "model.gguf.d"
    folder.mkdir()
    with pytest.raises(OutriderError, match="is empty"):
        outrider.load_target(str(folder), device="cpu")
