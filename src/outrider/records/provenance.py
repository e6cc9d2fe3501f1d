"""Provenance of a run: one record of everything that could change its numbers.

A number without provenance is not a result. The manifest is written when a run starts and is read again when the run is
resumed or reported. Unknown facts are None, never guesses.

Example: on a recent server `collect_manifest(seed=0, settings={"batch": 1}, workload_hash="9f...").hardware.flags` is
`("avx2", "avx512f")`, and `.commit` is None for an installed wheel, which has no checkout.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from outrider.env import PACKAGE, num_usable_cores
from outrider.env import version as outrider_version
from outrider.errors import RunError, on_one_line
from outrider.kernels.torch_threads import num_threads
from outrider.records.codec import dumps, loads

__all__ = [
    "MANIFEST_SCHEMA",
    "GitState",
    "Hardware",
    "Manifest",
    "collect_manifest",
    "git_state",
    "hardware",
    "manifest_from_json",
    "manifest_to_json",
    "template_hash",
]

MANIFEST_SCHEMA = "outrider.run/1"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "llvmlite")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
CPU_DESCRIPTION = Path("/proc/cpuinfo")
THREAD_VARIABLES = ("OUTRIDER_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "OMP_PROC_BIND")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine. `flags` are the processor's, from `FLAGS`; GPUs are listed one by one."""

    cpu: str
    num_physical_cores: int | None
    num_usable_cores: int
    memory_bytes: int
    flags: tuple[str, ...]
    gpus: tuple[str, ...]
    gpu_memory_bytes: tuple[int, ...]
    cuda: str | None
    system: str


@dataclass(frozen=True, kw_only=True)
class GitState:
    """The package's checkout; both fields are None without one."""

    commit: str | None
    dirty: bool | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of one run.

    started        UTC, ISO 8601
    settings       every setting of the run by name, defaults included
    template_hash  SHA-256 (hex) of the target's chat template
    threads        numbers of threads of PyTorch and our kernels, and the environment variables that set them
    """

    schema: str = MANIFEST_SCHEMA
    started: str
    commit: str | None
    dirty: bool | None
    hardware: Hardware
    versions: Mapping[str, str]
    threads: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    workload_hash: str
    template_hash: str | None
    command: tuple[str, ...]


def collect_manifest(
    *, seed: int, settings: Mapping[str, Any], workload_hash: str, template_hash: str | None = None
) -> Manifest:
    """Collect the facts of this machine and checkout now."""
    git = git_state(PACKAGE)
    return Manifest(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git.commit,
        dirty=git.dirty,
        hardware=hardware(),
        versions=_versions(),
        threads=_threads(),
        seed=seed,
        settings=dict(settings),
        workload_hash=workload_hash,
        template_hash=template_hash,
        command=tuple(sys.argv),
    )


def manifest_to_json(manifest: Manifest) -> str:
    """Return one line of JSON; settings must be plain values, lists and mappings."""
    return dumps(manifest)


def manifest_from_json(text: str) -> Manifest:
    """Parse a manifest.

    Raises:
        RunError: if it is damaged or of another version.
    """
    manifest = loads(Manifest, text)
    if manifest.schema != MANIFEST_SCHEMA:
        raise RunError(f"its schema is '{on_one_line(manifest.schema)}', not '{MANIFEST_SCHEMA}'")
    return manifest


def template_hash(tokenizer: Any) -> str | None:
    """Return the SHA-256 (hex) of the chat template; None without tokenizer or template."""
    template = None if tokenizer is None else tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def git_state(directory: Path) -> GitState:
    """Return commit and dirty flag of the checkout that tracks `directory`."""
    # An installed package may lie inside another project's checkout, which tracks none of its files.
    if not _git(directory, "ls-files", "--", "."):
        return GitState(commit=None, dirty=None)
    commit, changes = _git(directory, "rev-parse", "HEAD"), _git(directory, "status", "--porcelain")
    return GitState(commit=commit or None, dirty=None if changes is None else bool(changes))


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware() -> Hardware:
    """Return a description of this machine."""
    described = _cpu_description()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Hardware(
        cpu=described.get("model name") or platform.processor() or platform.machine(),
        num_physical_cores=psutil.cpu_count(logical=False),
        num_usable_cores=num_usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        flags=tuple(flag for flag in FLAGS if flag in described.get("flags", described.get("Features", "")).split()),
        gpus=tuple(gpu.name for gpu in gpus),
        gpu_memory_bytes=tuple(gpu.total_memory for gpu in gpus),
        cuda=torch.version.cuda,
        system=platform.platform(),
    )


def _cpu_description() -> dict[str, str]:
    """Return the first processor's block of /proc/cpuinfo; empty without that file."""
    if not CPU_DESCRIPTION.exists():
        return {}
    block = CPU_DESCRIPTION.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "outrider": outrider_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _threads() -> dict[str, Any]:
    # numba.get_num_threads() is avoided: it starts a pool and resets PyTorch's number of threads.
    variables = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {
        "torch": torch.get_num_threads(),
        "torch_interop": torch.get_num_interop_threads(),
        "kernels": num_threads(),
        **variables,
    }
