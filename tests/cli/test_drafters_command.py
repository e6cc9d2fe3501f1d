"""`outrider drafters`, end to end: a table for a person, one line of JSON for a program."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from outrider.cli import main


@pytest.fixture(autouse=True)
def _no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_table_is_followed_by_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drafters", "Qwen/Qwen2.5-7B-Instruct"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert (found["schema"], found["target"]) == ("outrider.drafters/1", "Qwen/Qwen2.5-7B-Instruct")
    by_name = {one["name"]: one for one in found["drafters"]}
    assert by_name["suffix"]["is_ready"] is True
    assert by_name["amd/PARD-Qwen2.5-0.5B"] | {"why": ""} == {
        "name": "amd/PARD-Qwen2.5-0.5B",
        "text": "pard:checkpoint=amd/PARD-Qwen2.5-0.5B",
        "method": "pard",
        "kind": "catalogue",
        "layout": "pard",
        "is_local": False,
        "is_ready": False,
        "fits": None,
        "why": "",
        "licence": "unknown",
        "source": "AMD-AGI/PARD",
    }
    table = "\n".join(lines[:-1])
    assert all(name in table for name in by_name)


def test_only_what_is_ready_is_listed(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drafters", str(tiny_model), "--ready"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["text"] for one in found["drafters"]] == ["ngram", "suffix"]


def test_a_name_that_is_no_model_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drafters", "no-such-model"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("outrider: no model directory, .gguf file or hub id 'no-such-model'")
