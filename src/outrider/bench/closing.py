"""The last lines of a benchmark: the best method for each batch, the command that runs it, the report, and a warning.

A method counts as best only if the low end of its interval is above 1 (`outrider.results.best`); otherwise the line
says to leave drafting off.

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
from outrider.results.best import OURS, best_of, comparable, is_faster, settings_of
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.tables.cells import interval_text

__all__ = ["closing_lines"]


class _Named(NamedTuple):
    spec: MethodSpec
    budget: Literal["fixed", "auto"]


def closing_lines(report: Report, methods: Sequence[MethodSpec]) -> tuple[str, ...]:
    """Return the closing lines of a run; commands are indented.

    Args:
        methods: methods of the run, for the settings of the best ones.
    """
    return (*_best(report, methods), *_disturbance(report.rows), *_place(report.run))


def _best(report: Report, methods: Sequence[MethodSpec]) -> Iterator[str]:
    specs = {spec.label: _Named(spec, "fixed") for spec in methods}
    specs |= {f"{spec.label} auto": _Named(spec, "auto") for spec in methods}
    settings = settings_of(report.rows)
    temperatures = {setting.temperature for setting in settings}
    for setting in settings:
        rows = comparable(report.rows, setting)
        if not rows:
            continue
        place = f"batch {setting.batch}" + (f", temperature {setting.temperature:g}" * (len(temperatures) > 1))
        place = place if setting.engine == OURS else f"{setting.engine}, {place}"
        yield from _about(best_of(rows), place, report.target, specs)


def _about(best: Row, place: str, target: str, specs: Mapping[str, _Named]) -> Iterator[str]:
    """Yield what is best at a setting, and the command that runs it."""
    found = best.speedup
    assert found is not None, "compared rows have one"
    if not is_faster(best):
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
