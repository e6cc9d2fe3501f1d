"""Compilation of the lookup and sampling kernels: `numba.njit`, lazily and cached on disk, behind typed decorators.

A function decorated with `compiled` is compiled at its first call, not at import, and the machine code is kept on disk
(`compile_cache.py`), so that only the very first process pays the seconds.

Example: `@compiled` above `def total(tokens: Int32Array) -> int` compiles it for arrays and numbers of 32 bits.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.ccallback import CFunc
from numpy.typing import NDArray

from outrider.kernels.compile_cache import cached
from outrider.kernels.deferral import signals_deferred, uninterrupted

__all__ = [
    "Float32Array",
    "Int32Array",
    "as_tokens",
    "callback",
    "compiled",
    "float32",
    "grown",
    "inlined",
    "int32",
    "jitted",
]

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., object])

# Kernels never create or keep an array, so counting references to the caller's arrays, which costs more than the work
# itself, is left out (`_nrt`).
_OPTIONS = {"nogil": True, "_nrt": False}

# Inside kernels: numbers of one width, so that a function is compiled for one set of argument types only.
int32 = cast(Callable[[int], int], np.int32)
float32 = cast(Callable[[float], float], np.float32)


def compiled(function: Function) -> Function:
    """Compile `function` to machine code at its first call; it takes arrays and numbers only."""
    return cast(Function, uninterrupted(jitted(**_OPTIONS)(function)))


def inlined(function: Function) -> Function:
    """Compile as `compiled` does, but merge into callers: for small parts of a kernel that share many arrays."""
    return cast(Function, jitted(forceinline=True, **_OPTIONS)(function))


def jitted(**options: bool | str) -> Callable[[Callable[..., object]], Any]:
    """Return a decorator that compiles a function with these options of `numba.njit` at its first call, once."""
    return lambda function: cached(numba.njit(**options)(function), function)


def callback(result: Any, *arguments: Any, variant: str = "", **options: str) -> Callable[[Function], Any]:
    """Return a decorator that compiles a function at once, for callers of C: `.address` is its entry.

    Args:
        result: Numba's type of what the function returns; `arguments` are those of its parameters.
        variant: as in `cached`.
        options: options of `numba.njit`.
    """

    def decorate(function: Function) -> Any:
        found = CFunc(function, (arguments, result), locals={}, options=options)
        with signals_deferred():
            cached(found, function, variant=variant).compile()
        return found

    return decorate


def as_tokens(tokens: Sequence[int] | Int32Array) -> Int32Array:
    """Return `tokens` as a contiguous int32 array, without a copy if it already is one."""
    return np.ascontiguousarray(tokens, dtype=np.int32)


def grown(array: Int32Array, rows: int) -> Int32Array:
    """Return a copy of `array` with more rows; the new rows are not initialised."""
    larger = np.empty((rows, *array.shape[1:]), np.int32)
    larger[: len(array)] = array
    return larger
