"""What tune found last is read back for the same target, machine and threads, and for no other."""

from dataclasses import replace
from pathlib import Path

import pytest

from outrider.costs.tuned import Tuned, TunedSpeedup, keep_tuned, last_tuned
from outrider.formats.store import fingerprint
from outrider.testing import tiny_target


def verdict(**changes: object) -> Tuned:
    speedups = (
        TunedSpeedup(concurrency=1, point=1.6, low=1.5, high=1.7),
        TunedSpeedup(concurrency=4, point=1.1, low=None, high=None),
    )
    found = Tuned(
        target="tiny-0",
        fingerprint="f" * 16,
        machine="a processor",
        method="ngram:num_nodes=3",
        budget="auto",
        temperature=0.0,
        speedups=speedups,
        off_from=16,
        date="2026-01-02T03:04:05+00:00",
        run="/runs/x",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))


def test_the_last_verdict_is_read_back_as_it_was(tmp_path: Path) -> None:
    target = tiny_target(0)
    assert last_tuned(target) is None
    keep_tuned(target, verdict())
    path = keep_tuned(target, verdict(method="none"))
    assert last_tuned(target) == verdict(method="none")
    assert path.parent == tmp_path / "tuned"
    assert fingerprint(target) in path.name


def test_other_weights_of_the_same_shape_have_none() -> None:
    keep_tuned(tiny_target(0), verdict())
    assert last_tuned(tiny_target(1)) is None


def test_another_number_of_threads_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "1")
    keep_tuned(tiny_target(0), verdict())
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "2")
    assert last_tuned(tiny_target(0)) is None


@pytest.mark.parametrize("text", ["", "{", '{"schema": "outrider.tuned/1"}', '{"schema": "another/1"}', "\ud800"])
def test_a_damaged_file_counts_as_none(text: str) -> None:
    path = keep_tuned(tiny_target(0), verdict())
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert last_tuned(tiny_target(0)) is None


def test_a_later_schema_counts_as_none() -> None:
    keep_tuned(tiny_target(0), verdict(schema="outrider.tuned/2"))
    assert last_tuned(tiny_target(0)) is None


@pytest.mark.parametrize(("concurrency", "point"), [(1, 1.6), (2, 1.6), (3, 1.1), (64, 1.1)])
def test_the_speedup_of_the_nearest_concurrency(concurrency: int, point: float) -> None:
    found = verdict().speedup_at(concurrency)
    assert found is not None
    assert found.point == point
    assert verdict(speedups=()).speedup_at(concurrency) is None
