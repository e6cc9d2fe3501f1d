"""The tour on the real model, with short answers: what it says of texts and counts holds, whatever the times are."""

import json
from pathlib import Path
from typing import Any

import pytest

import outrider

pytestmark = pytest.mark.model

TOUR = Path(outrider.__file__).parents[2] / "docs" / "start" / "tour.ipynb"
SHORTER = {"TOKENS = 64": "TOKENS = 16", "REPEATS = 4": "REPEATS = 1"}


def test_the_tour_runs_and_what_it_says_holds(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            for long, short in SHORTER.items():
                code = code.replace(long, short)
            exec(code, names)
    assert (names["TOKENS"], names["REPEATS"]) == (16, 1)
    said = capsys.readouterr().out
    assert "the same tokens: True" in said
    assert said.count("  yes\n") == 2 * len(names["METHODS"])
    assert "  no\n" not in said
    assert sorted(names["costs"]) == [1, 2, 4, 8, 16]
    assert sorted(names["by_batch"]) == [1, 2, 4, 8]
    texts = [trace.text for trace in names["traces"]]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1
    assert names["one"].tokens == names["same"].tokens != names["other"].tokens
