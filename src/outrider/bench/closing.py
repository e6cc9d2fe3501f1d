"""The last lines of a benchmark: the best method for each batch, the command that runs it, the report, and a warning.

A method counts as best only if the low end of its interval is above 1; otherwise the line says to leave drafting off.
Scripted methods and rows with a violation are passed over. Each engine is compared with its own plain decoding.

    best at batch 1: hybrid, 1.69 [1.61, 1.78] times plain decoding
      outrider generate 'Why is the sky blue?' --target smollm2-135m --method hybrid
    batch 8: nothing is faster than plain decoding beyond chance; the best, suffix, is 0.96 [0.93, 0.99] times as fast

Plain decoding does the same work in every repeat. Where its rate differs by more than `STEADY`, something else used the
machine: ratios are of pairs side by side and hold better than absolute rates.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from outrider.costs.tables import STEADY
from outrider.export.deployment import ENGINES, deployment
from outrider.proposers.method_spec import MethodSpec
from outrider.results.derive import ALL
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.tables.cells import interval_text

__all__ = ["closing_lines"]

OURS = "outrider"


class _Named(NamedTuple):
    spec: MethodSpec
    budget: Literal["fixed", "auto"]


class _Setting(NamedTuple):
    engine: str
    batch: int
    temperature: float


def closing_lines(report: Report, methods: Sequence[MethodSpec]) -> tuple[str, ...]:
    """Return the closing lines of a run; commands are indented.

    Args:
        methods: methods of the run, for the settings of the best ones.
    """
    return (*_best(report, methods), *_disturbance(report.rows), *_place(report.run))


def _best(report: Report, methods: Sequence[MethodSpec]) -> Iterator[str]:
    specs = {spec.label: _Named(spec, "fixed") for spec in methods}
    specs |= {f"{spec.label} auto": _Named(spec, "auto") for spec in methods}
    settings = dict.fromkeys(
        _Setting(row.engine, row.batch, row.temperature) for row in report.rows if row.engine in (OURS, *SERVING)
    )
    temperatures = {setting.temperature for setting in settings}
    for setting in settings:
        rows = _comparable(report.rows, setting)
        if not rows:
            continue
        place = f"batch {setting.batch}" + (f", temperature {setting.temperature:g}" * (len(temperatures) > 1))
        place = place if setting.engine == OURS else f"{setting.engine}, {place}"
        sure = [row for row in rows if _is_faster(row)]
        yield from _about(max(sure or rows, key=_point), place, report.target, specs)


def _comparable(rows: Sequence[Row], setting: _Setting) -> list[Row]:
    """Return the rows of methods at one setting, over all categories; none if several were measured and not summed up.

    Without a method there is nothing to compare.
    """
    members = [row for row in rows if _Setting(row.engine, row.batch, row.temperature) == setting]
    categories = {row.category for row in members}
    if len(categories) > 1:
        members = [row for row in members if row.category == ALL]
    return [
        row
        for row in members
        if row.method != PLAIN and row.speedup is not None and not row.scripted and row.lossless.verdict != "violated"
    ]


def _point(row: Row) -> float:
    assert row.speedup is not None, "compared rows have one"
    return row.speedup.point


def _is_faster(row: Row) -> bool:
    """Return whether the whole interval is above 1; of one prompt alone, the figure itself."""
    found = row.speedup
    return found is not None and (found.point if found.low is None else found.low) > 1


def _about(best: Row, place: str, target: str, specs: Mapping[str, _Named]) -> Iterator[str]:
    """Yield what is best at a setting, and the command that runs it."""
    found = best.speedup
    assert found is not None, "compared rows have one"
    if not _is_faster(best):
        yield (
            f"{place}: nothing is faster than plain decoding beyond chance, so leave drafting off; the best, "
            f"{best.label}, is {interval_text(found)} times as fast"
        )
        return
    doubt = ", unverified" if best.lossless.verdict == "unverified" else ""
    yield f"best at {place}: {best.label}, {interval_text(found)} times plain decoding{doubt}"
    named = specs.get(best.method)
    if named is not None and best.engine in ENGINES:
        command = deployment(named.spec, target, best.engine, budget=named.budget).command
        yield from () if command is None else (f"  {command}",)


def _disturbance(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a warning if plain decoding was not equally fast in every repeat."""
    spreads = [row.repeat_spread or 0.0 for row in rows if row.engine in (OURS, *SERVING) and row.method == PLAIN]
    largest = max(spreads, default=0.0)
    if largest > STEADY:
        yield (
            f"the machine was disturbed: plain decoding's repeats were {largest:.0%} apart; ratios are of pairs side "
            "by side, but measure again on a quiet machine before you quote a rate"
        )


def _place(run: str | None) -> Iterator[str]:
    if run is not None:
        yield f"report: {run}/report.md with all columns; as data: report.json there"
