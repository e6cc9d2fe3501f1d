"""Reports that were never measured, to draw and to print."""

from typing import Any

import pytest

from outrider.results.rows import Lossless, Report, Row
from outrider.results.statistics import Interval


def row(method: str, category: str, speedup: tuple[float, float | None, float | None] | None, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "engine": "outrider",
        "batch": 1,
        "temperature": 0.0,
        "num_prompts": 12,
        "num_repeats": 3,
        "tokens_per_s": 50.0,
        "lossless": Lossless(verdict="exact"),
    }
    interval = None if speedup is None else Interval(point=speedup[0], low=speedup[1], high=speedup[2])
    return Row(method=method, category=category, speedup=interval, **(fields | changes))


@pytest.fixture
def report() -> Report:
    """Two categories and all, a losing and an undecided cell, a second setting, a baseline from outside."""
    return Report(
        run="runs/made-up",
        target="tiny <&> model",
        dtype="bfloat16",
        device="cpu",
        commit="0123456789abcdef",
        dirty=True,
        notes=("a slice.",),
        rows=(
            row("none", "all", (1.0, 1.0, 1.0)),
            row("lookup", "all", (1.5, 1.2, 1.8)),
            row("none", "editing", (1.0, 1.0, 1.0)),
            row("lookup", "editing", (2.5, 2.0, 3.0), lossless=Lossless(verdict="ties", ties=2)),
            row("slow", "editing", (0.5, 0.4, 0.7)),
            row("none", "chat | talk", (1.0, 1.0, 1.0)),
            row("lookup", "chat | talk", (1.05, 0.9, 1.2), lossless=Lossless()),
            row(
                "lookup", "editing", (1.25, None, None), batch=4, temperature=1.0, lossless=Lossless(verdict="violated")
            ),
            row("lookup", "editing", (3.0, 2.5, 3.5), state="warm"),
            row("lookup", "summary", None),
            row("generate", "editing", (0.25, 0.2, 0.5), engine="elsewhere", lossless=Lossless()),
        ),
    )
