"""Imports point one way: algorithm <- models, formats, proposers, targets <- testing, audit, bench, report <- cli."""

import ast
from pathlib import Path

import pytest

import outrider

SOURCE = Path(outrider.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
STOREYS = {
    "models": 1,
    "formats": 1,
    "proposers": 1,
    "targets": 1,
    "testing": 2,
    "audit": 2,
    "bench": 2,
    "report": 2,
    "train": 2,
    "interop": 2,
    "cli": 3,
}
"""Of each folder; files on the top level are the algorithm, storey 0."""
MEANT = {
    ("cache.py", "models"),
    ("identity.py", "models"),
    ("report/blocks.py", "cli"),
    ("__init__.py", "proposers"),
    ("__init__.py", "targets"),
    ("__main__.py", "cli"),
}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports at run time or for its types."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("outrider.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_nothing_from_above(path: Path) -> None:
    place = path.relative_to(SOURCE)
    own = STOREYS.get(place.parts[0], 0)
    above = {part for part in imported(path) if STOREYS.get(part, 0) > own}
    assert {(place.as_posix(), part) for part in above} <= MEANT


def test_every_folder_has_a_storey() -> None:
    folders = {path.parent.relative_to(SOURCE).parts[0] for path in FILES if path.parent != SOURCE}
    assert folders == set(STOREYS)


def test_the_exceptions_are_still_needed() -> None:
    for file, part in MEANT:
        assert part in imported(SOURCE / file)
