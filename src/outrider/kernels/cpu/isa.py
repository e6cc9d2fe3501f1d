"""The instruction sets of the CPU kernels: which the processor has, and which one is used.

    portable   no vendor's instructions; any processor
    avx2       AVX2, FMA, F16C: products of bytes summed in pairs (`vpmaddubsw`)
    avxvnni    AVX-VNNI: four products of bytes at once, 256 bits
    avx512     AVX-512 F and BW: as avx2, 512 bits
    vnni       AVX-512 VNNI: four products of bytes at once, 512 bits
    amx        vnni, and tiles of 16 by 16 sums (AMX int8) for many rows

All of them compute the same bits with quantised weights (`quant_tile.py`). OUTRIDER_CPU_ISA forces one that the
processor has. With vnni and amx, bf16 weights are multiplied by AVX-512 BF16 where the processor has it (`linear.py`).

AMX needs the kernel's permission once per process (`arch_prctl`); where it is refused, AMX is not used.

Example: on a Zen 3 processor `supported()` is ("portable", "avx2") and `chosen()` is "avx2".
"""

import ctypes
import platform
import sys
from collections.abc import Mapping
from functools import cache
from typing import Final

import llvmlite.binding as llvm

from outrider.env import cpu_isa
from outrider.errors import ConfigError

__all__ = ["ISAS", "WIDE_SETS", "chosen", "forced", "has_bf16_dots", "host_features", "supported"]

ISAS: Final = ("portable", "avx2", "avxvnni", "avx512", "vnni", "amx")
NEEDED: Final = {
    "portable": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avxvnni": ("avx2", "fma", "f16c", "avxvnni"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "fma", "f16c"),
    "vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "fma", "f16c"),
    "amx": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "fma", "f16c", "amx-tile", "amx-int8"),
}
WIDE_SETS: Final = ("avx512", "vnni", "amx")
"""The sets with vectors of 512 bits."""
ARCH_PRCTL: Final = 158
REQUEST_PERMISSION, TILE_DATA = 0x1023, 18


def host_features() -> Mapping[str, bool]:
    """Return the features of this processor by LLVM's names; none but of x86."""
    return llvm.get_host_cpu_features() if platform.machine() in ("x86_64", "AMD64") else {}


@cache
def supported() -> tuple[str, ...]:
    """Return the instruction sets that this processor has, from the slowest to the fastest."""
    features = host_features()
    found = [isa for isa, needed in NEEDED.items() if all(features.get(name, False) for name in needed)]
    return tuple(isa for isa in found if isa != "amx" or _may_use_tiles())


def forced() -> str | None:
    """Return the instruction set that OUTRIDER_CPU_ISA forces, or None.

    Raises:
        ConfigError: if this processor lacks it.
    """
    isa = cpu_isa()
    if isa is not None and isa not in supported():
        raise ConfigError(
            f"OUTRIDER_CPU_ISA={isa!r} needs instructions that this processor lacks; set one of"
            f" {', '.join(supported())}, or unset it"
        )
    return isa


@cache
def chosen() -> str:
    """Return the instruction set that the kernels use."""
    return forced() or supported()[-1]


def has_bf16_dots() -> bool:
    """Return whether the kernels multiply bf16 numbers in pairs, by AVX-512 BF16."""
    return chosen() in ("vnni", "amx") and host_features().get("avx512bf16", False)


def _may_use_tiles() -> bool:
    if sys.platform != "linux":
        return False
    refused: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    return refused == 0
