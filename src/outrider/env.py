"""The environment of the process: the variables that Outrider reads, its version, and the files beside the package.

A variable that is empty counts as unset. The command line checks all of them before a command runs; the library checks
one where it is read.

Example: with OUTRIDER_NUM_THREADS=abc, `num_kernel_threads` raises an error that names the variable and the remedy.
"""

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from outrider.errors import ConfigError

__all__ = [
    "PACKAGE",
    "api_key",
    "cache_home",
    "check_variables",
    "cpu_isa",
    "cuda_graphs",
    "data_directory",
    "draft_weights",
    "gpu_ops",
    "kernels_home",
    "num_kernel_threads",
    "num_usable_cores",
    "package_directories",
    "version",
]

PACKAGE: Final = Path(__file__).parent

MOST_THREADS: Final = 1024


def num_kernel_threads() -> int | None:
    """Return OUTRIDER_NUM_THREADS, the threads of the CPU kernels, or None where it is unset.

    Raises:
        ConfigError: if it is no whole number from 1 to 1024.
    """
    text = _given("OUTRIDER_NUM_THREADS")
    if text is None:
        return None
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 9 and 1 <= int(digits) <= MOST_THREADS):
        raise ConfigError(f"OUTRIDER_NUM_THREADS is {text!r}; set a whole number from 1 to {MOST_THREADS}, or unset it")
    return int(digits)


def num_usable_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def draft_weights() -> str:
    """Return OUTRIDER_DRAFT_WEIGHTS, in what drafters keep their weights on the CPU: "int8", "int4" or "target"."""
    return _one_of("OUTRIDER_DRAFT_WEIGHTS", ("int8", "int4", "target")) or "int8"


def cpu_isa() -> str | None:
    """Return OUTRIDER_CPU_ISA, the instruction set of the integer kernels, or None for the processor's best."""
    return _one_of("OUTRIDER_CPU_ISA", ("portable", "avx2", "avxvnni", "avx512", "vnni", "amx"))


def gpu_ops() -> str | None:
    """Return OUTRIDER_GPU_OPS, the back end of a GPU: "triton", "torch", or None for the fastest."""
    return _one_of("OUTRIDER_GPU_OPS", ("triton", "torch"))


def cuda_graphs() -> bool:
    """Return whether OUTRIDER_CUDA_GRAPHS lets a GPU repeat recorded forwards, which it does unless it is 0."""
    return _one_of("OUTRIDER_CUDA_GRAPHS", ("0", "1")) != "0"


def api_key() -> str | None:
    """Return OUTRIDER_API_KEY, the key that clients of `outrider serve` must send, or None where none is needed.

    Raises:
        ConfigError: if a header cannot hold it; the message does not show it.
    """
    key = _given("OUTRIDER_API_KEY")
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ConfigError("OUTRIDER_API_KEY has characters that a header cannot hold; use printable ASCII, or unset it")
    return key


def cache_home() -> Path:
    """Return OUTRIDER_CACHE, the directory of converted models and profiles, by default `~/.cache/outrider`.

    Raises:
        ConfigError: if it begins with the home of a user who does not exist or has none.
    """
    text = _given("OUTRIDER_CACHE")
    try:
        return Path("~/.cache/outrider" if text is None else text).expanduser()
    except RuntimeError as error:
        where = "not set, and this user" if text is None else f"{text!r}, which"
        raise ConfigError(f"OUTRIDER_CACHE is {where} has no home directory; set a full path") from error


def kernels_home() -> Path:
    """Return the directory of compiled kernels: `$NUMBA_CACHE_DIR/outrider`, or else `kernels` of the cache.

    Raises:
        ConfigError: as `cache_home` does.
    """
    shared = os.environ.get("NUMBA_CACHE_DIR")
    return Path(shared) / "outrider" if shared else cache_home() / "kernels"


def check_variables() -> None:
    """Refuse a bad value of any variable.

    Raises:
        ConfigError: naming the first one, and what it may be.
    """
    for read in (num_kernel_threads, draft_weights, cpu_isa, gpu_ops, cuda_graphs, api_key):
        read()
    path = cache_home()
    if any(place.exists() and not place.is_dir() for place in (path, *path.parents)):
        raise ConfigError(f"OUTRIDER_CACHE is {str(path)!r}, which is or lies in a file; set a directory")


def version() -> str:
    """Return the installed version of Outrider, or "0+unknown" for a checkout that is not installed."""
    try:
        return metadata.version("outrider")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def package_directories(name: str) -> tuple[Path, Path]:
    """Return the places of a directory: inside an installed package, and at the root of a checkout."""
    return PACKAGE / name, PACKAGE.parents[1] / name


def data_directory(name: str) -> Path:
    """Return `recipes` or `workloads`: inside an installed package, or at the root of a checkout.

    Raises:
        ConfigError: if it is in neither place.
    """
    for directory in package_directories(name):
        if directory.is_dir():
            return directory
    raise ConfigError(f"the directory {name} is missing beside {PACKAGE}; install outrider again")


def _given(name: str) -> str | None:
    return os.environ.get(name) or None


def _one_of(name: str, choices: Sequence[str]) -> str | None:
    text = _given(name)
    if text is not None and text not in choices:
        raise ConfigError(f"{name}={text!r} must be {' or '.join(choices)}; set one of them, or unset it")
    return text
