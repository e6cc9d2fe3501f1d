"""One parallel region per operation, on the thread pool PyTorch already has.

A second pool would fight PyTorch's, whose threads spin for a while after each of its own regions. So a kernel is started
through `GOMP_parallel` of the OpenMP runtime that PyTorch has loaded: the same threads, about two microseconds a start.
Where no such runtime is found (Windows), Python threads run the kernel; a start then takes tens of microseconds.

A kernel is `void (int64 block)`. The block is its argument record: 64-bit numbers first, then counters, each on a cache
line of its own. Threads share work by drawing tickets, so a kernel is right for any number of threads, and a slow core
only draws fewer. `finished` and `wait_for` order two stages of one kernel.

Worked example: 60 tasks, two threads: both call `ticket` on one counter until it returns 60 or more; each number below
60 is drawn by exactly one of them.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from numba import types

from outrider.errors import ConfigError
from outrider.models.cpu_vector import I64, Emitter, Value, emitted, lowered

__all__ = ["COUNTERS", "finished", "launch", "num_threads", "stack", "ticket", "wait_for"]

COUNTERS = 40  # index of the first counter of a block; kernel arguments come before it
LINE = 8  # 64-bit numbers in a cache line
BLOCK = COUNTERS + 6 * LINE

Block = ctypes.c_int64 * BLOCK
ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def num_threads() -> int:
    """Threads per kernel: OUTRIDER_NUM_THREADS, or PyTorch's own number."""
    text = os.environ.get("OUTRIDER_NUM_THREADS")
    if text is None:
        return torch.get_num_threads()
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"OUTRIDER_NUM_THREADS is {text!r}; set a whole number from 1 on, or unset it")
    return int(text)


def launch(address: int, threads: int, *arguments: int) -> None:
    """Run the kernel at `address` on `threads` threads, and return when all are done."""
    block = Block()
    _layout(len(arguments)).pack_into(block, 0, *arguments)
    if threads == 1:
        _entry(address)(ctypes.addressof(block))
    else:
        _runner()(address, ctypes.addressof(block), threads)


@cache
def _layout(num_arguments: int) -> struct.Struct:
    return struct.Struct(f"={num_arguments}q")


@cache
def _entry(address: int) -> Callable[[int], Any]:
    return ENTRY(address)


@cache
def _runner() -> Callable[[int, int, int], Any]:
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return _run_on_python_threads
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return lambda address, block, threads: parallel(address, block, threads, 0)


@cache
def _python_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="outrider-kernel")


def _run_on_python_threads(address: int, block: int, threads: int) -> None:
    entry = _entry(address)
    helpers = [_python_threads().submit(entry, block) for _ in range(threads - 1)]
    entry(block)
    for helper in helpers:
        helper.result()


def _counter(emitter: Emitter, block: Value, index: Value | int) -> Value:
    return emitter.builder.inttoptr(emitter.at(emitter.at(block, COUNTERS, 8), index, 8 * LINE), ir.PointerType(I64))


@emitted
def ticket(typing: Any, block: Any, counter: Any) -> Any:
    """Draw the next number, from 0 on, of a counter of the block."""

    def emit(emitter: Emitter, block: Value, counter: Value) -> Value:
        return emitter.builder.atomic_rmw("add", _counter(emitter, block, counter), I64(1), "monotonic")

    return lowered(emit, types.int64, block, counter)


@emitted
def finished(typing: Any, block: Any, counter: Any) -> Any:
    """Count one task as done; what it wrote is visible to who waits for it."""

    def emit(emitter: Emitter, block: Value, counter: Value) -> None:
        emitter.builder.atomic_rmw("add", _counter(emitter, block, counter), I64(1), "release")

    return lowered(emit, types.void, block, counter)


@emitted
def wait_for(typing: Any, block: Any, counter: Any, count: Any) -> Any:
    """Spin until `count` tasks are done. All of them must have been drawn, so that the wait ends."""

    def emit(emitter: Emitter, block: Value, counter: Value, count: Value) -> None:
        builder = emitter.builder
        spin, go_on = builder.append_basic_block("spin"), builder.append_basic_block("go_on")
        builder.branch(spin)
        builder.position_at_end(spin)
        done = builder.load_atomic(_counter(emitter, block, counter), "acquire", align=8)
        count = I64(count) if isinstance(count, int) else count
        builder.cbranch(builder.icmp_signed("<", done, count), spin, go_on)
        builder.position_at_end(go_on)

    return lowered(emit, types.void, block, counter, count)


@emitted
def stack(typing: Any, num_bytes: Any) -> Any:
    """The address of `num_bytes` (a literal) of stack memory, 64-byte aligned, alive until the caller returns."""

    def emit(emitter: Emitter, num_bytes: int) -> Value:
        builder = emitter.builder
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), num_bytes))
            memory.align = 64
        return builder.ptrtoint(memory, I64)

    return lowered(emit, types.int64, num_bytes)
