"""Training curves of the shipped heads: tau on held-out texts against training tokens, as a picture and a table.

Both are made from the `training.json` that every trained checkpoint carries (`outrider.train.card`).

Example: a head that was at tau 1.20 after 1 million tokens and at 2.25 after 4 million is a line between both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.records.json_fields import read_json
from outrider.results.figures.lines import Curve, LineFigure
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["Head", "curve_chart", "heads_table", "read_heads"]

TRAINING = "training.json"
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Head:
    """A shipped head: its directory's name, what its training recorded, and the bytes of its weights."""

    name: str
    told: Mapping[str, Any]
    num_bytes: int

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Million tokens read, and tau."""
        return [(line["tokens"] / 1e6, line["tau"]) for line in self.told["curve"]]


def read_heads(directory: Path) -> list[Head]:
    """Return the heads of a target, those with the highest tau first."""
    found = [
        Head(path.parent.name, read_json(path), sum(file.stat().st_size for file in path.parent.glob(WEIGHTS)))
        for path in sorted(directory.glob(f"*/{TRAINING}"))
    ]
    return sorted(found, key=lambda head: -head.curve[-1][1])


def heads_table(heads: Sequence[Head]) -> str:
    """Return size, budget and held-out figures of each head, as Markdown."""
    return Sheet("", COLUMNS, heads).markdown


COLUMNS: tuple[Column[Head], ...] = (
    Column("Head", lambda head: head.name, kind="code"),
    Column("Weights", lambda head: f"{head.num_bytes / 1e6:.1f} MB", kind="raw"),
    Column("Tokens read", lambda head: f"{head.told['budget']['tokens'] / 1e6:.1f} million", kind="raw"),
    Column("Held-out tau", lambda head: f"{head.told['held_out']['tau']:.2f}", kind="raw"),
    Column(
        "Conditional acceptance by depth",
        lambda head: " ".join(f"{share:.2f}" for share in head.told["held_out"]["conditional"]),
        kind="raw",
    ),
)


def curve_chart(heads: Sequence[Head], target: str) -> str:
    """Return the SVG of all heads' curves."""
    return LineFigure(
        f"Tau on held-out texts by training tokens, {target}",
        curves=tuple(_drawn(head) for head in heads),
        x_name="million tokens read in training",
        is_origin=True,
        least=1,
        subtitle="Tokens per target forward, predicted from held-out text; 1 is plain decoding.",
    ).svg()


def _drawn(head: Head) -> Curve:
    xs, ys = zip(*head.curve, strict=True)
    return Curve(f"{head.name} {head.curve[-1][1]:.2f}", xs, ys, words=_words(head))


def _words(head: Head) -> str:
    (first_x, first_y), (last_x, last_y) = head.curve[0], head.curve[-1]
    return f"{head.name}: {first_y:.2f} after {first_x:.1f} and {last_y:.2f} after {last_x:.1f} million tokens."
