"""The house rules that a machine can hold."""

import ast

from prose import SOURCE, parse

import outrider
from outrider.proposers import REGISTRY

FILES = sorted(SOURCE.rglob("*.py"))


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


def test_files_are_small_and_explain_themselves() -> None:
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if (num_lines := len(text.splitlines())) > 350:
            wrong.append(f"{path} has {num_lines} lines")
        if text and not ast.get_docstring(parse(path)):
            wrong.append(f"{path} has no module docstring")
        for function in functions(parse(path)):
            assert function.end_lineno is not None
            if (length := function.end_lineno - function.lineno + 1) > 60:
                wrong.append(f"{path}: {function.name} has {length} lines")
    assert wrong == []


def test_nothing_asks_an_object_what_it_is() -> None:
    calls = [
        f"{path} calls hasattr"
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    assert calls == []
    assert {path.stem for path in FILES} & {"utils", "helpers", "misc", "common", "manager"} == set()


def test_a_method_is_named_in_its_own_files_and_the_registry() -> None:
    lists = {SOURCE / "proposers/__init__.py", SOURCE / "train/objectives/__init__.py"}
    methods = REGISTRY.keys() - {"none"}
    wrong = [
        f"{path} names the method {node.value!r}"
        for path in FILES
        if path not in lists and path.parent.name not in ("export", "vllm")  # other engines' words
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and node.value in methods and not path.stem.startswith(node.value)
    ]
    assert wrong == []


def test_the_public_surface() -> None:
    assert sorted(outrider.__all__) == outrider.__all__
    for name in outrider.__all__:
        assert getattr(outrider, name) is not None
