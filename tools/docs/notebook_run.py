"""Notebooks run from top to bottom: the outputs of all cells are written anew into the file.

    python tools/docs/notebook_run.py docs/start/tour.ipynb

Cells run in one namespace of this process. A cell keeps what it printed and the value of its last expression, as
text/plain and, where the value draws itself, text/html. Nothing is written if a cell fails.
"""

import argparse
import ast
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from outrider.records.files import write_text

__all__ = ["main", "run_cells"]


def run_cells(notebook: dict[str, Any], names: dict[str, Any]) -> None:
    """Run the cells of a notebook and put their outputs in it; `names` is their namespace."""
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(codes, start=1):
        printed = io.StringIO()
        with redirect_stdout(printed):
            value = _run("".join(cell["source"]), f"<cell {count}>", names)
        cell["execution_count"] = count
        cell["outputs"] = [*_printed(printed.getvalue()), *_result(value, count)]


def _run(code: str, place: str, names: dict[str, Any]) -> object:
    """Run a cell and return the value of its last expression; None if it ends with a statement."""
    tree = ast.parse(code, place)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, place, "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), place, "exec"), names)
    return eval(compile(ast.Expression(last.value), place, "eval"), names)


def _printed(text: str) -> list[dict[str, Any]]:
    return [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []


def _result(value: object, count: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    draws = hasattr(value, "_repr_html_")
    data = {"text/plain": f"<{type(value).__name__}>" if draws else repr(value)}
    data |= {"text/html": value._repr_html_()} if draws else {}  # type: ignore[attr-defined]
    shown = {kind: text.splitlines(keepends=True) for kind, text in data.items()}
    return [{"data": shown, "execution_count": count, "metadata": {}, "output_type": "execute_result"}]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run notebooks and write them; return the exit status."""
    parser = argparse.ArgumentParser(description="Run notebooks and keep their outputs.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args(arguments).notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        run_cells(notebook, {"__name__": "__main__"})
        write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "give another file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
