"""A preset without its weights: what is left out is named once, with the way to get it; the rest stays."""

import logging
from pathlib import Path

import pytest

from outrider.bench.methods import at_hand
from outrider.bench.preset import read_preset
from outrider.env import data_directory
from outrider.formats import locate
from outrider.proposers.method_spec import method_specs
from outrider.testing import tiny_target

PRESETS = sorted(path.stem for path in data_directory("recipes").glob("*.toml"))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "head_roots", lambda: [tmp_path / "heads"])
    monkeypatch.setattr("outrider.formats.shipped.head_roots", lambda: [tmp_path / "heads"])
    return tmp_path


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_says_what_it_leaves_out(preset: str, nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    choices = method_specs(read_preset(preset)["methods"])
    with caplog.at_level(logging.WARNING):
        kept, notes = at_hand(choices, tiny_target())
    bare = [choice.label for choice in choices if "checkpoint" not in choice.settings]
    assert [choice.label for choice in kept] == bare
    assert [record.getMessage() for record in caplog.records] == list(notes)
    for choice in choices:
        assert choice.label in bare or any(choice.name in note for note in notes)
    for note in notes:
        assert "outrider fetch heads --from" in note or "docs/guides/train.md" in note
    assert len(notes) <= 2


def test_what_is_here_is_kept(nowhere: Path) -> None:
    (nowhere / "heads/smollm2-135m/eagle3").mkdir(parents=True)
    (nowhere / "heads/smollm2-135m/eagle3/config.json").write_text("{}")
    texts = ["ngram", "eagle3:checkpoint=smollm2-135m/eagle3", "medusa:checkpoint=smollm2-135m/medusa", "mtp"]
    texts.append("draft_model:checkpoint=runs/small/best")
    kept, notes = at_hand(method_specs(texts), tiny_target())
    assert [choice.label for choice in kept] == ["ngram", "eagle3"]
    assert notes == (
        "left out: medusa, mtp: no smollm2-135m/medusa, head of its kind on this machine; "
        "`outrider fetch heads --from ARCHIVE` installs those of a release",
        "left out: draft_model: no runs/small/best on this machine; train them first (docs/guides/train.md)",
    )
