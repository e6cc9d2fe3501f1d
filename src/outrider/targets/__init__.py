"""Finding a target by name, and choosing how to run it.

A Llama-family model runs on the native decoder; any other Hugging Face causal language model runs through `targets.hf`,
slower, behind the same interface.
"""

from pathlib import Path
from typing import Literal

from outrider.errors import ConfigError, nearest
from outrider.formats.directory import CONFIG, check_directory
from outrider.formats.locate import locate
from outrider.formats.tokenizer import load_tokenizer
from outrider.records.json_fields import read_json
from outrider.records.values import flag
from outrider.target import Target
from outrider.targets.placing import DTYPES, device_named, dtype_named

__all__ = ["DTYPES", "load_target"]


def load_target(
    name: str,
    *,
    dtype: str = "bfloat16",
    device: str | None = None,
    backend: Literal["auto", "native", "hf"] = "auto",
    trust_remote_code: bool = False,
) -> Target:
    """Load a target: a directory, a GGUF file, a hub id, or `smollm2-135m`.

    Args:
        dtype: of the weights: "bfloat16", "float16", "float32" or "float64".
        device: "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
        backend: "native" for the fast decoder, "hf" for `transformers`; "auto" takes native where it fits.
        trust_remote_code: run Python code that comes with the checkpoint, for its config, tokenizer and model, and with
            draft models that are loaded for it. Nothing is ever asked on standard input.

    Raises:
        CheckpointError: if it cannot be found or read.
        ConfigError: for an unknown dtype, device or back end, a device that is not there, or an argument of a
            wrong type.
    """
    trusts = flag("trust_remote_code", trust_remote_code, ConfigError)
    numbers, place = dtype_named(dtype), device_named(device)
    if backend not in ("auto", "native", "hf"):
        raise ConfigError(f"unknown backend '{backend}'{nearest(backend, ('auto', 'native', 'hf'))}")
    directory = locate(name, with_code=trusts)
    check_directory(directory)
    own_model = trusts and _brings_model_code(directory)
    is_native = backend == "native" or (backend == "auto" and not own_model and _is_native(directory))
    tokenizer = load_tokenizer(directory, trusts)
    if is_native:
        from outrider.targets.native import NativeTarget

        target = NativeTarget.from_directory(directory, name, numbers, place, tokenizer)
        target.trusts_code = trusts
        return target
    from outrider.targets.hf import HFTarget

    return HFTarget.from_directory(directory, name, numbers, place, tokenizer, trusts)


def _brings_model_code(directory: Path) -> bool:
    """Whether the config names a model class of the checkpoint's own."""
    auto_map = read_json(directory / CONFIG).get("auto_map")
    return isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map


def _is_native(directory: Path) -> bool:
    """Whether the native decoder runs it; raises where the config is damaged or has a key that nobody would obey."""
    from outrider.models.spec import FAMILIES, is_supported, read_config

    if read_json(directory / CONFIG).text("model_type", None) not in FAMILIES:
        return False
    config = read_config(directory / CONFIG)
    return is_supported(config) is None and not getattr(config, "mlp_bias", False)
