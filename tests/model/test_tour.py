"""The tour on the real model, with short answers: what it says of texts and counts holds, whatever the times are."""

import json
from pathlib import Path
from typing import Any

import pytest
from notebook_run import run_cells

import outrider

pytestmark = pytest.mark.model

TOUR = Path(outrider.__file__).parents[2] / "docs" / "start" / "tour.ipynb"
SHORTER = {"TOKENS = 64": "TOKENS = 16", "REPEATS = 4": "REPEATS = 1"}


def test_the_tour_runs_and_what_it_says_holds() -> None:
    text = TOUR.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    notebook, names = json.loads(text), dict[str, Any](__name__="__main__")
    run_cells(notebook, names)
    assert (names["TOKENS"], names["REPEATS"]) == (16, 1)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    said = "".join(line for output in outputs for line in output.get("text", ()))
    assert "the same tokens: True" in said
    assert said.count("  yes\n") == 2 * len(names["METHODS"])
    assert "  no\n" not in said
    assert sorted(names["costs"]) == [1, 2, 4, 8, 16]
    assert sorted(names["by_batch"]) == [1, 2, 4, 8]
    texts = [trace.text for trace in names["traces"]]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1
    assert names["one"].tokens == names["same"].tokens != names["other"].tokens
