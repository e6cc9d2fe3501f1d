"""What a profile belongs to, and where it lies."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from outrider.costs import identity
from outrider.costs.identity import Identity, identity_of, profile_path
from outrider.errors import RunError
from outrider.testing import tiny_target


def test_targets_of_one_shape_share_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))
    one, other = identity_of(tiny_target(0)), identity_of(tiny_target(1))
    assert one != other
    assert one.difference(other) is None
    assert profile_path(one) == profile_path(other)
    assert profile_path(one).parent == tmp_path / "profiles"


def test_dtype_shape_and_threads_tell_profiles_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "1")
    plain = identity_of(tiny_target(0))
    others = [identity_of(tiny_target(0, dtype=torch.float32)), identity_of(tiny_target(0, num_layers=3))]
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "2")
    others.append(identity_of(tiny_target(0)))
    assert len({profile_path(identity) for identity in (plain, *others)}) == 4
    assert [plain.difference(other) for other in others] == [
        "dtype float32, not float64",
        "num_layers 3, not 2",
        "num_threads 2, not 1",
    ]


def test_a_processor_without_a_description_still_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = tmp_path / "cpuinfo"
    monkeypatch.setattr(identity, "CPU_DESCRIPTION", described)
    assert identity_of(tiny_target(0)).cpu
    described.write_text("processor : 0\nmodel name : Some Processor\n")
    assert identity_of(tiny_target(0)).cpu == "Some Processor"
    described.write_text("Features : asimd\n")
    assert identity_of(tiny_target(0)).cpu != "Some Processor"


def test_json_there_and_back() -> None:
    found = identity_of(tiny_target(0))
    assert Identity.from_plain(asdict(found)) == found
    for value in (None, {}, {**asdict(found), "num_layers": "2"}, {**asdict(found), "cpu": "\x1b[2J"}):
        with pytest.raises(RunError, match="'identity' lacks"):
            Identity.from_plain(value)
