"""Checks of what is installed: versions, the cache, compiled kernels, and the programs of other engines.

    versions    each dependency against the range that Outrider declares
    cache       directory writable, its size, space on its disk
    kernels     a small kernel compiles, or is read from the cache, and gives the right sum
    heads       shipped heads are at hand
    vLLM, llama.cpp   their environments, where they were built

Other engines are optional, so their absence is no warning; a damaged environment is one.

Example: `Finding("versions", "problem", "torch 2.4.0 is not >=2.9", "pip install 'torch>=2.9'")`.
"""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion

from outrider.doctor.finding import Finding
from outrider.env import cache_home, kernels_home
from outrider.errors import ConfigError, RunError, on_one_line
from outrider.formats.locate import FETCH
from outrider.formats.shipped import shipped_names
from outrider.kernels.compile_cache import SUFFIX
from outrider.kernels.compiled import Int32Array, compiled
from outrider.llama_cpp import environment as llama
from outrider.records.files import size
from outrider.vllm import environment as vllm

__all__ = ["check_installed", "wrong_versions"]

LITTLE_SPACE = 5e9
"""Free bytes below which fetching and converting a model may fail."""
MOST_FILES = 200_000
SHOWN = ("torch", "transformers", "tokenizers", "numba")


def check_installed() -> list[Finding]:
    """Check versions, cache, kernels, heads and other engines."""
    return [*_versions(), *_cache(), *_kernels(), *_heads(), *_vllm(), *_llama()]


def _versions() -> Iterator[Finding]:
    try:
        required = metadata.requires("outrider") or []
    except metadata.PackageNotFoundError:
        evidence = "the package is not installed, so its ranges are unknown"
        yield Finding("versions", "warn", evidence, "pip install . in the checkout")
        return
    wrong = wrong_versions(required)
    if wrong:
        remedy = " ".join(["pip install", *map(shlex.quote, wrong.values())])
        yield Finding("versions", "problem", "; ".join(wrong), remedy)
    else:
        shown = [f"{name} {metadata.version(name)}" for name in SHOWN]
        yield Finding("versions", "ok", f"{', '.join(shown)}: all dependencies are in range")


def wrong_versions(required: list[str]) -> dict[str, str]:
    """Return the requirements that are not met, each with what is wrong as its key; extras do not count."""
    wrong = {}
    for text in required:
        try:
            one = Requirement(text)
            if one.marker is not None and not one.marker.evaluate({"extra": ""}):
                continue
            found = metadata.version(one.name)
            if not one.specifier.contains(found, prereleases=True):
                wrong[f"{one.name} {found} is not {one.specifier}"] = f"{one.name}{one.specifier}"
        except metadata.PackageNotFoundError:
            wrong[f"{one.name} is missing"] = f"{one.name}{one.specifier}"
        except (InvalidRequirement, InvalidVersion):
            continue
    return wrong


def _cache() -> Iterator[Finding]:
    home = cache_home()
    place = next(one for one in (home, *home.parents) if os.path.lexists(one))  # a broken link cannot be written
    remedy = "set OUTRIDER_CACHE to a directory that you can write to"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"outrider")
    except OSError as error:
        yield Finding("cache", "problem", f"{home} cannot be written ({error.strerror or error})", remedy)
        return
    free = shutil.disk_usage(place).free
    evidence = f"{home}: {size(_bytes_below(home))}, {size(free)} free"
    if free < LITTLE_SPACE:
        yield Finding("cache", "warn", evidence, "free some space, or set OUTRIDER_CACHE to a larger disk")
    else:
        yield Finding("cache", "ok", evidence)


def _bytes_below(directory: Path) -> int:
    """Return the bytes of all files; of a huge directory, those of its first files."""
    total, count = 0, 0
    for place, _, names in os.walk(directory):
        for name in names:
            count += 1
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:
                continue
        if count > MOST_FILES:
            break
    return total


@compiled
def _sum(numbers: Int32Array) -> int:
    total = 0
    for number in numbers:
        total += number
    return total


def _kernels() -> Iterator[Finding]:
    """Compile a kernel as the lookups do, at most once per machine, and compare its result."""
    kernels = kernels_home()
    start = time.perf_counter()
    try:
        found = _sum(np.arange(10, dtype=np.int32))
    except Exception as error:  # the compiler may fail in any way, and then every command does
        reason = on_one_line(str(error)) or type(error).__name__
        remedy = "install numba again (pip install --force-reinstall numba), or free the cache's directory"
        yield Finding("kernels", "problem", f"a kernel does not compile: {reason}", remedy)
        return
    seconds = time.perf_counter() - start
    count = sum(1 for _ in kernels.glob(f"*/*{SUFFIX}"))
    if found != 45:
        evidence = f"a compiled kernel sums 0 to 9 to {found}"
        yield Finding("kernels", "problem", evidence, f"delete {kernels}, and report it if that does not help")
        return
    kept = (
        f"{count} compiled kernels are kept" if count else "none is kept yet: the first run compiles for some seconds"
    )
    yield Finding("kernels", "ok", f"one compiled or was read in {seconds:.1f} s; {kept}")


def _heads() -> Iterator[Finding]:
    names = shipped_names()
    if names:
        yield Finding("heads", "ok", f"shipped: {', '.join(names)}")
    else:
        yield Finding("heads", "warn", "no shipped heads are on this machine", FETCH)


def _vllm() -> Iterator[Finding]:
    home, is_asked = vllm.chosen_home(), bool(os.environ.get(vllm.VARIABLE))
    if not home.exists() and not is_asked:
        yield Finding("vLLM", "ok", "not installed; `make vllm` builds its environment")
        return
    try:
        found = vllm.find_vllm()
    except (ConfigError, RunError) as error:
        yield Finding("vLLM", "warn", on_one_line(str(error), 300), "run make vllm")
        return
    kind = "CPU build" if found.is_cpu else "GPU build"
    suffix = "with" if found.has_suffix else "without"
    yield Finding("vLLM", "ok", f"{found.version or 'unknown version'}, {kind}, {suffix} Arctic's suffix cache")


def _llama() -> Iterator[Finding]:
    home, is_asked = llama.chosen_home(), bool(os.environ.get(llama.VARIABLE))
    if not home.exists() and not is_asked:
        yield Finding("llama.cpp", "ok", "not built; `make llama` builds it")
        return
    try:
        found = llama.find_llama()
    except (ConfigError, RunError) as error:
        yield Finding("llama.cpp", "warn", on_one_line(str(error), 300), "run make llama")
        return
    yield Finding("llama.cpp", "ok", f"version {found.version or 'unknown'}: {found.server}")
