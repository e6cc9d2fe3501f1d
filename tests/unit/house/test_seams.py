"""Ask the seam, not the class: no file but its own tests whether an object is one implementation of a seam."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prose import SOURCE, classes, parse

FILES = sorted(SOURCE.rglob("*.py"))
CLASSES = classes(FILES)


def bases(name: str) -> set[str]:
    return set(re.findall(r"\w+", " ".join(map(ast.unparse, CLASSES[name].bases))))


def has_seam(name: str, seen: frozenset[str] = frozenset()) -> bool:
    own = {base for base in bases(name) if base in CLASSES} - seen
    return any("ABC" in bases(base) or has_seam(base, seen | {name}) for base in own)


IMPLEMENTATIONS = {name for name in CLASSES if "ABC" not in bases(name) and has_seam(name)}
HOMES = {
    name: {path for path in FILES if any(isinstance(n, ast.ClassDef) and n.name == name for n in ast.walk(parse(path)))}
    for name in IMPLEMENTATIONS
}


def asked(tree: ast.Module) -> Iterator[str]:
    """Every class that is asked for by isinstance, issubclass, `type(x) is` or a pattern."""
    for node in ast.walk(tree):
        kinds: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            kinds = node.args[1:]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            kinds = node.comparators
        elif isinstance(node, ast.MatchClass):
            kinds = [node.cls]
        yield from re.findall(r"\w+", " ".join(map(ast.unparse, kinds)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_asks_for_an_implementation(path: Path) -> None:
    assert [name for name in asked(parse(path)) if name in IMPLEMENTATIONS and path not in HOMES[name]] == []


def test_implementations_are_known_and_questions_are_found() -> None:
    assert {"NativeTarget", "HFTarget", "CpuOps", "FixedBudget", "NgramProposer"} <= IMPLEMENTATIONS
    assert "Target" not in IMPLEMENTATIONS
    tree = ast.parse("isinstance(x, A | B)\ntype(x) is C\nmatch x:\n    case D():\n        pass")
    assert set(asked(tree)) == {"A", "B", "C", "D"}
