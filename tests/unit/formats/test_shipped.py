"""Heads that come with Outrider are found by the weights of the target, wherever they lie."""

import json
from pathlib import Path

import pytest

from outrider.formats import locate as locating
from outrider.formats import shipped
from outrider.formats.locate import head_roots
from outrider.formats.shipped import shipped_head, shipped_names
from outrider.formats.store import provenance
from outrider.testing.tiny import tiny_target


def write_head(root: Path, name: str, config: dict[str, object]) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "config.json").write_text(json.dumps(config))
    return root / name


def test_a_head_is_found_by_its_targets_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "head_roots", lambda: [tmp_path / "first", tmp_path / "second"])
    mine, other = tiny_target(0), tiny_target(1)
    write_head(tmp_path / "first", "tiny/eagle3", {"outrider": provenance(other)})
    wanted = write_head(tmp_path / "second", "renamed/eagle3", {"outrider": provenance(mine)})
    write_head(tmp_path / "second", "renamed/mtp", {})
    assert shipped_head("eagle3", mine) == wanted
    assert shipped_head("mtp", mine) is None
    assert shipped_names() == ["renamed/eagle3", "renamed/mtp", "tiny/eagle3"]


def test_the_cache_is_looked_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))
    assert head_roots()[-1] == tmp_path / "heads"
    monkeypatch.setattr(locating, "head_roots", lambda: [tmp_path / "heads"])
    head = write_head(tmp_path / "heads", "smollm2-135m/eagle3", {})
    assert locating.locate("smollm2-135m/eagle3") == head
