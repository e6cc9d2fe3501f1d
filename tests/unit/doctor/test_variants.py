"""Variants of a checkpoint: what they change, what they leave alone, and what a copy holds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider.doctor.config import DoctorConfig
from outrider.doctor.fix import write_fixed
from outrider.doctor.heads.layer import layer_variants, rearranged
from outrider.doctor.heads.maps import agreement, recovered_map
from outrider.doctor.variant import Variant, write_variant
from outrider.errors import ConfigError, RunError
from outrider.models.spec import RopeSpec
from outrider.testing import tiny_spec


def variant(**changes: object) -> Variant:
    return Variant(check="a", now="b", instead="c", remedy="d", **changes)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "head"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"rope_theta": 1.0, "deep": {"a": [1]}}))
    save_file({"w": torch.tensor([1.0, 2.0]), "marks": torch.tensor([True, False])}, directory / "model.safetensors")
    (directory / "notes.txt").write_text("kept")
    return directory


def test_changes_are_applied_in_order_and_the_source_stays(checkpoint: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    changes = [
        variant(config=lambda config: config["deep"]["a"].append(2)),
        variant(config=lambda config: config["deep"]["a"].append(3), without=["notes.txt"]),
        variant(tensors=lambda tensors: tensors["w"].mul_(2)),
    ]
    write_variant(checkpoint, changes, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["deep"] == {"a": [1, 2, 3]}
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert written["w"].tolist() == [2.0, 4.0]
    assert written["marks"].dtype == torch.bool
    assert not (tmp_path / "new" / "notes.txt").exists()
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_a_fixed_copy_is_whole_and_never_overwrites(checkpoint: Path) -> None:
    config = DoctorConfig(target="t", drafter=f"eagle3:checkpoint={checkpoint}", fix=True)
    change = variant(config=lambda config: config.update(rope_theta=5.0))
    place = write_fixed(checkpoint, [change], config)
    assert place == checkpoint.with_name("head-fixed")
    assert not any(file.is_symlink() for file in place.iterdir())
    assert json.loads((place / "config.json").read_text())["rope_theta"] == 5.0
    assert (place / "notes.txt").read_text() == "kept"
    with pytest.raises(RunError, match="nothing is overwritten"):
        write_fixed(checkpoint, [change], config)


def test_a_directory_that_appears_meanwhile_is_kept(checkpoint: Path) -> None:
    config = DoctorConfig(target="t", drafter=f"eagle3:checkpoint={checkpoint}", fix=True)
    place = checkpoint.with_name("head-fixed")

    def meanwhile(_: object) -> None:
        place.mkdir()
        (place / "theirs").write_text("kept")

    with pytest.raises(RunError, match="nothing is overwritten"):
        write_fixed(checkpoint, [variant(config=meanwhile)], config)
    assert [file.name for file in place.iterdir()] == ["theirs"]
    assert sorted(one.name for one in checkpoint.parent.iterdir()) == ["head", "head-fixed"]


def test_rotary_pairs_in_halves_and_interleaved() -> None:
    # two heads of four rows: pairs (0, 1), (2, 3) become halves (0, 2 | 1, 3)
    rows = torch.arange(8)
    assert rearranged(rows, 4, True).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(rearranged(rearranged(rows, 4, True), 4, False), rows)
    wide = torch.stack([rows, rows], dim=1)
    assert rearranged(wide, 4, True)[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("config", "base"), [({"rope_theta": 5.0}, 5.0), ({"rope_parameters": {"rope_theta": 7.0}}, 7.0), ({}, 10000.0)]
)
def test_rope_bases_are_read_and_set_where_they_stand(config: dict[str, object], base: float) -> None:
    found = [one for one in layer_variants(config, {}, None) if one.check == "rope"]
    assert all(one.now == f"rope base {base:g}" for one in found)
    assert found[0].config is not None
    changed = json.loads(json.dumps(config))
    found[0].config(changed)
    place = changed.get("rope_parameters", changed)
    assert place["rope_theta"] != base
    assert f"set rope_theta to {place['rope_theta']:g}" == found[0].remedy


def test_a_head_need_not_have_the_longrope_of_its_target() -> None:
    """Heads for such a target are made without: its divisors would end their texts."""
    rope = RopeSpec(
        type="longrope", short_factor=(1.0, 1.5), long_factor=(2.0, 3.0), original_max_position_embeddings=9
    )
    target = tiny_spec(rope=rope)
    assert [one for one in layer_variants({}, {}, target) if "scaling" in one.now] == []
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    found = [one for one in layer_variants(scaled, {}, target) if "scaling" in one.now]
    assert [one.remedy for one in found] == ["set rope_scaling to null"]


def test_a_permuted_map_is_recovered_from_similar_rows() -> None:
    torch.manual_seed(0)
    target_VE = torch.randn(200, 32)
    ids_K = torch.randperm(200)[:60]
    head_KE = target_VE[ids_K] + 0.3 * torch.randn(60, 32)
    found = recovered_map(head_KE, target_VE)
    assert found is not None
    assert torch.equal(found, ids_K)
    assert agreement(head_KE, ids_K, target_VE) == 1.0
    assert agreement(head_KE, ids_K.flip(0), target_VE) < 0.1
    assert recovered_map(torch.randn(60, 32), target_VE) is None or len(found.unique()) == 60


@pytest.mark.parametrize(
    "options",
    [{"target": "smollm2-135m"}, {"fix": True}, {"target": "a", "drafter": "b", "output": Path("x")}],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DoctorConfig(**options)  # type: ignore[arg-type]
