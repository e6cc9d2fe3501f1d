"""Training curves of the shipped heads: tau on held-out texts against training tokens, as a picture and a table.

Both are made from the `training.json` that every trained checkpoint carries (`outrider.train.card`).

Example: with 40 million tokens across 680 pixels, the evaluation after 10 million stands 170 pixels right of the axis.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.records.json_fields import read_json
from outrider.results.pages.svg import element, escaped, label, picture
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["Head", "curve_chart", "heads_table", "read_heads"]

WIDTH, TOP, LEFT, RIGHT, BOTTOM, MARGIN = 820, 76, 56, 716, 380, 16
SMALL, NORMAL, LARGE = 11, 13, 18
INK = "#747b85"
HUES = ("#2f81c7", "#c9642a", "#3f9a55", "#9a5fc0", "#b5872b", "#2a9d9d", "#c2527c", "#6d7d3a")
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
    most_x = max(x for head in heads for x, _ in head.curve)
    most_y = max(y for head in heads for _, y in head.curve) * 1.05
    title = f"Tau on held-out texts by training tokens, {target}"
    parts = [
        element("title", escaped(title), id="title"),
        element("desc", escaped(" ".join(_words(head) for head in heads)), id="desc"),
        label(MARGIN, 30, title, LARGE, font_weight="600"),
        label(MARGIN, 52, "Tokens per target forward, predicted from held-out text; 1 is plain decoding.", NORMAL),
        *_axes(most_x, most_y),
    ]
    free = 0.0
    for head, hue in zip(heads, HUES, strict=False):
        points = [(_x(x, most_x), _y(y, most_y)) for x, y in head.curve]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(element("path", d=f"M{path}", fill="none", stroke=hue, stroke_width=2, data_method=head.name))
        free = max(free + 14, points[-1][1] + 4)
        parts.append(label(RIGHT + 8, free, f"{head.name} {head.curve[-1][1]:.2f}", SMALL, fill=hue))
    return picture(parts, WIDTH, f"{BOTTOM + 56}", INK)


def _words(head: Head) -> str:
    (first_x, first_y), (last_x, last_y) = head.curve[0], head.curve[-1]
    return f"{head.name}: {first_y:.2f} after {first_x:.1f} and {last_y:.2f} after {last_x:.1f} million tokens."


def _axes(most_x: float, most_y: float) -> Iterator[str]:
    for tenth in range(10, int(most_y * 10) + 1, 2):
        y = _y(tenth / 10, most_y)
        yield element("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, stroke=INK, stroke_opacity=0.25)
        yield label(LEFT - 8, y + 4, f"{tenth / 10:.1f}", SMALL, text_anchor="end")
    step = next((step for step in (0.5, 1, 2, 5, 10, 20, 50) if most_x / step <= 9), most_x)
    for place in range(int(most_x / step) + 1):
        yield label(_x(place * step, most_x), BOTTOM + 18, f"{place * step:g}", SMALL, text_anchor="middle")
    yield label((LEFT + RIGHT) / 2, BOTTOM + 38, "million tokens read in training", SMALL, text_anchor="middle")


def _x(value: float, most: float) -> float:
    return LEFT + value / most * (RIGHT - LEFT)


def _y(value: float, most: float) -> float:
    return BOTTOM - (value - 1) / (most - 1) * (BOTTOM - TOP)
