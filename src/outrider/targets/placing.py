"""Devices, dtypes and kinds of weights by name, checked before any file is read.

Example: "cuda:7" on a machine with two GPUs is refused with a sentence that names cuda:0 and cuda:1.
"""

from pathlib import Path
from typing import Any, cast

import torch

from outrider.errors import ConfigError, nearest
from outrider.formats.locate import gguf_file
from outrider.models.weight_kinds import KV_DTYPES, WEIGHTS, KvDtype, WeightsChoice
from outrider.records.display import shown

__all__ = ["DTYPES", "QUANTISED_WITH", "device_named", "dtype_named", "kv_named", "stored_file", "weights_named"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
QUANTISED_WITH = (torch.bfloat16, torch.float32)
"""Dtypes of the cache with which quantised weights run on the CPU."""


def dtype_named(name: Any) -> torch.dtype:
    """Return the dtype of that name; accept a PyTorch dtype too.

    Raises:
        ConfigError: if weights cannot have that dtype.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if not isinstance(name, str):
        raise ConfigError(f"dtype={shown(name)} must be one of {', '.join(DTYPES)}")
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {shown(name)}{nearest(name, DTYPES)}")
    return DTYPES[name]


def weights_named(name: Any) -> WeightsChoice:
    """Return the kind of weights of that name.

    Raises:
        ConfigError: for an unknown one.
    """
    if not isinstance(name, str) or name not in WEIGHTS:
        raise ConfigError(f"unknown weights {shown(name)}{nearest(str(name), WEIGHTS)}")
    return cast(WeightsChoice, name)


def kv_named(name: Any, backend: str, device: torch.device) -> KvDtype:
    """Return the dtype of keys and values of that name, for a back end on a device.

    Raises:
        ConfigError: for an unknown one, and for one that does not run there.
    """
    if not isinstance(name, str) or name not in KV_DTYPES:
        raise ConfigError(f"unknown kv_dtype {shown(name)}{nearest(str(name), KV_DTYPES)}")
    if name != "auto" and backend not in ("auto", "native"):
        raise ConfigError(f"kv_dtype={name!r} needs the native decoder, not backend={backend!r}; leave one of them out")
    if name != "auto" and device.type != "cpu":
        raise ConfigError(f"kv_dtype={name!r} runs on the CPU, not on {device}; leave it out, or use device='cpu'")
    return cast(KvDtype, name)


def stored_file(name: str, weights: WeightsChoice) -> Path | None:
    """Return the GGUF file of this name, fetched if need be, that is to run as it is stored; None for other models.

    Raises:
        ConfigError: for a file that is to be quantised.
    """
    file = gguf_file(name)
    if file is not None and weights != "stored":
        raise ConfigError(f"weights={weights!r} quantises a directory, and {file.name} is a GGUF file; leave it out")
    return file


def device_named(name: Any) -> torch.device:
    """Return the device of that name: the CPU or a present GPU. None means the GPU if there is one.

    Raises:
        ConfigError: for an unknown name, or a GPU that PyTorch does not see.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device={shown(name)} must be a name such as cpu, cuda or cuda:0")
    kind, _, number = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (":" in str(name) and not (number.isascii() and number.isdecimal())):
        raise ConfigError(f"unknown device {shown(str(name))}; use cpu, cuda, or cuda:0 for the first of several GPUs")
    if kind == "cpu":
        if int(number or 0) > 0:
            raise ConfigError(f"device {str(name)!r} does not exist; all cores are the device cpu")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {str(name)!r} needs a GPU and a PyTorch that sees it; leave it out or use cpu")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise ConfigError(f"device {str(name)!r} does not exist; use {', '.join(f'cuda:{at}' for at in range(count))}")
    return torch.device(str(name))
