"""The README's view of a filed race between engines: a bar chart, the methods, and the engines in one small table.

The race is the table of engines and methods in docs/results/engines.md, written by `benchmarks/peers/same_file.py`: one
GGUF file, one request at a time, greedy, tokens per second of each engine and method by category. Example: with plain
decoding at 66.3 tokens per second on chat and `eagle3` at 95.2, `eagle3` is shown as 1.44.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from grids import lines_of

from outrider.errors import ConfigError
from outrider.proposers import REGISTRY, proposer_class
from outrider.records.display import markdown_code
from outrider.results.figures.bars import BarFigure, BarRow, Segment
from outrider.results.figures.canvas import Colour

__all__ = ["Lap", "engine_table", "footnote_of", "laps_of", "method_table", "race_chart", "same_file_table"]

SHOWN = ("chat", "editing")
"""The categories of the README: text written freely, and text that copies its prompt."""
OURS, PLAIN = "outrider", "plain"
PEERS = ("llama.cpp", "vllm", "transformers")
NAMES = {OURS: "Outrider", "vllm": "vLLM"}
MEANINGS = {"chat": "chat: written freely", "editing": "editing: copies its prompt"}
HUES = {"chat": Colour.HUE_1, "editing": Colour.HUE_2}


class Lap(NamedTuple):
    """One method of one engine, with its tokens per second by category."""

    engine: str
    method: str
    rates: Mapping[str, float]


def laps_of(page: Path) -> list[Lap]:
    """Return the rows of the page's table of engines and methods, at one request.

    Raises:
        ConfigError: if the page does not exist, or has no such table.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    lines = [line for line in text[text.find("| requests | engine | method |") :].splitlines() if line[:2] == "| "]
    head = _cells(lines[0]) if lines else []
    if head[:3] != ["requests", "engine", "method"]:
        raise ConfigError(f"{page} has no table of engines; write it with benchmarks/peers/same_file.py")
    columns = {name.removesuffix(", tok/s"): place for place, name in enumerate(head) if name.endswith(", tok/s")}
    laps = []
    for line in lines[2:]:
        cells = _cells(line)
        if cells[0] != "1":
            break
        rates = {name: float(cells[place].rstrip("*")) for name, place in columns.items()}
        laps.append(Lap(cells[1], cells[2], rates))
    return laps


def footnote_of(page: Path) -> str:
    """Return the paragraph that says what ran where, and the page's name."""
    paragraphs = page.read_text(encoding="utf-8").split("\n\n")
    said = next(text for text in paragraphs if text.startswith("Greedy decoding"))
    return f"{' '.join(said.split())} Source: docs/results/{page.name}."


def method_table(laps: Sequence[Lap], folder: str, sentences: Mapping[str, str]) -> str:
    """Return one row per method: a sentence, whether it needs weights, and its speedup by category.

    A scripted one is an instrument of the benchmark, and left out.
    """
    ours = {lap.method: lap.rates for lap in laps if lap.engine == OURS}
    plain = ours[PLAIN]
    body = [
        [
            f"[{markdown_code(name)}]({folder}/{name}.md)",
            sentences[name],
            "yes"
            if any(field.name == "checkpoint" for field in dataclasses.fields(proposer_class(name).Config))
            else "no",
            *(
                f"{ours[name][kind] / plain[kind]:.2f}" if name in ours else "1" if name == "none" else "-"
                for kind in SHOWN
            ),
        ]
        for name in REGISTRY
        if not proposer_class(name).scripted
    ]
    return lines_of(["Method", "Idea", "Weights", *SHOWN], body)


def engine_table(laps: Sequence[Lap]) -> str:
    """Return one row per engine: plain decoding over all prompts, and its fastest method by category."""
    body = []
    for engine in (OURS, *_peers(laps)):
        members = [lap for lap in laps if lap.engine == engine]
        plain = next(lap for lap in members if lap.method == PLAIN)
        best = [max(members, key=lambda lap: lap.rates[kind]) for kind in SHOWN]
        figures = (f"{lap.rates[kind]:.0f} ({lap.method})" for lap, kind in zip(best, SHOWN, strict=True))
        body.append([NAMES.get(engine, engine), f"{plain.rates['all']:.0f}", *figures])
    return lines_of(["Engine", "plain, tok/s", *(f"best on {kind}, tok/s" for kind in SHOWN)], body)


def same_file_table(page: Path) -> str:
    """Return one row per file at one request: llama.cpp plain, Outrider plain and its fastest method, in tokens/s.

    Raises:
        ConfigError: if the page does not exist, or has no such table.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    rows = [
        _cells(line)
        for line in text.partition("\n## Decoding\n")[2].partition("\n## ")[0].splitlines()
        if line[:1] == "|"
    ]
    if not rows or rows[0][:2] != ["requests", "file"]:
        raise ConfigError(f"{page} has no table of files; write it with benchmarks/peers/same_file.py")
    head, *body = rows
    shown = [name for name in head if name.endswith(" plain") or name == "Outrider best"]
    places = [head.index(name) for name in shown]
    lines = [[row[1], *(row[place] for place in places)] for row in body if row[0] == "1"]
    return lines_of(["One request, tok/s", *shown], lines)


def race_chart(laps: Sequence[Lap], footnote: str) -> str:
    """Return the chart as SVG: two bars per method, our methods first, then each peer's plain and fastest ones.

    Args:
        footnote: the source of the numbers.
    """
    shown = [lap for lap in laps if lap.engine == OURS] + [
        lap for engine in _peers(laps) for lap in _best(laps, engine)
    ]
    return BarFigure(
        "Tokens per second, one request at a time, greedy",
        rows=tuple(_bar(lap, kind) for lap in shown for kind in SHOWN),
        legend=tuple((HUES[kind], MEANINGS[kind]) for kind in SHOWN),
        footnote=footnote,
    ).svg()


def _bar(lap: Lap, kind: str) -> BarRow:
    """Return a bar; the second one of a method stands close to the first, under its name."""
    rate = lap.rates[kind]
    return BarRow(
        _name(lap) if kind == SHOWN[0] else "",
        segments=(Segment(0, rate, HUES[kind]),),
        is_close=kind != SHOWN[0],
        value=f"{rate:.0f}",
        words=f"{_name(lap)}, {kind}: {rate:.0f} tokens per second.",
    )


def _peers(laps: Sequence[Lap]) -> list[str]:
    raced = {lap.engine for lap in laps}
    return [engine for engine in PEERS if engine in raced]


def _best(laps: Sequence[Lap], engine: str) -> list[Lap]:
    members = [lap for lap in laps if lap.engine == engine]
    wanted = [next(lap for lap in members if lap.method == PLAIN)]
    wanted += [max(members, key=lambda lap: lap.rates[kind]) for kind in SHOWN]
    return list({lap.method: lap for lap in wanted}.values())


def _name(lap: Lap) -> str:
    return f"{NAMES.get(lap.engine, lap.engine)} {lap.method}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
