"""Loading a target by name.

A Llama-family model runs on the native decoder. Any other Hugging Face causal language model runs through `targets.hf`,
slower, behind the same interface. A GGUF file of any architecture runs on llama.cpp, where that is asked for.
"""

import logging
from pathlib import Path
from typing import Protocol

import torch

from outrider.errors import ConfigError, nearest
from outrider.formats.directory import CONFIG, check_directory
from outrider.formats.locate import locate
from outrider.formats.tokenizer import load_tokenizer
from outrider.loop.free_memory import allocating
from outrider.models.weight_kinds import BACKENDS, Backend, KvDtype, WeightsChoice
from outrider.records.files import size
from outrider.records.json_fields import read_json
from outrider.records.progress import Listener, unheard
from outrider.records.values import flag
from outrider.target import Target
from outrider.targets.placing import (
    DTYPES,
    QUANTISED_WITH,
    device_named,
    dtype_named,
    kv_named,
    stored_file,
    weights_named,
)

__all__ = ["DTYPES", "TargetOptions", "load_target", "target_of"]

log = logging.getLogger(__name__)


class TargetOptions(Protocol):
    """Settings of a command that name a target and say how it runs."""

    @property
    def target(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def weights(self) -> WeightsChoice: ...

    @property
    def kv_dtype(self) -> KvDtype: ...

    @property
    def backend(self) -> Backend: ...

    @property
    def device(self) -> str | None: ...

    @property
    def trust_remote_code(self) -> bool: ...


def target_of(options: TargetOptions, listen: Listener = unheard) -> Target:
    """Load the target that a command's settings name.

    Raises:
        CheckpointError, ConfigError: as `load_target`.
    """
    return load_target(
        options.target,
        dtype=options.dtype,
        weights=options.weights,
        kv_dtype=options.kv_dtype,
        device=options.device,
        backend=options.backend,
        trust_remote_code=options.trust_remote_code,
        listen=listen,
    )


def load_target(
    name: str,
    *,
    dtype: str = "bfloat16",
    weights: WeightsChoice = "stored",
    kv_dtype: KvDtype = "auto",
    device: str | None = None,
    backend: Backend = "auto",
    trust_remote_code: bool = False,
    listen: Listener = unheard,
) -> Target:
    """Load a target: a directory, a GGUF file, a hub id, or `smollm2-135m`.

    Args:
        dtype: dtype of the cache and of plain weights: "bfloat16", "float16", "float32" or "float64".
        weights: on the CPU, "stored" runs quantised weights as their file holds them, "int8" and "int4" quantise those
            of a directory while loading, "bf16" widens all to `dtype`. A GPU and `transformers` widen.
        kv_dtype: "int8" keeps keys and values in 8 bits, on the native decoder on the CPU; "auto" in `dtype`.
        device: "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
        backend: "native" for the fast decoder, "hf" for `transformers`, "llama_cpp" for llama.cpp, which takes
            GGUF files of any architecture, "auto" for native if it supports the model and else `transformers`.
        trust_remote_code: run Python code that comes with the checkpoint, for its config, tokenizer and model, and with
            draft models that are loaded for it. Nothing is ever asked on standard input.
        listen: told of the progress of quantising, and of packing quantised weights where that takes seconds.

    Raises:
        CheckpointError: if it cannot be found or read.
        ConfigError: for an unknown dtype, device, back end or kind of weights, a missing device, an argument of a
            wrong type, or one that does not run there.
    """
    # 1. the arguments, before anything is fetched
    trusts = flag("trust_remote_code", trust_remote_code, ConfigError)
    numbers, place, kind = dtype_named(dtype), device_named(device), weights_named(weights)
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend '{backend}'{nearest(backend, BACKENDS)}")
    keys = kv_named(kv_dtype, backend, place)
    if backend == "llama_cpp":
        return _on_llama_cpp(name, kind, numbers, device_named("cpu" if device is None else device))
    if place.type != "cpu" or numbers not in QUANTISED_WITH or backend == "hf":
        if kind in ("int8", "int4"):
            raise ConfigError(
                f"weights={kind!r} needs the native decoder on the CPU, in bfloat16 or float32; leave it out, or use"
                " device='cpu'"
            )
        kind = "bf16"
    # 2. a GGUF file runs as it is
    with allocating(f"loading {name} with weights={kind!r} in {dtype}", _smaller(kind, numbers), place):
        file = stored_file(name, kind) if kind != "bf16" else None
        if file is not None:
            target = _from_gguf(file, name, numbers, keys, listen)
        else:
            target = _from_directory(name, kind, numbers, keys, place, backend, trusts, listen)
    log.info("%s: %s, %s%s", name, target.spec.weights, size(target.spec.weight_bytes), target.spec.cached)
    return target


def _smaller(kind: WeightsChoice, dtype: torch.dtype) -> str:
    """Return what takes less memory than these weights."""
    if kind == "int4":
        return "use a smaller model"
    narrower = " and dtype='bfloat16'" if dtype in (torch.float32, torch.float64) else ""
    return f"use weights='int4'{narrower}, which takes about a quarter of bf16, or a smaller model"


def _on_llama_cpp(name: str, kind: WeightsChoice, dtype: torch.dtype, device: torch.device) -> Target:
    """Load a GGUF file on llama.cpp, as it is stored."""
    from outrider.targets.llama.target import LlamaTarget

    if device.type != "cpu":
        raise ConfigError(f"backend='llama_cpp' runs on the CPU here, not on {device}; leave the device out")
    file = stored_file(name, kind)
    if file is None:
        raise ConfigError(
            f"backend='llama_cpp' needs a GGUF file, and {name} is none; convert it with llama.cpp's"
            " convert_hf_to_gguf.py"
        )
    with allocating(f"loading {name} on llama.cpp", "use a smaller model, or a file of fewer bits", device):
        target = LlamaTarget.from_file(file, name, dtype)
    log.info("%s: %s, %s", name, target.spec.weights, size(target.spec.weight_bytes))
    return target


def _from_gguf(file: Path, name: str, dtype: torch.dtype, kv_dtype: KvDtype, listen: Listener) -> Target:
    """Load a GGUF file as it is stored."""
    from outrider.formats.gguf.stored import open_stored
    from outrider.targets.native import NativeTarget

    model = open_stored(file)
    target = NativeTarget.from_stored(model.spec, model.weights, name, dtype, file, model.tokenizer, listen)
    return target.with_kv_dtype(kv_dtype)


def _from_directory(
    name: str,
    kind: WeightsChoice,
    dtype: torch.dtype,
    kv_dtype: KvDtype,
    device: torch.device,
    backend: str,
    trusts_code: bool,
    listen: Listener,
) -> Target:
    """Load a directory; its tokenizer and weights are read after the back end is known."""
    directory = locate(name, with_code=trusts_code)
    check_directory(directory)
    if backend == "auto":
        backend = "native" if _runs_natively(directory, trusts_code) else "hf"
    tokenizer = load_tokenizer(directory, trusts_code)
    if backend == "hf":
        if kind in ("int8", "int4"):
            raise ConfigError(f"weights={kind!r} needs a Llama-family model, which {name} is not; leave it out")
        if kv_dtype != "auto":
            raise ConfigError(f"kv_dtype={kv_dtype!r} needs a Llama-family model, which {name} is not; leave it out")
        from outrider.targets.hf import HFTarget

        return HFTarget.from_directory(directory, name, dtype, device, tokenizer, trusts_code)
    from outrider.targets.native import NativeTarget

    target = NativeTarget.from_directory(directory, name, dtype, device, tokenizer, kind, listen)
    target.trusts_code = trusts_code
    return target.with_kv_dtype(kv_dtype)


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
