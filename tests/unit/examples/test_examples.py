"""The examples run as they are written, on a target of milliseconds, and stay short."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from notebook_run import run_cells

from outrider import load_target
from outrider.testing.directory import write_tiny_model

EXAMPLES = Path(__file__).parents[3] / "examples"
LONGEST = 80


def test_methods_are_compared_on_one_prompt_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model")), dtype="float64")
    compare = runpy.run_path(str(EXAMPLES / "compare_methods.py"))["compare"]
    compare(target, ["ngram", "draft_model:layers=0,num_nodes=2"], ["ab ab ab", "xy"], max_tokens=12)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["method", "tau", "ms/token", "speedup", "same", "text"]
    assert [line.split()[0] for line in lines] == ["none", "ngram", "draft_model:layers=0,num_nodes=2"]
    assert [line.split()[-1] for line in lines] == ["yes"] * 3
    taus = [float(line.split()[1]) for line in lines]
    assert taus[0] == 1.0
    assert min(taus) >= 1.0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_short_enough_to_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_notebook_trains_a_head_whose_acceptance_rises() -> None:
    notebook = json.loads((EXAMPLES / "train_a_head.ipynb").read_text(encoding="utf-8"))
    assert {"nbformat", "nbformat_minor", "metadata", "cells"} == set(notebook)
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(len(cell.splitlines()) for cell in code) <= LONGEST
    names: dict[str, Any] = {"__name__": "__main__"}
    run_cells(notebook, names)
    assert len(names["curve"]) >= 3
    assert names["curve"][-1] > names["curve"][0] > 1
    assert names["tau"] > 1
    assert names["same"]


def test_the_tour_shows_what_its_cells_gave_and_its_prose_holds_no_figure() -> None:
    """Its cells run in `tests/model`, on the real model."""
    text = (EXAMPLES.parent / "docs" / "start" / "tour.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text) < 400_000
    assert not re.search(r"/(root|work|home|tmp|Users)/", text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"]
            assert all(output["output_type"] != "error" for output in cell["outputs"])
            assert len(source.splitlines()) <= 40
            continue
        prose = re.sub(r"^#.*$|EAGLE-3|eagle3|section 2|\]\(.*?\)|`.*?`", "", source, flags=re.MULTILINE)
        assert not re.search(r"\d", prose), prose
