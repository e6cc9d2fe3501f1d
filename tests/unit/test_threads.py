"""Engines in several threads share a target's weights, and nothing that decoding writes to."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outrider import Engine, SamplingParams
from outrider.kernels.cpu.threads import _Pools
from outrider.kernels.torch_threads import lone_torch_thread, num_threads, torch_threads
from outrider.models.rope import KeptRope, rope_tables
from outrider.ops.base import AttentionShape, GraphCache, Result
from outrider.ops.cpu import CpuOps
from outrider.ops.graphs import GraphPool
from outrider.ops.torch import TorchOps
from outrider.placement import Placement
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.oracle_transcripts import Transcripts
from outrider.target import Target
from outrider.targets.hf import HFTarget
from outrider.testing.tiny import tiny_spec, tiny_target

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8], [5, 5, 5, 5, 5]]


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives in a thread of its own."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_texts_of_engines_in_several_threads_are_those_of_each_alone() -> None:
    script = Path(__file__).with_name("soak_threads.py")
    command = [sys.executable, "-X", "faulthandler", str(script), "0", "3"]
    environment = os.environ | {"OUTRIDER_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 36


def reached(start: object) -> Iterator[Any]:
    """All that an object leads to, through attributes, containers and closures."""
    seen: set[int] = set()
    rest = [start]
    while rest:
        one = rest.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, FunctionType):
            rest += [cell.cell_contents for cell in one.__closure__ or ()]
        elif isinstance(one, MethodType):
            rest.append(one.__self__)
        elif not isinstance(one, Tensor | np.ndarray):
            rest += gc.get_referents(one)


def memory(start: object) -> dict[int, Tensor]:
    """The tensors and arrays that an object leads to, by address; of two at one address the longer."""
    found: dict[int, Tensor] = {}
    for one in reached(start):
        if isinstance(one, Tensor | np.ndarray):
            some = one if isinstance(one, Tensor) else torch.from_numpy(one)
            if some.nbytes > (found[some.data_ptr()].nbytes if some.data_ptr() in found else 0):
                found[some.data_ptr()] = some
    return found


def attributes(start: object) -> dict[int, tuple[object, dict[str, int]]]:
    """Our own objects that one leads to, with the identity of each attribute's value, as this thread sees them."""
    ours = [one for one in reached(start) if type(one).__module__.startswith("outrider.") and hasattr(one, "__dict__")]
    return {id(one): (one, {name: id(value) for name, value in vars(one).items()}) for one in ours}


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("seed", range(3))
def test_two_engines_share_nothing_that_decoding_changes(name: str, seed: int) -> None:
    target = tiny_target(dtype=torch.float32)
    proposer = proposer_class(name).example(target, seed)
    one, other = (Engine(target, proposer, max_batch=2, max_len=64) for _ in range(2))
    for engine in (one, other):  # all that is made on the way is there afterwards
        engine.generate(PROMPTS, SamplingParams(max_tokens=12, ignore_eos=True))
    mine, theirs = memory(one), memory(other)
    shared = {at: some.clone() for at, some in mine.items() if at in theirs}
    assert len(shared) >= 10, "the weights at least"
    assert one.target.cache.keys_LCHSD.data_ptr() in mine.keys() - theirs.keys()
    others = attributes(other)
    objects = {key: known for key, known in attributes(one).items() if key in others}
    objects = {key: known for key, known in objects.items() if not isinstance(known[0], Transcripts)}  # counts texts
    sampled = SamplingParams(temperature=1.0)
    in_thread(lambda: one.generate([[7, 7, 8, 1], [4, 4]], replace(sampled, max_tokens=12, ignore_eos=True)))
    for at, before in shared.items():
        assert torch.equal(mine[at], before), f"{before.dtype} {tuple(before.shape)} is shared and has changed"
    for some, known in objects.values():
        assert {name: id(value) for name, value in vars(some).items()} == known, f"{some} is shared and has changed"


def placement() -> Placement:
    """One row of an empty slot."""
    at_B = torch.zeros(1, dtype=torch.int64)
    return Placement(
        slots_B=at_B, lengths_B=at_B, positions_BM=at_B[:, None], write_BM=at_B[:, None], mask_BMT=None, limit=1
    )


def test_a_recording_takes_down_the_calls_of_its_own_thread_only() -> None:
    ops = CpuOps(torch.float32, threads=1)
    weight, x_RF = ops.pack(torch.eye(32)), torch.arange(32.0)[None]
    shape = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=8, scale=1.0)
    rope = KeptRope(tiny_spec(head_dim=8), torch.device("cpu"), torch.float32).reaching(32)
    keys_CHSD, values_CHSD = torch.zeros(1, 1, 8, 32).transpose(-1, -2), torch.zeros(1, 1, 32, 8)
    seen: list[Tensor] = []

    def body(x_RF: Tensor, placement: Placement) -> Result:
        first_RO = ops.norm_project(x_RF, None, 0.0, weight)
        ops.attend(first_RO, shape, rope, keys_CHSD, values_CHSD, placement)
        seen.append(in_thread(lambda: ops.norm_project(3 * torch.arange(32.0)[None], None, 0.0, weight)))
        return Result(ops.norm_project(first_RO, None, 0.0, weight), None)

    graph_cache = GraphCache()
    result = ops.replay(graph_cache, "key", body, x_RF, placement())
    assert torch.equal(seen[0], 3 * x_RF), "the other thread's call ran, and at once"
    assert result.logits_RV is not None
    assert torch.equal(result.logits_RV, x_RF)
    (graph,) = graph_cache.values()
    assert len(graph.kernels_N) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", REGISTRY)
def test_pytorchs_default_dtype_changes_no_text(name: str, dtype: torch.dtype) -> None:
    def decode() -> list[tuple[int, ...]]:
        target = tiny_target(3, dtype=torch.float32)
        engine = Engine(target, proposer_class(name).example(target, 1), max_batch=2, max_len=64)
        done = engine.generate(PROMPTS, SamplingParams(temperature=0.7, seed=5, max_tokens=10, ignore_eos=True))
        return [one.tokens for one in done]

    want = decode()
    torch.set_default_dtype(dtype)  # as `transformers` does for the whole process while it loads a model
    try:
        assert decode() == want
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_thread_that_begins_while_another_decodes_has_pytorchs_usual_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTRIDER_NUM_THREADS", raising=False)

    def host() -> tuple[int, int, int]:
        inherited = num_threads()
        with lone_torch_thread():
            held = torch.get_num_threads()
        return inherited, held, torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with lone_torch_thread():
            assert (torch.get_num_threads(), torch_threads()) == (1, 3)
            with lone_torch_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
            assert in_thread(host) == (3, 1, 3)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == torch_threads() == in_thread(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(before)


def test_rotary_tables_reach_as_far_as_each_asks_and_stay_where_they_are() -> None:
    spec = tiny_spec()
    kept = KeptRope(spec, torch.device("cpu"), torch.bfloat16)
    short = kept.reaching(8)
    at = short.cos_PD.data_ptr()
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.setdefault(n, kept.reaching(n))) for n in range(9, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(rope.cos_PD) >= n for n, rope in found.items())
    want = rope_tables(spec, 89).cos_PD[:, :2]
    assert torch.equal(kept.reaching(20).cos_PD, want)
    assert any(one is short.cos_PD and one.data_ptr() == at for one in reached(kept)), "graphs know its address"


def test_a_pool_is_made_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    barrier = threading.Barrier(4)

    class Slow:
        def __init__(self, num_workers: int) -> None:
            made.append(num_workers)
            threading.Event().wait(0.05)

    monkeypatch.setattr("outrider.kernels.cpu.threads._Pool", Slow)
    pools, found = _Pools(), []

    def ask() -> None:
        barrier.wait()
        found.append(pools(2))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [2]
    assert len(set(map(id, found))) == 1


def test_recordings_of_a_gpu_are_made_while_no_engine_of_one_works() -> None:
    graphs = GraphPool("cpu")
    ops = TorchOps(torch.float64, graphs=graphs)
    x = torch.ones(2)
    with ops.decoding_threads():
        thread = threading.Thread(target=lambda: graphs.record(lambda: x * 2))
        thread.start()
        thread.join(0.2)
        assert graphs.num_captured == 0
        assert graphs.record(lambda: x * 3).result.tolist() == [3, 3], "this thread may, since it works itself"
    thread.join()
    assert graphs.num_captured == 2
    with TorchOps(torch.float64).decoding_threads():  # without graphs nobody waits
        assert in_thread(lambda: graphs.record(lambda: x * 4)).result.tolist() == [4, 4]


def test_one_thread_at_a_time_runs_a_model_of_transformers(tiny_gpt2_target: HFTarget) -> None:
    inside, most = [0], [0]

    def enter(*_: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.002)

    def leave(*_: object) -> None:
        inside[0] -= 1

    def decode() -> list[tuple[int, ...]]:
        engine = Engine(tiny_gpt2_target, proposer_class("ngram").example(tiny_gpt2_target, 0))
        return [one.tokens for one in engine.generate(PROMPTS, SamplingParams(max_tokens=5, ignore_eos=True))]

    want = decode()
    model = tiny_gpt2_target.model.base_model
    handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    found: list[Any] = []
    try:
        threads = [threading.Thread(target=lambda: found.append(decode())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for handle in handles:
            handle.remove()
    assert found == [want] * 3
    assert most == [1]


def test_transcripts_may_grow_while_they_are_searched() -> None:
    target: Target = tiny_target(dtype=torch.float32)
    transcripts = Transcripts()
    transcripts.continuation(target, [1, 2], SamplingParams(), 3)

    class Growing(SamplingParams):
        def __eq__(self, other: object) -> bool:
            transcripts._texts.append((SamplingParams(), np.zeros(1, np.int32)))
            return False

        __hash__ = SamplingParams.__hash__

    length = len(transcripts._texts)
    assert transcripts._find(np.array([1, 2], np.int32), Growing(temperature=1.0), 3) is None
    assert len(transcripts._texts) == length + 1
