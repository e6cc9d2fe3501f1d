"""The answer of a run in a sentence: which method, how many times as fast, where, and whether the text is the target's.

Example: "hybrid writes the text of smollm2-135m 1.52 times as fast as plain decoding (95 % interval 1.29 to 1.86), at
batch 1 and temperature 0, and every answer is plain decoding's own."
"""

from outrider.report.sources import Source
from outrider.results.best import OURS, Setting, best_of, comparable, interval_of, is_faster, settings_of
from outrider.results.pages.chart import described
from outrider.results.rows import Report, Row
from outrider.results.tables.cells import interval_text, number_text

__all__ = ["answer_of", "facts_of", "fastest_of", "other_answers", "place_of"]


def answer_of(source: Source) -> str:
    """Return what a reader wants to know first."""
    if source.tune is not None:
        return source.tune.sentence
    if source.quality is not None:
        first, reference = source.quality.lines[0], source.quality.reference
        return (
            f"{first.model.name} with weights {first.model.weights} has the same most probable token as "
            f"{reference.weights} at {first.prompts.agreement:.1%} of {first.prompts.num_positions:,} tokens of "
            "prompts."
        ).replace("%", " %")
    assert source.bench is not None, "a source is one of three"
    settings = _compared(source.bench)
    if settings:
        return _sentence(source.bench, settings[0])
    return f"This run of {source.bench.target} compares no method with plain decoding."


def other_answers(source: Source) -> list[str]:
    """Return the answers for the other settings of a benchmark."""
    report = source.bench
    return [] if report is None else [_short(report, setting) for setting in _compared(report)[1:]]


def facts_of(source: Source) -> list[tuple[str, str]]:
    """Return the few facts that stand below the answer."""
    report = source.bench
    facts: list[tuple[str, str]] = []
    if report is not None and (settings := _compared(report)):
        best = best_of(comparable(report.rows, settings[0]))
        prompts = [row.num_prompts for row in report.rows if Setting.of(row) == settings[0]]
        facts = [
            ("Best method", best.label),
            ("Speedup", interval_text(best.speedup)),
            ("Tokens per second", f"{number_text(best.tokens_per_s, '.0f')}"),
            ("Prompts × repeats", f"{max(prompts)} × {best.num_repeats}"),
        ]
    if source.manifest is not None:
        facts += [("Machine", described(source.manifest.hardware)), ("Measured on", source.manifest.started[:10])]
    return facts


def place_of(setting: Setting) -> str:
    """Return a setting in words."""
    engine = "" if setting.engine == OURS else f"on {setting.engine}, "
    return f"{engine}batch {setting.batch}, temperature {setting.temperature:g}"


def fastest_of(report: Report) -> Row | None:
    """Return the best method at the first setting where methods were compared; None without one."""
    return next((best_of(comparable(report.rows, setting)) for setting in _compared(report)), None)


def _compared(report: Report) -> list[Setting]:
    return [setting for setting in settings_of(report.rows) if comparable(report.rows, setting)]


def _sentence(report: Report, setting: Setting) -> str:
    best = best_of(comparable(report.rows, setting))
    if not is_faster(best):
        return (
            f"Nothing is faster than plain decoding of {report.target} beyond chance, {place_of(setting)}: the best, "
            f"{best.label}, is {_times(best)} as fast, so leave drafting off."
        )
    return (
        f"{best.label} writes the text of {report.target} {_times(best)} as fast as plain decoding, "
        f"{place_of(setting)}, and {_verdict(best)}."
    )


def _short(report: Report, setting: Setting) -> str:
    place, best = place_of(setting), best_of(comparable(report.rows, setting))
    place = place[0].upper() + place[1:]
    if not is_faster(best):
        return f"{place}: nothing is faster beyond chance; the best, {best.label}, is {_times(best)} as fast."
    return f"{place}: {best.label}, {_times(best)} as fast; {_verdict(best)}."


def _times(row: Row) -> str:
    found = interval_of(row)
    ends = " (one prompt alone)" if found.low is None else f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    return f"{found.point:.2f} times{ends}"


def _verdict(row: Row) -> str:
    found = row.lossless
    if found.verdict == "ties":
        return f"every answer is plain decoding's own but for {found.ties} numerical ties"
    if found.verdict == "exact":
        return "every answer is plain decoding's own"
    return "nobody compared its texts with plain decoding's"
