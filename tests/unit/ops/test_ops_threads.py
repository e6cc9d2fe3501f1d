"""The kernels' thread pool: same results from any number of callers and workers, awake or asleep."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from outrider.engine import Engine
from outrider.kernels.cpu.threads import BLOCK, COUNTERS, _Pool, read, ticket
from outrider.kernels.cpu.vector import kernel
from outrider.ops.cpu import CpuOps
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.testing.tiny import tiny_target


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    ops = CpuOps(torch.float32, threads=2)
    packed = ops.pack(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    inputs = torch.randn(40, 7, 200, generator=torch.Generator().manual_seed(1))
    expected = [CpuOps(torch.float32, threads=1).norm_project(x, None, 0.0, packed) for x in inputs]

    def project(x: Tensor) -> Tensor:
        return ops.norm_project(x, torch.ones(200), 0.0, packed) * 0 + ops.norm_project(x, None, 0.0, packed)

    with ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            assert all(map(torch.equal, callers.map(project, inputs), expected))


def test_workers_that_fell_asleep_wake_up_again() -> None:
    ops = CpuOps(torch.bfloat16, threads=3)
    packed, x = ops.pack(torch.eye(64)), torch.arange(128.0).view(2, 64)
    for _ in range(4):
        assert torch.equal(ops.norm_project(x, None, 0.0, packed), x)
        time.sleep(0.02)


@kernel
def counts_who_comes(block: int, lane: int) -> None:
    """Draw a ticket, and go on drawing from another counter until a second thread has come, or for a second or so."""
    arrivals = ticket(block, 0) + 1
    while arrivals < 2 and ticket(block, 1) < 50_000_000:
        arrivals = read(block, COUNTERS)


def test_a_worker_on_its_way_to_sleep_does_not_miss_a_kernel() -> None:
    pool = _Pool(1)
    block = (ctypes.c_int64 * BLOCK)()
    entry = ctypes.c_int64(counts_who_comes.address)
    with ThreadPoolExecutor(1) as caller:
        pool.run(ctypes.addressof(entry), ctypes.addressof(block), 1)  # the worker is awake from here on
        assert block[COUNTERS] >= 2
        with pool._wake:  # it cannot say that it goes to sleep while this is held
            time.sleep(0.1)
            assert pool._awake.value == 1
            again = (ctypes.c_int64 * BLOCK)()
            run = caller.submit(pool.run, ctypes.addressof(entry), ctypes.addressof(again), 1)
            while again[COUNTERS] == 0:
                time.sleep(0.001)
        run.result()
    assert again[COUNTERS] >= 2


def test_pytorch_works_alone_while_the_engine_does_and_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        target = tiny_target(dtype=torch.float32)
        engine = Engine(target, NoProposer(), record=lambda record: seen.append(torch.get_num_threads()))
        for _ in engine.stream([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True)):
            seen.append(torch.get_num_threads())
        assert seen == [1, 1, 2, 1, 2, 1, 2]
    finally:
        torch.set_num_threads(before)
