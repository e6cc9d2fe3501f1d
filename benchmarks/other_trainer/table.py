"""The page of the comparison: acceptance by position, tau, decoding, and what a step of each trainer costs.

Example: `table(acceptance, None)` has the first part only; the second is measured on a quiet machine.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["table"]


def table(acceptance: Mapping[str, Any] | None, times: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of the page."""
    parts = [] if acceptance is None else [_acceptance(acceptance)]
    if times is not None:
        parts += [_decoding(times), _steps(times)]
    return [line for number, part in enumerate(parts) for line in ([""] if number else []) + part]


def _acceptance(heads: Mapping[str, Any]) -> list[str]:
    some = next(iter(heads.values()))
    rows = [["head", "weights", "tau", "conditional acceptance", "sampled tau", "overlap"]]
    for name, head in heads.items():
        rows.append([name, f"{head['weights'] / 1e6:.2f} M", f"{head['tau']:.3f}", _numbers(head["conditional"])])
        rows[-1] += [f"{head['sampled_tau']:.3f}", _numbers(head["overlap"])]
    title = f"# held out: {some['texts']} texts, {some['anchors']:,} positions, by one program for all heads"
    return [title, *_lined(rows)]


def _decoding(times: Mapping[str, Any]) -> list[str]:
    names = {f"checkpoint={place},": name for name, place in times["heads"].items()}
    rows = [["head", "tau", "acceptance by position", "tok/s", "speedup", "interval", "draft", "verify", "lossless"]]
    for row in times["decode"]["rows"]:
        if row["category"] == "all":
            continue
        name = next((name for part, name in names.items() if part in row["method"]), row["method"])
        speedup = row["speedup"] or {"point": 1.0, "low": 1.0, "high": 1.0}
        rows.append([name, f"{row['tau']:.3f}", _numbers(row["acceptance_per_pos"] or [])])
        rows[-1] += [
            f"{row['tokens_per_s']:.1f}",
            f"{speedup['point']:.3f}",
            f"{speedup['low']:.3f}-{speedup['high']:.3f}",
        ]
        rows[-1] += [_number(row["draft_cost_ratio"]), _number(row["verify_cost_ratio"])]
        rows[-1] += [row["lossless"]["verdict"] if row["lossless"] else "-"]
    return ["# decoding of held-out prompts, greedy, two drafted tokens a step; costs in plain steps", *_lined(rows)]


def _steps(times: Mapping[str, Any]) -> list[str]:
    rows = [["trainer", "tokens", "seconds", "tokens/s"]]
    for name, one in times["steps"].items():
        rows.append([name, f"{one['tokens']:,}", f"{one['seconds']:.1f}", f"{one['tokens'] / one['seconds']:.0f}"])
    return ["# some steps of each trainer, with the same threads", *_lined(rows)]


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _lined(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
