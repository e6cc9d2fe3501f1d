"""Peers taking turns: the line protocol, failures that name their reason, and a run that goes on where it was."""

import os
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import race as race_module
from figures import rounds
from ledger import Cell, Key, Ledger
from race import Places, Race, Running, close_peer, left, open_peer, start_peer
from roster import FAILED, Method, Peer
from talk import PeerProcess

from outrider.errors import RunError

FAKE = Path(__file__).with_name("fake_peer.py")
WORKERS = Path(race_module.__file__).with_name("workers")
PROMPTS = {"a-1": [3], "a-2": [4], "b-1": [5], "b-2": [6]}
TEXTS = {"a": ["a-1", "a-2"], "b": ["b-1", "b-2"]}
SETTINGS = {"max_new_tokens": 20, "threads": 1}
FAST, SLOW = (
    Method(name="fast", settings={"step_s": 0.01}, max_requests=4),
    Method(name="plain", settings={"step_s": 0.02}),
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WORKERS), os.environ.get("PYTHONPATH", "")]))
    return Places(root=tmp_path, output=tmp_path / "out", threads=1)


def started(methods: tuple[Method, ...], places: Places, ledger: Ledger, name: str = "fake") -> Running:
    (places.root / name).mkdir(exist_ok=True)
    (places.root / name / "ready").touch()
    one = Running(Peer(name=name, worker=str(FAKE), methods=methods, home=name), methods)
    start_peer(one, places, ledger)
    open_peer(one, {"eos": [9]}, places, ledger, [[1], [1], [1], [1]])
    return one


def ledger_of(places: Places) -> Ledger:
    return Ledger(places.output / "measurements.jsonl", SETTINGS)


def cells(num_requests: int = 1, repeats: int = 2) -> list[Cell]:
    return rounds(TEXTS, num_requests, 1, repeats)


def run(ledger: Ledger, running: list[Running], todo: list[Cell], minutes: float = 1.0) -> bool:
    deadline_s = monotonic() + 60 * minutes
    done = Race(ledger, running, PROMPTS, 20, deadline_s=deadline_s, pause_s=0.0).run(todo)
    for one in running:
        close_peer(one)
    return done


def calls(places: Places, name: str = "fake") -> list[str]:
    """What was measured, warm-up left out."""
    return [line for line in (places.root / name / "calls.txt").read_text().splitlines() if line.endswith(" 20")]


def test_every_method_answers_every_cell_and_alternating_rounds_run_backwards(places: Places) -> None:
    ledger = ledger_of(places)
    one = started((SLOW, FAST), places, ledger)
    assert run(ledger, [one], cells())
    assert calls(places) == ["plain 1 20", "fast 1 20", "fast 1 20", "plain 1 20"] * 2
    assert len(ledger.measurements) == 8
    found = ledger.measurements[Key("fake", "fast"), cells()[0]]
    assert found.answers[0].tokens == (3,) * 20
    assert ledger.identities[Key("fake", "fast")].settings == "step_s=0.01"


def test_only_methods_that_take_several_requests_get_several(places: Places) -> None:
    ledger = ledger_of(places)
    assert run(ledger, [started((SLOW, FAST), places, ledger)], cells(4, 1))
    assert calls(places) == ["fast 4 20"]


def test_a_second_run_measures_only_what_is_missing(places: Places) -> None:
    first = ledger_of(places)
    one = started((SLOW, FAST), places, first)
    assert run(first, [one], cells(repeats=1))
    second = ledger_of(places)
    assert second.measurements == first.measurements
    again = started((SLOW, FAST), places, second)
    assert not left(again, cells(repeats=1), second)
    assert left(again, cells(repeats=2), second)
    assert run(second, [again], cells(repeats=2))
    assert len(calls(places)) == 8


def test_no_round_begins_after_the_deadline(places: Places) -> None:
    ledger = ledger_of(places)
    assert not run(ledger, [started((SLOW,), places, ledger)], cells(), minutes=-1.0)
    assert ledger.measurements == {}


def test_a_line_cut_off_by_a_crash_is_dropped(places: Places) -> None:
    ledger = ledger_of(places)
    run(ledger, [started((SLOW,), places, ledger)], cells(repeats=1))
    text = ledger.path.read_text()
    ledger.path.write_text(text[:-20])
    assert len(ledger_of(places).measurements) == 1
    assert ledger.path.read_text().endswith("\n")


def test_other_settings_are_refused(places: Places) -> None:
    ledger_of(places)
    with pytest.raises(RunError, match="written with another threads; give another --output"):
        Ledger(places.output / "measurements.jsonl", {**SETTINGS, "threads": 2})


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("open", "OSError: no such model"),
        ("measure", "ValueError: out of luck"),
        ("die", "its process ended with 7: the last words"),
        ("hang", "no answer within 1 s"),
    ],
)
def test_a_peer_that_fails_says_why_and_the_others_go_on(
    how: str, reason: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_module, "ANSWER_TIMEOUT_S", 1.0)
    ledger = ledger_of(places)
    bad = replace(SLOW, settings={"step_s": 0.02, "fail": how})
    both = [started((bad,), places, ledger, "bad"), started((SLOW,), places, ledger, "good")]
    assert run(ledger, both, cells(repeats=1))
    assert ledger.failures == {Key("bad", "plain"): reason}
    assert {key.engine for key, _ in ledger.measurements} == {"good"}
    assert ledger_of(places).failures == ledger.failures


def test_a_failure_is_forgotten_once_the_method_ran(places: Places) -> None:
    ledger = ledger_of(places)
    ledger.fail(Key("fake", "plain"), "it rained")
    run(ledger, [started((SLOW,), places, ledger)], cells(repeats=1))
    assert ledger_of(places).failures == {}


def test_an_environment_that_was_not_built_is_the_reason(places: Places) -> None:
    ledger = ledger_of(places)
    one = Running(Peer(name="gone", worker=str(FAKE), methods=(SLOW,), home="gone"), (SLOW,))
    start_peer(one, places, ledger)
    assert "was not built" in ledger.failures[Key("gone", "plain")]
    (places.root / "gone").mkdir()
    (places.root / "gone" / FAILED).write_text("the build failed: no compiler\n")
    start_peer(one, places, ledger)
    assert ledger.failures[Key("gone", "plain")] == "the build failed: no compiler"


def test_a_closed_process_is_gone(places: Places) -> None:
    ledger = ledger_of(places)
    one = started((SLOW,), places, ledger)
    process = one.process
    assert isinstance(process, PeerProcess)
    close_peer(one)
    assert not process.alive
    assert process.process.returncode == 0
