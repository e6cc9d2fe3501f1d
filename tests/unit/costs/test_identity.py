"""What a profile belongs to, and where it lies."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from outrider.costs import identity
from outrider.costs.identity import Identity, identity_of, profile_path
from outrider.errors import RunError
from outrider.kernels.cpu.isa import chosen
from outrider.targets import load_target
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model


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


def test_kinds_of_weights_and_instruction_sets_tell_profiles_apart(tmp_path: Path) -> None:
    directory = str(write_tiny_model(tmp_path / "model", hidden_size=32, intermediate_size=64, head_dim=8))
    of = {kind: identity_of(load_target(directory, weights=kind, device="cpu")) for kind in ("bf16", "int8", "int4")}
    assert [one.weights for one in of.values()] == ["bfloat16", "int8", "int4, int8"]
    assert {one.isa for one in of.values()} == {chosen()}
    other = replace(of["int8"], isa="another")
    assert of["int8"].difference(other) == f"isa another, not {chosen()}"
    assert len({profile_path(one) for one in (*of.values(), other)}) == 4
    assert profile_path(of["int4"]).name.startswith("2x32-int4-int8-bfloat16-cpu-")
    assert profile_path(of["bf16"]).name.startswith("2x32-bfloat16-cpu-")


def test_older_files_belong_to_no_target_of_today() -> None:
    now = identity_of(tiny_target(0))
    plain = {name: value for name, value in asdict(now).items() if name not in ("weights", "isa")}
    older = Identity.from_plain(plain)
    assert older.difference(now) == "weights float64, not unknown"
    assert profile_path(older) != profile_path(now)
    with pytest.raises(RunError, match="'identity' lacks 'isa'"):
        Identity.from_plain({**plain, "isa": 2})


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
