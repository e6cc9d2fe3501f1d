"""Planting a bug: the production function with one piece of its source replaced."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


def rewritten(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function, compiled anew with `old` replaced by `new`; `old` must occur exactly once."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has changed: {old!r} occurs {source.count(old)} times"
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<planted in {function.__qualname__}>", "exec"), function.__globals__, made)
    changed: Callable[..., Any] = made[function.__name__]
    return changed


def plant(*owners: Any, name: str, old: str, new: str) -> Plant:
    """Replace the method or function `name` of every owner (a class, or the modules that import it)."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        bug = rewritten(getattr(owners[0], name), old, new)
        for owner in owners:
            patch.setattr(owner, name, bug)

    return apply
