"""Loading a target by name.

A Llama-family model runs on the native decoder. Any other Hugging Face causal language model runs through `targets.hf`,
slower, behind the same interface.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from outrider.errors import ConfigError, nearest
from outrider.formats.directory import CONFIG, check_directory
from outrider.formats.locate import gguf_file, locate
from outrider.formats.quantised import quantised_weights
from outrider.formats.tokenizer import load_tokenizer
from outrider.models.spec import DecoderSpec
from outrider.records.display import shown
from outrider.records.json_fields import read_json
from outrider.records.values import flag
from outrider.target import Target
from outrider.targets.placing import DTYPES, device_named, dtype_named

__all__ = ["DTYPES", "load_target"]

BACKENDS = ("auto", "native", "hf")
WEIGHTS = ("stored", "bf16", "int8", "int4")


def load_target(
    name: str,
    *,
    dtype: str = "bfloat16",
    weights: Literal["stored", "bf16", "int8", "int4"] = "stored",
    device: str | None = None,
    backend: Literal["auto", "native", "hf"] = "auto",
    trust_remote_code: bool = False,
) -> Target:
    """Load a target: a directory, a GGUF file, a hub id, or `smollm2-135m`.

    Args:
        dtype: dtype of the cache and of plain weights: "bfloat16", "float16", "float32" or "float64".
        weights: on the CPU, "stored" runs quantised weights as their file holds them, "int8" and "int4" quantise those
            of a directory while loading, "bf16" widens all to `dtype`. A GPU and `transformers` widen.
        device: "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
        backend: "native" for the fast decoder, "hf" for `transformers`, "auto" for native if it supports the model.
        trust_remote_code: run Python code that comes with the checkpoint, for its config, tokenizer and model, and with
            draft models that are loaded for it. Nothing is ever asked on standard input.

    Raises:
        CheckpointError: if it cannot be found or read.
        ConfigError: for an unknown dtype, device or back end, a missing device, or an argument of a wrong type.
    """
    # 1. the arguments, before anything is fetched
    trusts = flag("trust_remote_code", trust_remote_code, ConfigError)
    numbers, place = dtype_named(dtype), device_named(device)
    _check_names(backend, weights)
    on_cpu = place.type == "cpu" and numbers in (torch.bfloat16, torch.float32) and backend != "hf"
    if weights in ("int8", "int4") and not on_cpu:
        raise ConfigError(f"weights={weights!r} needs the native decoder on the CPU; leave it out, or use device='cpu'")
    # 2. a GGUF file runs as it is
    file = gguf_file(name) if weights != "bf16" and on_cpu else None
    if file is not None:
        return _from_gguf(file, name, weights, numbers)
    # 3. the directory
    directory = locate(name, with_code=trusts)
    check_directory(directory)
    # 4. the back end
    if backend == "auto":
        backend = "native" if _runs_natively(directory, trusts) else "hf"
    # 5. tokenizer and weights
    tokenizer = load_tokenizer(directory, trusts)
    if backend == "hf":
        if weights in ("int8", "int4"):
            raise ConfigError(f"weights={weights!r} needs a Llama-family model, which {name} is not; leave it out")
        from outrider.targets.hf import HFTarget

        return HFTarget.from_directory(directory, name, numbers, place, tokenizer, trusts)
    from outrider.targets.native import NativeTarget

    quantised = None if weights == "bf16" or not on_cpu else quantised_weights(directory, weights)
    if quantised is None:
        target = NativeTarget.from_directory(directory, name, numbers, place, tokenizer)
    else:
        spec = replace(DecoderSpec.from_config_file(directory), tie_word_embeddings="lm_head.weight" not in quantised)
        target = NativeTarget.from_stored(spec, quantised, name, numbers, directory, tokenizer)
    target.trusts_code = trusts
    return target


def _check_names(backend: str, weights: str) -> None:
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend '{backend}'{nearest(backend, BACKENDS)}")
    if weights not in WEIGHTS:
        raise ConfigError(f"unknown weights {shown(weights)}{nearest(str(weights), WEIGHTS)}")


def _from_gguf(file: Path, name: str, weights: str, dtype: torch.dtype) -> Target:
    """Load a GGUF file as it is stored."""
    from outrider.formats.gguf.stored import open_stored
    from outrider.targets.native import NativeTarget

    if weights != "stored":
        raise ConfigError(f"weights={weights!r} quantises a directory, and {file.name} is a GGUF file; leave it out")
    model = open_stored(file)
    return NativeTarget.from_stored(model.spec, model.weights, name, dtype, file, model.tokenizer)


def _runs_natively(directory: Path, trusts_code: bool) -> bool:
    """Return whether the native decoder runs this model; raise if its config is damaged or has an unsupported key."""
    from outrider.models.spec import FAMILIES, is_supported, read_config

    fields = read_json(directory / CONFIG)
    auto_map = fields.get("auto_map")
    if trusts_code and isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map:
        return False  # the checkpoint brings a model class of its own
    if fields.text("model_type", None) not in FAMILIES:
        return False
    config = read_config(directory / CONFIG)
    return is_supported(config) is None and not getattr(config, "mlp_bias", False)
