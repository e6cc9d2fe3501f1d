"""Checks of model directories, and precise errors for directories that are not models.

A model directory has a `config.json`, safetensors and (usually) tokenizer files. Common mistakes are the directory of a
LoRA adapter, of GGUF files, of pickled weights, of Meta's or MLX's layout, of checkpoints one level down, or an empty
one. Each has its own message with a remedy.

Example: a directory with `adapter_config.json` gives "... holds a LoRA adapter of 'Qwen/Qwen2.5-0.5B', not a model;
merge it into its base model (peft: merge_and_unload) and load the result".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from outrider.errors import CheckpointError, as_error
from outrider.models.config_keys import check_eos
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, read_json

__all__ = ["CONFIG", "check_directory", "no_weights"]

CONFIG: Final = "config.json"
ADAPTER: Final = "adapter_config.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
GENERATION: Final = "generation_config.json"
JSON_FILES: Final = (GENERATION, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MERGE: Final = "merge it into its base model (peft: merge_and_unload) and load the result"


def check_directory(directory: Path) -> None:
    """Refuse a directory that is no model, an adapter beside a model, and damaged JSON files.

    `transformers` silently skips some damaged files, and with them the end-of-text ids.

    Raises:
        CheckpointError: in each of these cases.
    """
    if (directory / ADAPTER).exists():
        raise CheckpointError(_adapter(directory))
    if not (directory / CONFIG).exists():
        raise CheckpointError(_described(directory, f"has no {CONFIG}"))
    for name in (CONFIG, *JSON_FILES):
        if (directory / name).exists():
            _check_fields(name, read_json(directory / name))


def _check_fields(name: str, fields: Fields) -> None:
    """Check values that `transformers` reads only on use: end-of-text ids, a tokenizer's limits."""
    if name in (CONFIG, GENERATION):
        check_eos(fields)
    elif name == "tokenizer_config.json":
        fields.number("model_max_length", None, low=1.0)
        fields.text("padding_side", None, choices=("left", "right"))
        fields.text("truncation_side", None, choices=("left", "right"))


def no_weights(directory: Path) -> CheckpointError:
    """Return the error for a model directory without safetensors."""
    return CheckpointError(_described(directory, "holds no model.safetensors and no model.safetensors.index.json"))


def _described(directory: Path, lacks: str) -> str:
    """Return the message for a directory that is no model."""
    with as_error(CheckpointError, f"{directory} cannot be read", "check its permissions"):
        names = sorted(path.name for path in directory.iterdir())
    # the order matters: an adapter's directory often holds pickled weights too
    cases: tuple[tuple[str, Callable[[Path, str], str]], ...] = (
        (ADAPTER, lambda where, _: _adapter(where)),
        ("adapter_model.*", lambda where, _: _adapter(where)),
        ("*.gguf", lambda where, name: f"{where} holds GGUF files; pass the file itself, such as {where / name}"),
        ("model_index.json", lambda where, _: f"{where} holds a pipeline of several models; pass one of its folders"),
        ("consolidated*", _other_layout),
        ("params.json", _other_layout),
        ("*.npz", _other_layout),
    )
    for pattern, sentence in cases:
        found = [name for name in names if Path(name).match(pattern)]
        if found:
            return sentence(directory, found[0])
    pickled = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if pickled:
        return (
            f"{directory} holds only pickled weights ({pickled[0]}), which are never opened because unpickling runs"
            " code; convert them to safetensors in a sandbox you trust, or use a safetensors revision"
        )
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if not names:
        return f"{directory} is empty and {lacks}; pass a directory with config.json, safetensors and tokenizer"
    if inner:
        return f"{directory} {lacks}; pass one of the model directories in it, such as {directory / inner[0]}"
    return f"{directory} {lacks}; pickled weights are never used; pass the directory of a whole model"


def _adapter(directory: Path) -> str:
    base = read_json(directory / ADAPTER).get("base_model_name_or_path") if (directory / ADAPTER).exists() else None
    of = f" of {shown_json(base)}" if isinstance(base, str) else ""
    if (directory / CONFIG).exists() and (directory / "model.safetensors").exists():
        return (
            f"{directory} holds a model and a LoRA adapter{of}, which would change its text; merge them, or move"
            f" {ADAPTER} out of the directory"
        )
    return f"{directory} holds a LoRA adapter{of}, not a model; {MERGE}"


def _other_layout(directory: Path, name: str) -> str:
    return f"{directory} holds weights in another layout ({name}); convert them to the Hugging Face layout first"
