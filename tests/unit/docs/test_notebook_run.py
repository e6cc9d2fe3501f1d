"""A notebook that was run holds what its cells printed and gave; one that fails stays as it was."""

import json
from pathlib import Path

import notebook_run
import pytest

DRAWN = "class Drawn:\n    def _repr_html_(self):\n        return '<b>x</b>'\n\n\nDrawn()"


def write(path: Path, *cells: str) -> Path:
    text = [{"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["text"]}]
    code = [
        {"cell_type": "code", "execution_count": 9, "id": "c", "metadata": {}, "outputs": ["old"], "source": [cell]}
        for cell in cells
    ]
    path.write_text(json.dumps({"cells": text + code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_each_cell_gets_its_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "x = 2\nprint(x)\nprint('é')", "x * 3", DRAWN)
    assert notebook_run.main([str(path)]) == 0
    text, *cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert text == {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["text"]}
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3]
    printed, value, drawn = (cell["outputs"] for cell in cells)
    assert printed == [{"name": "stdout", "output_type": "stream", "text": ["2\n", "é\n"]}]
    assert [one["data"] for one in value] == [{"text/plain": ["6"]}]
    assert [one["data"] for one in drawn] == [{"text/plain": ["<Drawn>"], "text/html": ["<b>x</b>"]}]


def test_a_cell_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        notebook_run.main([str(path)])
    assert path.read_bytes() == before
