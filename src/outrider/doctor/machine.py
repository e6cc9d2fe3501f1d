"""Checks of the machine: is it fit for decoding, and does nothing else use it?

    instructions   instruction sets of the processor, and which kernels run
    threads        threads against the cores that this process may use: affinity, control group
    memory         size, free, bandwidth; the bandwidth bounds plain decoding
    load           other programs that compute right now
    GPU            name, free memory, Triton

Everything together takes a few seconds. `outrider.doctor.installed` checks what is installed.

Example: `outrider.doctor.machine.check_machine()` on a laptop that compiles meanwhile has a warning "other load".
"""

import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.doctor.finding import Finding
from outrider.doctor.installed import check_installed
from outrider.env import gpu_ops, num_usable_cores
from outrider.errors import ConfigError
from outrider.kernels.cpu.isa import chosen, forced, has_bf16_dots, supported
from outrider.kernels.torch_threads import num_threads
from outrider.records.files import size

__all__ = ["check_machine", "cores_of_quota"]

BANDWIDTH_BYTES = 128 * 2**20
"""A buffer larger than most caches; a quarter of the benchmark's, since seconds count here."""
PASSES = 4
LOAD_S = 0.5
BUSY_SHARE = 0.1
"""Share of the usable cores from which on other programs are worth a warning: the benchmark's figures move by that."""
LITTLE_MEMORY = 0.1
CGROUP = Path("/sys/fs/cgroup")
KERNELS = {
    "portable": "kernels without vector instructions of a vendor",
    "avx2": "AVX2 kernels",
    "avxvnni": "AVX-VNNI kernels",
    "avx512": "AVX-512 kernels",
    "vnni": "AVX-512 VNNI kernels",
    "amx": "AMX kernels",
}


def check_machine(*, measure_bandwidth: bool = True) -> list[Finding]:
    """Check hardware, load and installation; takes a few seconds.

    Args:
        measure_bandwidth: read a large buffer some times, half a second or so.
    """
    return [
        *_instructions(),
        *_threads(),
        *_memory(measure_bandwidth),
        *_load(),
        *_gpu(),
        *check_installed(),
    ]


def _instructions() -> Iterator[Finding]:
    name = "instructions"
    try:
        isa = chosen()
    except ConfigError as error:
        yield Finding(name, "problem", str(error), "unset OUTRIDER_CPU_ISA")
        return
    best, has = supported()[-1], ", ".join(supported())
    runs = f"{KERNELS[isa]} run{' with AVX-512 BF16' if has_bf16_dots() else ''} (the processor has: {has})"
    if forced() is not None and isa != best:
        yield Finding(name, "warn", f"OUTRIDER_CPU_ISA forces {isa}: {runs}", f"unset it, and {KERNELS[best]} run")
    elif isa == "portable":
        why = "this processor is no x86" if platform.machine() not in ("x86_64", "AMD64") else "it lacks AVX2"
        yield Finding(name, "warn", f"{runs}; {why}", "decode on a processor with AVX2, or on a GPU")
    else:
        yield Finding(name, "ok", runs)


def _threads() -> Iterator[Finding]:
    threads, cores, quota = num_threads(), num_usable_cores(), cores_of_quota()
    total, physical = os.cpu_count() or cores, psutil.cpu_count(logical=False)
    usable = cores if quota is None else min(cores, max(1, math.floor(quota)))
    limits = [f"affinity leaves {cores} of {total}"] if cores < total else []
    limits += [f"the control group allows the time of {quota:g}"] if quota is not None and quota < cores else []
    physical_text = f", {physical} of them physical" if physical and physical < total else ""
    evidence = f"{threads} threads; {total} cores{physical_text}{''.join(f'; {limit}' for limit in limits)}"
    if threads > usable:
        remedy = f"set OUTRIDER_NUM_THREADS={usable}: threads that wait for a core slow down every kernel"
        yield Finding("threads", "problem", evidence, remedy)
    elif threads < min(usable, physical or usable):
        yield Finding("threads", "warn", evidence, f"set OUTRIDER_NUM_THREADS={min(usable, physical or usable)}")
    else:
        yield Finding("threads", "ok", evidence)


def cores_of_quota(root: Path = CGROUP) -> float | None:
    """Return the processor time that the control group allows, in cores; None without a limit.

    Both generations are read: `cpu.max` holds "200000 100000" for two cores, or "max 100000".
    """
    quota, period = _words(root / "cpu.max"), ["100000"]
    if len(quota) == 2:
        quota, period = quota[:1], quota[1:]
    else:
        quota, period = _words(root / "cpu/cpu.cfs_quota_us"), _words(root / "cpu/cpu.cfs_period_us")
    try:
        cores = float(quota[0]) / float(period[0])
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _memory(measure_bandwidth: bool) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    total, free = _limited(memory.total, memory.available)
    evidence = f"{size(free)} of {size(total)} available"
    is_short = free < LITTLE_MEMORY * total
    if measure_bandwidth and free > 4 * BANDWIDTH_BYTES:
        rate = memory_bytes_per_s(num_bytes=BANDWIDTH_BYTES, passes=PASSES)
        evidence += f", read at {rate / 1e9:.1f} GB/s: at most {rate / 1e9:.0f} tokens/s per GB of weights"
    remedy = "end other programs, or use a smaller model, batch or --weights int4" if is_short else ""
    yield Finding("memory", "warn" if is_short else "ok", evidence, remedy)


def _limited(total: int, free: int) -> tuple[int, int]:
    """Return total and free memory within the limit of the control group."""
    limit, used = _words(CGROUP / "memory.max"), _words(CGROUP / "memory.current")
    if not limit or not limit[0].isdecimal() or int(limit[0]) >= total:
        return total, free
    within = int(limit[0]) - (int(used[0]) if used and used[0].isdecimal() else 0)
    return int(limit[0]), max(0, min(free, within))


def _load() -> Iterator[Finding]:
    """Measure for half a second what others compute, in cores."""
    before, own_before, start = psutil.cpu_times(), time.process_time(), time.perf_counter()
    time.sleep(LOAD_S)
    after, own = psutil.cpu_times(), time.process_time() - own_before
    seconds = time.perf_counter() - start
    busy = sum(after) - sum(before) - (after.idle - before.idle) - getattr(after, "iowait", 0.0)
    busy += getattr(before, "iowait", 0.0)
    others, cores = max(0.0, busy - own) / seconds, num_usable_cores()
    others = min(others, float(os.cpu_count() or cores))  # both clocks tick coarsely
    stolen = max(0.0, getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)) / seconds
    evidence = f"other programs use {others:.1f} of {cores} cores now"
    evidence += f", and the host of this virtual machine {stolen:.1f}" if stolen >= 0.05 else ""
    if others > BUSY_SHARE * cores:
        remedy = "end them, or wait, before you measure: compare ratios within one run only"
        yield Finding("other load", "warn", evidence, remedy)
    else:
        yield Finding("other load", "ok", evidence)


def _gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        nvidia = Path("/proc/driver/nvidia/version").exists()
        if nvidia:
            version = torch.version.cuda or "none: this build of PyTorch has no CUDA"
            evidence = f"an NVIDIA driver is loaded, but PyTorch {torch.__version__} sees no GPU (CUDA {version})"
            yield Finding("GPU", "warn", evidence, "install the CUDA build of PyTorch, or check CUDA_VISIBLE_DEVICES")
        else:
            yield Finding("GPU", "ok", "none; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        evidence = f"{found.name}, {size(free)} of {size(total)} free"
        if free < LITTLE_MEMORY * total:
            yield Finding("GPU", "warn", evidence, "another process holds its memory: nvidia-smi shows which")
        elif not _has_triton() and gpu_ops() != "torch":
            yield Finding("GPU", "warn", f"{evidence}; Triton is missing", "pip install triton: its kernels are faster")
        else:
            yield Finding("GPU", "ok", evidence)


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None
