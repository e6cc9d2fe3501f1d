"""Exclusive work: who is refused, and what happens after work that did not end."""

import threading

import pytest

from outrider import Engine, EngineBusyError
from outrider.draft import Tree
from outrider.loop.guard import Guard
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.testing import Scripted, tiny_target


def test_work_that_did_not_end_is_repaired_once() -> None:
    repairs: list[int] = []
    guard = Guard(lambda: repairs.append(1))
    with guard:
        assert guard.held
    assert guard.sound
    with pytest.raises(KeyError), guard:
        raise KeyError
    assert not guard.sound
    assert not guard.held
    for _ in range(2):
        with guard:
            pass
    assert repairs == [1]


def test_a_repair_that_fails_is_tried_again() -> None:
    tries: list[int] = []

    def repair() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError

    guard = Guard(repair)
    with pytest.raises(KeyError), guard:
        raise KeyError
    with pytest.raises(MemoryError), guard:
        pass
    with guard:
        pass
    assert guard.sound
    assert len(tries) == 2


def test_a_frame_that_is_gone_holds_nothing() -> None:
    """An interrupt between `__enter__` and the block, or before `__exit__`, gives nothing back."""
    guard = Guard(lambda: None)

    def interrupted() -> None:
        guard.__enter__()

    interrupted()
    assert not guard.held
    with guard:
        assert guard.held


def test_a_call_from_inside_a_step_is_refused() -> None:
    target = tiny_target()
    engine = Engine(target, Scripted(lambda tokens, sampling, room: engine.reset(), max_nodes=2))
    with pytest.raises(EngineBusyError, match="in the middle of a step"):
        engine.generate([[1]], SamplingParams(max_tokens=4))


def test_a_second_thread_is_refused_and_told_what_to_do() -> None:
    inside, go_on = threading.Event(), threading.Event()
    target = tiny_target()
    refused: list[str] = []
    answers: list[object] = []

    def script(tokens: object, sampling: object, room: object) -> object:
        inside.set()
        go_on.wait(60)
        return Tree([], [])

    engine = Engine(target, Scripted(script, max_nodes=2))  # type: ignore[arg-type]
    plain = Engine(target, NoProposer()).generate([[1, 2]], SamplingParams(max_tokens=3))
    worker = threading.Thread(
        target=lambda: answers.extend(engine.generate([[1, 2]], SamplingParams(max_tokens=3))), name="first"
    )
    worker.start()
    inside.wait(60)
    try:
        engine.generate([[3]], SamplingParams(max_tokens=3))
    except EngineBusyError as error:
        refused.append(str(error))
    waiting = engine.add([5], SamplingParams(max_tokens=1))
    assert engine.cancel(waiting)  # takes effect after the step
    go_on.set()
    worker.join(60)
    assert "thread 'first'" in refused[0]
    assert "open another engine" in refused[0]
    assert answers == plain
    assert not engine.busy
