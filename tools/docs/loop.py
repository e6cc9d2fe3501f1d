"""The loop in a few lines: an example from the module's docstring, and the statements that call given names.

Example: of `def f(): x = self.a.read(1); self.log(x)` and the name `read` it shows `x = self.a.read(1)`.
"""

import ast
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from textwrap import dedent

from outrider.errors import ConfigError

__all__ = ["loop"]


def loop(text: str, name: str, called: Sequence[str]) -> str:
    """Return Python that shows the module's example as comments, then each statement that calls one of these names.

    Args:
        text: the module's source.
        name: `function` or `Class.method`.
        called: the last part of a call's name, such as `forward` of `self.target.forward(...)`.

    Raises:
        ConfigError: if there is no such function, or it calls one of the names nowhere.
    """
    module = ast.parse(text)
    function = _found(module, name)
    statements = {word: next(_calls(function, word), None) for word in called}
    missing = [word for word, statement in statements.items() if statement is None]
    if missing:
        raise ConfigError(f"a page shows where {name} calls {', '.join(missing)}, which it does not; mend the page")
    shown = dict.fromkeys(statement for statement in statements.values() if statement is not None)
    lines = text.splitlines()
    code = [
        dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        for node in sorted(shown, key=lambda node: node.lineno)
    ]
    return "\n".join(["```python", *_example(ast.get_docstring(module) or ""), *code, "```"])


def _found(module: ast.Module, name: str) -> ast.FunctionDef:
    body: list[ast.stmt] = module.body
    found: ast.stmt | None = None
    for part in name.split("."):
        known = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        found = known.get(part)
        body = found.body if isinstance(found, ast.ClassDef | ast.FunctionDef) else []
    if not isinstance(found, ast.FunctionDef):
        raise ConfigError(f"a page shows the function {name}, which does not exist; mend the page")
    return found


def _calls(function: ast.FunctionDef, word: str) -> Iterator[ast.stmt]:
    """Yield the simple statements that call `word`, in order."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.Expr | ast.Return):
            calls = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
            if word in {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}:
                yield node


def _example(docstring: str) -> Iterator[str]:
    """Yield the first indented lines of a docstring as comments."""
    lines = iter(cleandoc(docstring).splitlines())
    for line in lines:
        if line.startswith("    "):
            yield f"# {line.strip()}"
            break
    for line in lines:
        if not line.startswith("    "):
            break
        yield f"# {line.strip()}"
