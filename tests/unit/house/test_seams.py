"""Ask the seam, not the class: no file but its own tests whether an object is one implementation of a seam."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prose import SOURCE, Classes, classes, parse

FILES = sorted(SOURCE.rglob("*.py"))


@cache
def known() -> Classes:
    return classes(FILES)


def bases(name: str) -> set[str]:
    return set(re.findall(r"\w+", " ".join(map(ast.unparse, known()[name].bases))))


def has_seam(name: str, seen: frozenset[str] = frozenset()) -> bool:
    own = {base for base in bases(name) if base in known()} - seen
    return any("ABC" in bases(base) or has_seam(base, seen | {name}) for base in own)


@cache
def implementations() -> frozenset[str]:
    return frozenset(name for name in known() if "ABC" not in bases(name) and has_seam(name))


def homes() -> dict[str, set[Path]]:
    """The files that define a class of each name."""
    found: dict[str, set[Path]] = defaultdict(set)
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(path)
    return found


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


def test_no_file_asks_for_an_implementation() -> None:
    own = homes()
    wrong = [
        f"{path.relative_to(SOURCE)} asks for {name}"
        for path in FILES
        for name in asked(parse(path))
        if name in implementations() and path not in own[name]
    ]
    assert wrong == []


def test_implementations_are_known_and_questions_are_found() -> None:
    assert {"NativeTarget", "HFTarget", "CpuOps", "FixedBudget", "NgramProposer"} <= implementations()
    assert "Target" not in implementations()
    tree = ast.parse("isinstance(x, A | B)\ntype(x) is C\nmatch x:\n    case D():\n        pass")
    assert set(asked(tree)) == {"A", "B", "C", "D"}
