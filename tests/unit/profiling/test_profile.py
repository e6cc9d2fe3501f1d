"""A profile: its groups, what is kept of an unfinished one, and what it prints."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from outrider.costs import calibrate
from outrider.costs.grid import Grid
from outrider.costs.identity import identity_of, profile_path
from outrider.costs.tables import CostFile, spread
from outrider.errors import CapacityError, ConfigError, RunError
from outrider.profiling import profile as module
from outrider.profiling.config import ProfileConfig
from outrider.profiling.profile import profile
from outrider.profiling.table import bandwidth_share, print_profile
from outrider.records.progress import Listener, Progress
from outrider.targets.native import NativeSession
from outrider.testing import tiny_experts, tiny_target

CONFIG = ProfileConfig(batches=(1, 2), rows=(1, 3), contexts=(4, 40), repeats=1, methods=("ngram:num_nodes=2",))
NUM_POINTS = 2 * 2 * 2
PER_SWEEP = 2 * NUM_POINTS
"""Forwards of a sweep: a plain one before each that is timed."""
"""Of one sweep; there is one more, to warm up."""


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "target_of", lambda config, listen: tiny_target(0))
    monkeypatch.setattr(module, "memory_bytes_per_s", lambda device: 1e10)
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots of each forward."""
    calls: list[int] = []
    forward = NativeSession.forward

    def counted(self: NativeSession, slots: Any, roots: Any, draft: Any) -> Any:
        calls.append(len(slots))
        return forward(self, slots, roots, draft)

    monkeypatch.setattr(NativeSession, "forward", counted)
    monkeypatch.setattr(calibrate, "MOST_TIMINGS", 1)
    return calls


def stop_at(group: str) -> Listener:
    def listen(at: Progress) -> None:
        if at.words == group and at.done % 1 > 0:
            raise KeyboardInterrupt

    return listen


def test_a_profile_is_written_where_engines_look_for_it() -> None:
    heard: list[Progress] = []
    found = profile(CONFIG, heard.append)
    assert found.path == profile_path(identity_of(tiny_target(0)))
    assert CostFile.read(found.path) == found.file
    assert [path.name for path in found.path.parent.iterdir()] == [found.path.name]
    assert found.file.target.forward.axes == {"slots": (1, 2), "rows_per_slot": (1, 3), "contexts": (4, 40)}
    assert found.file.drafts["ngram"].propose.axes == {"slots": (1, 2), "nodes_per_slot": (0, 1, 2)}
    assert found.file.facts["memory_bytes_per_s"] == 1e10
    assert list(dict.fromkeys(at.words for at in heard)) == [
        "bandwidth",
        "target, sweep 1",
        "ngram, batch 1",
        "ngram, batch 2",
    ]
    assert {at.total for at in heard} == {4}


def test_an_interrupted_profile_goes_on_and_measures_nothing_twice(tmp_path: Path, forwards: list[int]) -> None:
    config = replace(CONFIG, methods=(), repeats=2, output=tmp_path / "costs.json")
    unfinished: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        profile(config, stop_at("target, sweep 2"), unfinished.append)
    assert len(forwards) == 2 * PER_SWEEP + 2
    assert not (tmp_path / "costs.json").exists()
    forwards.clear()
    kept = json.loads(unfinished[0].read_text())
    assert list(kept["groups"]) == ["bandwidth", "sweep 1"]
    seconds = np.array(kept["groups"]["sweep 1"]["forward"]["seconds"])
    kept["groups"]["sweep 1"]["forward"]["seconds"] = np.full_like(seconds, 1000.0).tolist()
    unfinished[0].write_text(json.dumps(kept))
    heard: list[Progress] = []
    found = profile(config, heard.append)
    assert len(forwards) == PER_SWEEP * 2
    assert {at.words for at in heard} == {"target, sweep 2"}
    assert (found.file.target.forward.measured > 250).all()  # the lower quartile of 1000 and what was measured
    assert not unfinished[0].exists()


def test_methods_that_were_finished_are_not_run_again(tmp_path: Path, forwards: list[int]) -> None:
    config = replace(CONFIG, output=tmp_path / "costs.json")
    with pytest.raises(KeyboardInterrupt):
        profile(config, stop_at("ngram, batch 2"))
    forwards.clear()
    profile(config)
    assert set(forwards) == {2}


def test_what_was_kept_of_another_grid_or_machine_is_not_used(tmp_path: Path, forwards: list[int]) -> None:
    config = replace(CONFIG, methods=(), repeats=2, output=tmp_path / "costs.json")
    with pytest.raises(KeyboardInterrupt):
        profile(config, stop_at("target, sweep 2"))
    forwards.clear()
    profile(replace(config, contexts=(4, 41)))
    assert len(forwards) == 3 * PER_SWEEP
    (tmp_path / "costs.json.unfinished").write_text("not ours")
    profile(config)
    assert len(forwards) == 6 * PER_SWEEP


def test_an_output_that_is_something_else_is_left_alone(tmp_path: Path, forwards: list[int]) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(RunError, match=r"notes\.json is not a file of costs"):
        profile(replace(CONFIG, output=path))
    assert path.read_text() == '{"mine": 1}'
    assert not forwards


def test_an_output_of_another_machine_is_left_alone(tmp_path: Path, forwards: list[int]) -> None:
    path = tmp_path / "costs.json"
    file = profile(replace(CONFIG, methods=())).file
    replace(file, identity=replace(file.identity, cpu="another")).write(path)
    forwards.clear()
    with pytest.raises(RunError, match="was measured with cpu another, not"):
        profile(replace(CONFIG, output=path))
    assert not forwards


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"rows": (0,)}, ConfigError, "rows=0 must be between"),
        ({"repeats": 0}, ConfigError, "repeats=0 must be between"),
        ({"contexts": (96,)}, ConfigError, "contexts=96 must be between 0 and 95"),
        ({"methods": ("ngran",)}, ConfigError, "did you mean 'ngram'"),
        ({"batches": (4096,)}, CapacityError, "batches=4096 .* would fit"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(
    forwards: list[int],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr("outrider.costs.calibrate.free_bytes", lambda device: 1_000_000)
    with pytest.raises(kind, match=words):
        profile(replace(CONFIG, **changes))
    assert not forwards


def test_default_points_are_cut_to_what_the_target_can_hold() -> None:
    assert ProfileConfig().grids(8192).contexts == (128, 512, 2048)
    assert ProfileConfig().grids(200).contexts == (128, 168)
    assert ProfileConfig().grids(20).rows == (1, 2, 3, 4, 6, 8, 12, 16)
    assert ProfileConfig(quick=True).grids(8192).repeats == 3
    assert ProfileConfig(quick=True, repeats=1, batches=(7,)).grids(8192)[::3] == ((7,), 1)


def test_tables_hold_the_costs_and_their_ratios() -> None:
    file = profile(CONFIG).file
    text = shown(file)
    one, three = file.target.forward_s(2, 2, 4), file.target.forward_s(2, 6, 4)
    assert f"({three / one:.2f})" in text
    assert f"({file.drafts['ngram'].propose_s(1, 2, 2) / file.target.forward_s(1, 1, 4):.2f})" in text
    assert "ngram: ms a step" in text
    assert "memory is read at 10.0 GB/s" in text


def shown(file: CostFile) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    print_profile(file, console)
    return console.export_text()


def test_sweeps_that_are_far_apart_are_told() -> None:
    file = profile(replace(CONFIG, methods=(), repeats=2)).file

    def swept(*factors: float) -> float:
        axes = {"slots": (1.0,), "rows_per_slot": (1.0, 2.0, 4.0), "contexts": (64.0,)}
        seconds = np.array([[[0.010], [0.011], [0.013]]])
        return spread([replace(file.target, forward=Grid(axes, seconds * factor)) for factor in factors])

    assert swept(1.0, 1.03, 1.01) == pytest.approx(0.03)
    assert swept(1.0, 1.0, 1.4) == pytest.approx(0.4)
    assert file.facts["spread"] >= 0
    quiet, busy = (replace(file, facts={**file.facts, "spread": apart}) for apart in (0.03, 0.4))
    assert "2 sweeps, 3 % apart\n" in shown(quiet)
    assert "2 sweeps, 40 % apart: something else used the machine" in shown(busy)
    assert "unknown" in shown(replace(file, facts={}))


def test_the_share_of_bandwidth_counts_weights_and_caches() -> None:
    file = profile(replace(CONFIG, methods=())).file
    num_bytes = file.identity.weight_bytes + 2 * 40 * file.identity.bytes_per_token
    assert bandwidth_share(file, 2, 40) == pytest.approx(num_bytes / file.target.forward_s(2, 2, 40) / 1e10)
    assert bandwidth_share(replace(file, facts={}), 2, 40) is None


def test_experts_are_counted_by_the_rows_that_read_them() -> None:
    """A target of 1000 bytes, 900 of them in 3 experts of which a row takes one: 1, 5/3 and 19/9 of them are read."""
    target = tiny_target(dtype=torch.float32, spec=tiny_experts(num_experts=3))
    assert module._mixture(target.spec) == {"mixture": asdict(target.spec.mixture)}
    file = profile(replace(CONFIG, methods=())).file
    mixture = {"size": 900.0, "num_experts": 3, "num_chosen": 1}
    identity = replace(file.identity, weight_bytes=1000, bytes_per_token=0)
    file = replace(file, identity=identity, facts=file.facts | {"mixture": mixture})
    assert bandwidth_share(file, 2, 40) == pytest.approx((100 + 500) / file.target.forward_s(2, 2, 40) / 1e10)
    predicted = (100 + 300 * 19 / 9) / (100 + 300)  # three rows of one slot
    assert f" {predicted:.2f} (" in shown(file)
    assert "experts at context" not in shown(replace(file, facts={}))


def test_the_bytes_of_a_forward_grow_with_its_rows() -> None:
    spec = tiny_target(dtype=torch.float32, spec=tiny_experts(num_experts=4)).spec
    assert spec.mixture is not None
    assert spec.bytes_read(1) == spec.weight_bytes - spec.mixture.size / 2
    assert spec.bytes_read(2) == spec.weight_bytes - spec.mixture.size / 4
    assert tiny_target(dtype=torch.float32).spec.bytes_read(3) == tiny_target(dtype=torch.float32).spec.weight_bytes
