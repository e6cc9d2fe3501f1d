"""Tables of costs, and the file they are kept in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.costs.grid import Grid
from outrider.costs.identity import Identity
from outrider.costs.tables import COSTS_SCHEMA, CostFile, MeasuredCosts, MeasuredDraftCosts
from outrider.errors import RunError

IDENTITY = Identity(
    cpu="a processor",
    num_cores=2,
    device="cpu",
    num_threads=2,
    target="tiny",
    kind="NativeTarget",
    dtype="bfloat16",
    num_layers=2,
    hidden_size=16,
    vocab_size=31,
    weight_bytes=1000,
    bytes_per_token=64,
    weights="Q4_1, Q8_0",
    isa="avx2",
)


def a_target(slots: tuple[int, ...] = (1, 4), rows: tuple[int, ...] = (1, 2, 8)) -> MeasuredCosts:
    """10 ms, 1 ms for each row, 10 us for each row and committed token."""
    contexts = (64, 512)
    forward = [[[0.01 + 0.001 * s * r + 1e-5 * s * r * c for c in contexts] for r in rows] for s in slots]
    accept = [[1e-4 * s * r for r in rows] for s in slots]
    judged = {"slots": slots, "rows_per_slot": rows}
    return MeasuredCosts(
        forward=Grid({**judged, "contexts": contexts}, forward),
        accept_greedy=Grid(judged, accept),
        accept_sampled=Grid(judged, [[10 * cost for cost in line] for line in accept]),
        rest=Grid({"slots": slots}, [1e-5 * s for s in slots]),
    )


def a_method() -> MeasuredDraftCosts:
    nodes = (0, 1, 4)
    return MeasuredDraftCosts(
        propose=Grid({"slots": (1, 4), "nodes_per_slot": nodes}, [[1e-4 + 1e-3 * s * n for n in nodes] for s in (1, 4)])
    )


def a_file() -> CostFile:
    return CostFile(identity=IDENTITY, target=a_target(), drafts={"m:x=1": a_method()}, facts={"seconds": 1.5})


def test_rows_are_those_of_all_slots_together() -> None:
    costs = a_target()
    assert costs.forward_s(4, 8, 64) == pytest.approx(0.01 + 0.008 + 1e-5 * 8 * 64)
    assert costs.forward_s(4, 20, 512) == pytest.approx(0.01 + 0.020 + 1e-5 * 20 * 512)
    assert costs.accept_s(4, 8, True) == pytest.approx(8e-4)
    assert costs.accept_s(4, 8, False) == pytest.approx(8e-3)
    assert costs.rest_s(4) == pytest.approx(4e-5)
    assert a_method().propose_s(4, 16, 4) == pytest.approx(1e-4 + 0.016)
    assert a_method().propose_s(1, 0, 0) == pytest.approx(1e-4)


def test_one_number_of_slots_is_read_by_all_rows() -> None:
    costs = a_target(slots=(1,))
    assert costs.forward_s(4, 8, 64) == costs.forward_s(1, 8, 64)
    assert costs.accept_s(4, 8, True) == costs.accept_s(1, 8, True)


@settings(deadline=None)
@given(st.integers(1, 16), st.floats(1, 20), st.floats(1, 20), st.floats(0, 4000), st.floats(0, 4000))
def test_more_rows_or_more_context_never_cost_less(
    slots: int, some: float, more: float, near: float, far: float
) -> None:
    costs, (some, more), (near, far) = a_target(), sorted((some, more)), sorted((near, far))
    tolerance = 1 + 1e-9
    assert costs.forward_s(slots, slots * some, near) <= costs.forward_s(slots, slots * more, near) * tolerance
    assert costs.forward_s(slots, slots * some, near) <= costs.forward_s(slots, slots * some, far) * tolerance
    assert costs.accept_s(slots, slots * some, True) <= costs.accept_s(slots, slots * more, True) * tolerance


def test_a_file_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "costs.json"
    a_file().write(path)
    assert CostFile.read(path) == a_file()
    assert [entry.name for entry in path.parent.iterdir()] == ["costs.json"]
    assert json.loads(path.read_text())["schema"] == COSTS_SCHEMA


def test_identity_is_the_shape_of_target_and_machine() -> None:
    assert IDENTITY.difference(replace(IDENTITY, target="another name")) is None
    assert IDENTITY.difference(replace(IDENTITY, num_threads=3)) == "num_threads 3, not 2"


def broken(**changes: Any) -> str:
    plain = a_file().to_plain()
    return json.dumps({name: value for name, value in {**plain, **changes}.items() if value is not None})


def idle() -> dict[str, Any]:
    """The tables of a target whose forwards take no time."""
    target: dict[str, Any] = a_file().to_plain()["target"]
    seconds = np.zeros_like(target["forward"]["seconds"]).tolist()
    return {**target, "forward": {**target["forward"], "seconds": seconds}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a file of costs"),
        ("[]", "is not a file of costs with schema"),
        ('{"schema": "outrider.bench/1"}', "is not a file of costs with schema"),
        (broken(target=None), "'target' is not a set of tables"),
        (broken(target={"forward": {}}), "target.forward has no rising list 'slots'"),
        ("[" * 100_000, "is not a file of costs"),
        (broken(drafts={"\x1b[2J": {}}), r"a method called '\\x1b\[2J'"),
        (broken(target=idle()), "a forward that takes no time"),
        (broken(drafts=[]), "'drafts' or 'facts'"),
        (broken(drafts={"m": {}}), "drafts.m.propose is not a table"),
        (broken(identity={"cpu": 3}), "lacks 'cpu'"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(RunError, match=words):
        CostFile.read(path)


def test_a_missing_file_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        CostFile.read(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        a_file().write(tmp_path / "file" / "costs.json")
