"""The threads of the kernels: a spinning thread pool whose caller waits only for workers that joined this kernel.

A kernel is `void (int64 block, int64 lane)`. The block is its argument record: 64-bit numbers, then counters, each on a
cache line of its own. The caller has lane 0, workers have lanes from 1 on. Threads share work by drawing tickets.

The caller publishes a kernel in the pool's state, works on it, closes it, and waits for the workers that joined. The
state is one word: generation * 2^17 + open * 2^16 + joined. A worker joins by compare-and-swap while the kernel is
open, so a worker whose core is busy costs nothing; OpenMP's barrier waits for every thread. Idle workers spin for some
milliseconds, then sleep.

Several Python threads may launch kernels. They share one pool; a caller that finds its workers in use works alone.

Worked example: 60 tasks, two threads: both call `ticket` on one counter until it returns 60 or more; each number below
60 is drawn by exactly one of them. Without the worker, the caller draws all 60.
"""

import ctypes
import os
import struct
import sys
import threading
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from outrider.kernels.compiled import callback
from outrider.kernels.cpu.vector import I64, Emitter, Value, emitted, i64, inlined, lowered

__all__ = [
    "BLOCK",
    "COUNTERS",
    "draw",
    "finished",
    "launch",
    "launch_all",
    "stack",
    "ticket",
    "wait_for",
]

COUNTERS = 40  # index of the first counter of a block; kernel arguments come before it
LINE = 8  # 64-bit numbers in a cache line
BLOCK = COUNTERS + 7 * LINE

# The words of a pool; a job holds the addresses of a kernel and its block.
STATE, JOB, AWAKE, SPINS = 0, 2 * LINE, 4 * LINE, 5 * LINE
POOL = 6 * LINE
JOINED, OPEN = 2**16 - 1, 2**16
AWAKE_S, MISSED_S = 0.005, 0.002

Block = ctypes.c_int64 * BLOCK


def launch(address: int, threads: int, *arguments: int) -> None:
    """Run the kernel at `address` on up to `threads` threads, and return when its work is done.

    Any Python thread may call this; while one kernel uses the workers, another runs on its caller alone.
    """
    block = Block()
    _layout(len(arguments)).pack_into(block, 0, *arguments)
    if threads > 1:
        kernel = ctypes.c_int64(address)
        _pool(threads - 1).run(ctypes.addressof(kernel), ctypes.addressof(block), 1)
    else:
        _entry(address)(ctypes.addressof(block), 0)


def launch_all(threads: int, kernels_N: np.ndarray, blocks_NB: np.ndarray) -> None:
    """Run kernels one after the other, without returning to Python in between.

    Args:
        kernels_N: int64 addresses.
        blocks_NB: int64 [N, BLOCK] argument records; their counters are cleared first.
    """
    blocks_NB[:, COUNTERS:] = 0
    kernels, blocks = kernels_N.ctypes.data, blocks_NB.ctypes.data
    if threads > 1:
        _pool(threads - 1).run(kernels, blocks, len(kernels_N))
    else:
        _run_all()(0, kernels, blocks, len(kernels_N))


@cache
def _run_all() -> Any:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(publish_all.address)


@cache
def _layout(num_arguments: int) -> struct.Struct:
    return struct.Struct(f"={num_arguments}q")


@cache
def _entry(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)


class _Pool:
    """`num_workers` daemon threads that join published kernels."""

    def __init__(self, num_workers: int) -> None:
        self._words = (ctypes.c_int64 * (POOL + LINE))()
        unaligned = ctypes.addressof(self._words)
        self._address = unaligned + -unaligned % (8 * LINE)
        self._awake = ctypes.c_int64.from_address(self._address + 8 * AWAKE)
        self._state = ctypes.c_int64.from_address(self._address + 8 * STATE)
        self._measure_spins()
        self._busy = threading.Lock()
        self._wake = threading.Condition()
        self._num_workers = num_workers
        for lane in range(1, num_workers + 1):
            threading.Thread(target=self._work, args=(lane,), daemon=True, name="outrider-kernel").start()

    def _measure_spins(self) -> None:
        """Set the number of spins before a worker sleeps: a processor's pause takes 7 to 50 ns."""
        spins, trial = ctypes.c_int64.from_address(self._address + 8 * SPINS), 10_000
        spins.value, seconds = trial, float("inf")
        for _ in range(3):
            start = perf_counter()
            _entry(help_out.address)(self._address, 0)
            seconds = min(seconds, perf_counter() - start)
        spins.value = max(trial, int(trial * AWAKE_S / seconds))

    def run(self, kernels: int, blocks: int, count: int) -> None:
        """Work on `count` kernels, whose addresses and blocks are at these addresses."""
        if not self._busy.acquire(blocking=False):
            _run_all()(0, kernels, blocks, count)
            return
        try:
            if self._awake.value < self._num_workers:
                with self._wake:
                    self._wake.notify_all()
            _run_all()(self._address, kernels, blocks, count)
        finally:
            self._busy.release()

    def _is_open(self) -> bool:
        return bool(self._state.value & OPEN)

    def _work(self, lane: int) -> None:
        helping = _entry(help_out.address)
        while True:
            with self._wake:
                # A wake-up can be missed while the worker falls asleep, so it looks for an open kernel twice.
                if not self._is_open() and not self._wake.wait(MISSED_S) and not self._is_open():
                    self._wake.wait()
                self._awake.value += 1
            helping(self._address, lane)
            with self._wake:
                self._awake.value -= 1


class _Pools:
    """The process's pools by number of workers; each is made once."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._made: dict[int, _Pool] = {}
        self._lock = threading.Lock()

    def __call__(self, num_workers: int) -> _Pool:
        pool = self._made.get(num_workers)
        if pool is None:
            with self._lock:
                pool = self._made.get(num_workers) or self._made.setdefault(num_workers, _Pool(num_workers))
        return pool


_pool = _Pools()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_pool.forget)  # threads do not survive a fork


def _word(emitter: Emitter, base: Value, index: Value | int) -> Value:
    return emitter.builder.inttoptr(emitter.at(base, index, 8), ir.PointerType(I64))


@emitted
def call(typing: Any, address: Any, block: Any, lane: Any) -> Any:
    """Call the kernel at an address."""

    def emit(emitter: Emitter, address: Value, block: Value, lane: Value | int) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        lane = I64(lane) if isinstance(lane, int) else lane
        emitter.builder.call(emitter.builder.inttoptr(address, ir.PointerType(kind)), [block, lane])

    return lowered(emit, types.void, address, block, lane)


@emitted
def read(typing: Any, base: Any, index: Any) -> Any:
    """Read a shared word, with acquire order."""

    def emit(emitter: Emitter, base: Value, index: int) -> Value:
        return emitter.builder.load_atomic(_word(emitter, base, index), "acquire", align=8)

    return lowered(emit, types.int64, base, index)


@emitted
def add(typing: Any, base: Any, index: Any, number: Any) -> Any:
    """Add to a shared word atomically; return its previous value."""

    def emit(emitter: Emitter, base: Value, index: int, number: Value | int) -> Value:
        number = I64(number) if isinstance(number, int) else number
        return emitter.builder.atomic_rmw("add", _word(emitter, base, index), number, "acq_rel")

    return lowered(emit, types.int64, base, index, number)


@emitted
def replaced(typing: Any, base: Any, index: Any, old: Any, new: Any) -> Any:
    """Replace a shared word by `new` if it is `old`; return 1 if it was, else 0."""

    def emit(emitter: Emitter, base: Value, index: int, old: Value, new: Value) -> Value:
        pair = emitter.builder.cmpxchg(_word(emitter, base, index), old, new, "acq_rel", "monotonic")
        return emitter.builder.zext(emitter.builder.extract_value(pair, 1), I64)

    return lowered(emit, types.int64, base, index, old, new)


@emitted
def pause(typing: Any) -> Any:
    """Tell the processor that this is a waiting loop."""

    def emit(emitter: Emitter) -> None:
        emitter.pause()

    return lowered(emit, types.void)


@inlined
def publish(pool: int, kernel: int, block: int) -> None:
    """Open a kernel to the workers, work on it, close it, and wait for those that joined."""
    job = i64(pool + JOB * 8)
    job[0], job[1] = kernel, block
    add(pool, STATE, 2 * OPEN + OPEN)  # the next generation, open
    call(kernel, block, 0)
    add(pool, STATE, -OPEN)
    while read(pool, STATE) & JOINED != 0:
        pause()


@callback(types.void, types.int64, types.int64, types.int64, types.int64)
def publish_all(pool: int, kernels: int, blocks: int, count: int) -> None:
    """Work on kernels one after the other; with pool 0, alone."""
    for n in range(count):
        if pool == 0:
            call(i64(kernels)[n], blocks + n * BLOCK * 8, 0)
        else:
            publish(pool, i64(kernels)[n], blocks + n * BLOCK * 8)


@callback(types.void, types.int64, types.int64)
def help_out(pool: int, lane: int) -> None:
    """Join kernels as they are published; return after a while without one."""
    last, spins, most = -1, 0, i64(pool + SPINS * 8)[0]
    job = i64(pool + JOB * 8)
    while spins < most:
        state = read(pool, STATE)
        generation = state // (2 * OPEN)
        if state & OPEN != 0 and generation != last and replaced(pool, STATE, state, state + 1) == 1:
            call(job[0], job[1], lane)
            add(pool, STATE, -1)
            last, spins = generation, 0
        else:
            pause()
            spins += 1


def _counter(emitter: Emitter, block: Value, index: Value | int) -> Value:
    return emitter.builder.inttoptr(emitter.at(emitter.at(block, COUNTERS, 8), index, 8 * LINE), ir.PointerType(I64))


@emitted
def ticket(typing: Any, block: Any, counter: Any) -> Any:
    """Draw the next number, from 0 on, of a counter of the block."""

    def emit(emitter: Emitter, block: Value, counter: Value) -> Value:
        return emitter.builder.atomic_rmw("add", _counter(emitter, block, counter), I64(1), "monotonic")

    return lowered(emit, types.int64, block, counter)


@inlined
def draw(block: int, lane: int, counter: int, count: int) -> int:
    """Draw a task by three counters, or return `count`. Even lanes ascend, odd ones descend: the next task is known."""
    if ticket(block, counter) >= count:
        return count
    number: int = ticket(block, counter + 1) if lane % 2 == 0 else count - 1 - ticket(block, counter + 2)
    return number


@emitted
def finished(typing: Any, block: Any, counter: Any) -> Any:
    """Count one task as done; its writes are visible to whoever waits for it."""

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
    """Return the address of `num_bytes` (a literal) of stack memory, 64-byte aligned, valid until the caller ends."""

    def emit(emitter: Emitter, num_bytes: int) -> Value:
        builder = emitter.builder
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), num_bytes))
            memory.align = 64
        return builder.ptrtoint(memory, I64)

    return lowered(emit, types.int64, num_bytes)
