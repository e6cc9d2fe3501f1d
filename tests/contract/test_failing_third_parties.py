"""A proposer, a budget or a callback that fails, answers nonsense or spoils what it is given: no text is wrong, nothing
is lost, and the next request works.

Failure points are drawn systematically: every method of a seam, at its first, middle and last call, with every type of
exception, before the call has its effect and after.
"""

import threading
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from failing import FailingBudget, FailingProposer, Faults, answering, raising, spoiling

from outrider import Engine, SamplingParams
from outrider.draft import Draft, Tree
from outrider.errors import OutriderError
from outrider.proposer import Commit, DraftLimit, Kept
from outrider.proposers import proposer_class
from outrider.proposers.none import NoProposer
from outrider.target import Target
from outrider.testing import tiny_target

PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [4, 5], [6, 7, 6, 7, 6], [1, 2, 3, 1, 2, 3, 1, 2, 9, 9]]
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)
SAMPLED = replace(PARAMS, temperature=0.8, seed=3)
ERRORS = (
    ValueError,
    KeyboardInterrupt,
    MemoryError,
    RecursionError,
    SystemExit,
    StopIteration,
    GeneratorExit,
)
METHODS = ("suffix", "eagle3", "draft_model")
SESSION = ("open", "spec", "admit", "reuse", "keep", "num_pending", "catch_up", "propose", "observe", "release")
BUDGET = ("limits", "prune", "learn")
ROUNDS = 8


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@cache
def right(target: Target) -> list[list[int]]:
    """Return plain decoding's texts."""
    answers = Engine(target, NoProposer()).generate(PROMPTS, [PARAMS, SAMPLED, PARAMS, PARAMS])
    return [list(answer.tokens) for answer in answers]


class Trial:
    """An engine under a third party, and the texts that its requests have got so far."""

    def __init__(self, target: Target, method: str) -> None:
        self.target = target
        self.faults = Faults()
        self.proposer = FailingProposer(proposer_class(method).example(target, 2), self.faults)
        most = self.proposer.inner.spec.max_nodes
        self.engine = Engine(
            target,
            self.proposer,
            max_batch=2,
            prefill_chunk=3,
            prefix_cache_bytes=2**16,
            budget=FailingBudget(most, self.faults),
        )
        self.engine.record = lambda record: self.faults.call("record", lambda: None, record)
        self.tokens: dict[int, list[int]] = defaultdict(list)

    def add(self) -> list[int]:
        return [self.engine.add(*pair) for pair in zip(PROMPTS, [PARAMS, SAMPLED, PARAMS, PARAMS], strict=True)]

    def read(self) -> None:
        for event in self.engine.run():
            assert event.finished != "error", event
            self.tokens[event.request] += event.tokens

    def failures(self) -> list[BaseException]:
        """Read to the end, again after every exception; return those."""
        found: list[BaseException] = []
        while len(found) < ROUNDS:
            try:
                self.read()
            except BaseException as error:
                found.append(error)
                continue
            break
        return found

    def check_texts(self, ids: list[int]) -> None:
        assert [self.tokens[id] for id in ids] == right(self.target)

    def check_nothing_is_lost(self) -> None:
        """With the third party sound again: the next requests work, and no slot, request or memory is held."""
        self.faults.heal()
        ids = self.add()
        self.read()
        self.check_texts(ids)
        engine = self.engine
        assert not engine.busy
        assert not engine.batch.requests
        assert not engine.waiting
        assert not engine.cancelled
        assert not engine.outboxes._of
        assert engine.target.cache.lengths == [0, 0]
        assert engine.session is self.proposer.session
        assert self.proposer.session.slots == set()
        assert engine.prefixes.num_bytes <= engine.prefixes.max_bytes
        assert len(engine.prefixes) == len({tuple(text) for text in engine.prefixes.texts}) <= 2 * len(PROMPTS)


@cache
def num_calls(target: Target, method: str) -> dict[str, int]:
    """Return how often each call is made where nothing fails."""
    trial = Trial(target, method)
    before = dict(trial.faults.counts)
    ids = trial.add()
    trial.read()
    trial.check_texts(ids)
    trial.engine.reset()
    counts = {name: count - before.get(name, 0) for name, count in trial.faults.counts.items()}
    return counts | {"open": 0}


def places(count: int) -> list[int]:
    return sorted({1, (count + 1) // 2, count})


@pytest.mark.parametrize("name", [*SESSION, *BUDGET, "record"])
def test_an_exception_in_any_call_loses_nothing(target: Target, name: str) -> None:
    """Three methods at three places meet every type of exception."""
    num_threads, drawn = threading.active_count(), cycle(ERRORS)
    for number, method in enumerate(METHODS):
        count = num_calls(target, method).get(name, 0)
        if name in ("open", "reuse") and not count:
            continue
        assert count, f"{method} calls {name}"
        for place in places(count):
            trial, kind = Trial(target, method), next(drawn)
            trial.faults.at = {name: frozenset([trial.faults.counts[name] + place])}
            trial.faults.fault = raising(kind("theirs"), late=(place + number) % 2 == 1)
            ids = trial.add()
            [error] = trial.failures()
            assert isinstance(error, kind) or (kind is StopIteration and isinstance(error, RuntimeError)), error
            trial.check_texts(ids)
            trial.check_nothing_is_lost()
    assert threading.active_count() <= num_threads


@pytest.mark.parametrize("name", ["open", "admit", "propose", "observe", "release", "limits", "prune", "learn"])
def test_a_call_that_always_fails_can_be_given_up(target: Target, name: str) -> None:
    for method, kind in zip(METHODS, (ValueError, KeyboardInterrupt, SystemExit), strict=True):
        trial = Trial(target, method)
        trial.faults.at = {name: frozenset()}
        trial.faults.fault = raising(kind("theirs"))
        if name == "open":  # it is called again where something else has failed
            trial.faults.at["propose"] = frozenset()
        ids = trial.add()
        for _ in range(3):
            with pytest.raises(kind, match="theirs"):
                trial.read()
        for id in ids:
            try:
                trial.engine.cancel(id)
            except kind:
                assert name == "release"
        trial.tokens.clear()
        trial.check_nothing_is_lost()


@pytest.mark.parametrize("kind", ERRORS)
def test_reset_may_fail_and_is_given_again(target: Target, kind: type[BaseException]) -> None:
    for name, method in zip(("reset", "release", "forget"), METHODS, strict=True):
        trial = Trial(target, method)
        trial.add()
        trial.engine.advance()
        trial.faults.at = {name: frozenset([trial.faults.counts[name] + 1])}
        trial.faults.fault = raising(kind("theirs"))
        with pytest.raises(kind):
            trial.engine.reset()
        trial.engine.reset()
        assert not trial.engine.busy
        trial.check_nothing_is_lost()


NONSENSE: dict[str, list[Any]] = {
    "propose": [
        None,
        [],
        "draft",
        Draft.empty(0),
        Draft.of_trees([Tree([1], [-1])] * 9),
        Draft.of_trees([Tree([2**70], [-1])] * 2),
        Draft.of_trees([Tree([1, 2], [-1, 7])] * 2),
        Draft.of_trees([Tree([1, 2], [-1, -9])] * 2),
        Draft.of_trees([Tree(["a"], [-1])] * 2),  # type: ignore[list-item]
        Draft.of_tensors(torch.ones(2, 2, dtype=torch.int64), torch.full((2, 2), 9), [2, 2], is_chain=False),
        Draft.of_tensors(torch.ones(2, 2, dtype=torch.int64), torch.full((2, 2), -9), [2, 2], is_chain=False),
        Draft.of_tensors(torch.ones(2, 2), torch.zeros(2, 2), [2, 2], is_chain=False),
    ],
    "keep": [7, "kept", Kept(num_positions=10**9, num_again=-9), Kept(num_positions=-4), Kept(num_positions="x")],  # type: ignore[arg-type]
    "num_pending": [None, -7, 10**9, "x", float("nan")],
    "limits": [None, [], [DraftLimit(1, 1)] * 9, [DraftLimit(10**9, 10**9)] * 2, [DraftLimit(-3, -3)] * 2, ["x"] * 2],
    "prune": [None, "x", Draft.empty(0), Draft.of_trees([Tree([2**40], [-1])] * 2), Draft.of_chains([[1] * 40] * 2)],
    **{name: [object()] for name in ("admit", "reuse", "catch_up", "observe", "release", "learn", "record")},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_never_makes_a_text_wrong(target: Target, name: str) -> None:
    for method, value in zip(cycle(METHODS), NONSENSE[name], strict=False):
        trial = Trial(target, method)
        trial.faults.at = {name: frozenset()}
        trial.faults.fault = answering(value)
        ids = trial.add()
        errors = trial.failures()
        for error in errors[:1]:
            assert isinstance(error, OutriderError), f"{name} {value!r}: {error!r}"
        for id, wanted in zip(ids, right(target), strict=True):
            assert trial.tokens[id] == wanted[: len(trial.tokens[id])], f"{name} returns {value!r}"
            assert errors or trial.tokens[id] == wanted, f"{name} returns {value!r}"
            trial.engine.cancel(id)
        trial.tokens.clear()
        trial.check_nothing_is_lost()


@pytest.mark.parametrize("name", ["admit", "reuse", "catch_up", "propose", "observe", "limits", "learn", "record"])
def test_what_was_given_may_be_spoilt(target: Target, name: str) -> None:
    for method in ("eagle3", "draft_model"):
        trial = Trial(target, method)
        trial.faults.at = {name: frozenset()}
        trial.faults.fault = spoiling
        ids = trial.add()
        assert trial.failures() == []
        assert trial.faults.counts[name] > 0
        trial.check_texts(ids)
        trial.check_nothing_is_lost()


def test_tokens_of_a_rebuilt_engine_are_its_own(target: Target) -> None:
    """After an exception running requests are admitted anew, with tokens that a session may keep and extend."""
    for method in ("eagle3", "suffix"):
        trial = Trial(target, method)
        trial.faults.at = {"observe": frozenset([2]), "admit": frozenset()}

        def fault(do: Any, given: tuple[Any, ...]) -> Any:
            if isinstance(given[0], list) and isinstance(given[0][0], Commit):
                raise ValueError("once")
            return spoiling(do, given)

        trial.faults.fault = fault
        ids = trial.add()
        assert [type(error) for error in trial.failures()] == [ValueError]
        trial.check_texts(ids)
        trial.check_nothing_is_lost()
