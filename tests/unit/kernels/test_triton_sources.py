"""What Triton's compiler refuses and its interpreter does not see: kernels are read as text, without a GPU."""

import ast
from pathlib import Path

import pytest

import outrider

FILES = sorted(Path(outrider.__file__).parent.rglob("*triton*.py"))


def kernels(file: Path) -> list[ast.FunctionDef]:
    """Functions under `@triton.jit`."""
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    return [one for one in found if any(ast.unparse(mark) == "triton.jit" for mark in one.decorator_list)]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_kernels_annotate_nothing_but_constants(file: Path) -> None:
    """The compiler looks annotations up as globals, and a global may only be a constant of its own."""
    assert kernels(file) or "triton.jit" not in file.read_text()
    for kernel in kernels(file):
        notes = {ast.unparse(argument.annotation) for argument in kernel.args.args if argument.annotation is not None}
        assert notes <= {"tl.constexpr"}, f"{file.name}: {kernel.name} is annotated with {notes}"
        assert kernel.returns is None or ast.unparse(kernel.returns) == "None"
