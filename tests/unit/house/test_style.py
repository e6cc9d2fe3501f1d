"""The house rules that a machine can hold."""

import ast
from pathlib import Path

import pytest

import outrider
from outrider.proposers import REGISTRY

SOURCE = Path(outrider.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_target_is_called_in_one_place() -> None:
    calls = []
    for path in FILES:
        for function in functions(parse(path)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("target.forward"):
                    calls.append(f"{path.relative_to(SOURCE)}:{function.name}")
    assert calls == ["engine.py:step"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_small_and_explain_themselves(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    if text:
        assert ast.get_docstring(parse(path)), "no module docstring"
    for function in functions(parse(path)):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_asks_an_object_what_it_is(path: Path) -> None:
    names = [
        node.func.id for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "hasattr" not in names
    assert path.stem not in {"utils", "helpers", "misc", "common", "manager"}


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "none"])
def test_a_method_is_named_in_its_own_files_and_the_registry(name: str) -> None:
    lists = {SOURCE / "proposers/__init__.py", SOURCE / "train/objectives/__init__.py"}
    for path in FILES:
        if (
            path in lists or path.stem.startswith(name) or path.parent.name in ("export", "vllm")
        ):  # other engines' words
            continue
        constants = [node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)]
        assert name not in constants, f"{path} names the method {name!r}"


def test_the_public_surface() -> None:
    assert sorted(outrider.__all__) == outrider.__all__
    for name in outrider.__all__:
        assert getattr(outrider, name) is not None
