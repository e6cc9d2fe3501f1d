"""Measuring a target: what is run, how often, and what is made of it. Time is ours to advance."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider.costs import calibrate
from outrider.costs.calibrate import costs_for, measure_target, sweeps
from outrider.costs.identity import identity_of, profile_path
from outrider.costs.tables import CostFile
from outrider.draft import Draft
from outrider.errors import CapacityError, ConfigError, OutriderError
from outrider.target import Forward
from outrider.targets.hf import HFTarget
from outrider.targets.native import NativeSession, NativeTarget
from outrider.testing import tiny_target

GRID: dict[str, Any] = {"slots": (1, 3), "rows_per_slot": (1, 2, 5), "contexts": (4, 40), "repeats": 2}
NUM_POINTS = 12


class Call:
    """What one forward was asked, and under which conditions."""

    def __init__(self, session: NativeSession, slots: Sequence[int], draft: Draft, hosted: bool) -> None:
        self.point = (len(slots), draft.num_rows, session.cache.lengths[slots[0]])
        self.num_nodes = draft.num_nodes
        self.is_chain = draft.is_chain
        self.hosted = hosted
        self.untouched = int((session.cache.keys_LCHSD == 0).sum())


class World:
    """Counts forwards and tells the time: a forward takes 1 s, 1 s per row, and 0.25 s per cached position."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Call] = []
        self.hosted = False
        self.delays: list[float] = []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    found, forward = World(), NativeSession.forward

    def timed(self: NativeSession, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        call = Call(self, slots, draft, found.hosted)
        found.calls.append(call)
        num_slots, num_rows, context = call.point
        found.now += 1 + num_slots * num_rows + 0.25 * context + (found.delays.pop(0) if found.delays else 0)
        return forward(self, slots, roots, draft)

    @contextlib.contextmanager
    def decoding_threads(self: NativeTarget) -> Iterator[None]:
        found.hosted = True
        yield
        found.hosted = False

    monkeypatch.setattr(NativeSession, "forward", timed)
    monkeypatch.setattr(NativeTarget, "decoding_threads", decoding_threads)
    monkeypatch.setattr("outrider.loop.clock.perf_counter", lambda: found.now)
    monkeypatch.setattr("outrider.costs.calibrate.perf_counter", lambda: found.now)
    monkeypatch.setattr(calibrate, "_calibrated", {})
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))
    return found


def test_every_point_is_run_once_to_warm_up_and_then_as_often_as_asked(world: World) -> None:
    measure_target(tiny_target(0), **GRID)
    assert len(world.calls) == 2 * 3 * NUM_POINTS
    untimed, timed = world.calls[::2], world.calls[1::2]
    for point in {call.point for call in timed}:
        assert sum(call.point == point for call in timed) == 3
    assert [call.point for call in untimed] == [(slots, 1, context) for slots, _, context in (c.point for c in timed)]
    assert {call.point for call in timed} == {(s, r, c) for s in (1, 3) for r in (1, 2, 5) for c in (4, 40)}
    order = [call.point for call in timed]
    assert order[NUM_POINTS : 2 * NUM_POINTS] == order[:NUM_POINTS][::-1]


def test_sweeps_go_on_as_long_as_they_are_asked(world: World) -> None:
    heard: list[tuple[int, int]] = []
    grid = {name: points for name, points in GRID.items() if name != "repeats"}
    endless = sweeps(tiny_target(0), **grid, progress=lambda done, total: heard.append((done, total)))
    assert not world.calls
    first, second = next(endless), next(endless)
    assert first == second
    assert heard == [(done + 1, NUM_POINTS) for done in range(NUM_POINTS)] * 3
    assert not world.hosted, "between sweeps the threads are the caller's"


def test_calls_are_chains_on_a_filled_cache_while_the_target_hosts(world: World) -> None:
    measure_target(tiny_target(0), **GRID)
    assert all(call.is_chain and call.hosted and call.untouched == 0 for call in world.calls)
    assert all(call.num_nodes == (call.point[1] - 1,) * call.point[0] for call in world.calls)
    assert not world.hosted


def test_a_point_counts_with_its_lower_quartile(world: World) -> None:
    # the first forward at a point, and that of the first sweep, may take any time
    delays = [50.0] * NUM_POINTS + [0.0] * NUM_POINTS + [9.0] * NUM_POINTS + [0.0] * NUM_POINTS
    world.delays = [delay for timed in delays for delay in (70.0, timed)]
    costs = measure_target(tiny_target(0), **{**GRID, "repeats": 3})
    for slots in (1, 3):
        for rows in (1, 2, 5):
            for context in (4, 40):
                assert costs.forward_s(slots, slots * rows, context) == 1 + slots * rows + 0.25 * context
    assert costs.accept_s(3, 15, True) == costs.accept_s(1, 1, False) == costs.rest_s(3) == 0


def test_any_target_can_be_measured(tiny_gpt2_target: HFTarget) -> None:
    costs = measure_target(tiny_gpt2_target, slots=(2,), rows_per_slot=(1, 3), contexts=(8,), repeats=1)
    assert 0 < costs.forward_s(2, 2, 8) <= costs.forward_s(2, 6, 8)
    assert costs.accept_s(2, 6, False) > 0
    assert identity_of(tiny_gpt2_target).kind == "HFTarget"


def test_a_limit_of_time_leaves_one_repeat(world: World) -> None:
    measure_target(tiny_target(0), **{**GRID, "repeats": 100}, limit_s=0.0)
    assert len(world.calls) == 2 * 2 * NUM_POINTS


BAD = [
    ({"slots": ()}, ConfigError, "batches is empty"),
    ({"slots": (0,)}, ConfigError, "batches=0 must be between 1 and 4096"),
    ({"rows_per_slot": (1, 0)}, ConfigError, "rows=0 must be between 1 and 1024"),
    ({"contexts": (-1,)}, ConfigError, "contexts=-1 must be between 0 and 95"),
    ({"repeats": 0}, ConfigError, "repeats=0 must be between 1 and 1000"),
    ({"contexts": (90,), "rows_per_slot": (8,)}, ConfigError, "98 positions but the target has 96"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), BAD, ids=[words for _, _, words in BAD])
def test_grids_out_of_range(world: World, changes: dict[str, Any], kind: type[OutriderError], words: str) -> None:
    with pytest.raises(kind, match=words):
        measure_target(tiny_target(0), **{**GRID, **changes})
    assert not world.calls


def test_a_batch_that_does_not_fit_names_one_that_would(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "free_bytes", lambda device: 100_000)
    with pytest.raises(CapacityError, match=r"batches=64 with contexts=40 and rows=5 needs .*; batches=\d+ would fit"):
        measure_target(tiny_target(0), **{**GRID, "slots": (64,)})


def test_without_a_profile_there_is_one_short_calibration(world: World, caplog: pytest.LogCaptureFixture) -> None:
    target = tiny_target(0)
    with caplog.at_level("INFO", "outrider"):
        costs = costs_for(target)
    num_calls = len(world.calls)
    assert num_calls > 0
    assert "calibrating tiny-0" in caplog.text
    assert costs_for(tiny_target(1)) is costs, "another target of the same shape costs the same"
    assert len(world.calls) == num_calls
    assert costs.forward_s(1, 1, 64) == 1 + 1 + 0.25 * 64
    assert costs.forward_s(1, 8, 64) == 1 + 8 + 0.25 * 64


def test_a_profile_is_preferred_unless_it_is_damaged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    target = tiny_target(0)
    identity = identity_of(target)
    measured = measure_target(target, **GRID)
    path = profile_path(identity)
    CostFile(identity=identity, target=measured).write(path)
    world.calls.clear()
    assert costs_for(target) == measured
    assert not world.calls
    path.write_text("{")
    assert costs_for(target) != measured
    assert str(path) in caplog.text
