"""`outrider quality`: measure what quantised weights, keys and values cost in quality."""

import sys
from dataclasses import dataclass

from outrider.quality.config import QualityConfig

__all__ = ["QualityCommand"]


@dataclass(frozen=True, kw_only=True)
class QualityCommand(QualityConfig):
    """Measure what quantised weights, keys and values cost: agreement, KL divergence and perplexity against the widened
    target.

    The table goes to standard output, followed by one line of JSON unless that is a terminal. Figures on the
    benchmark's prompts are filed in the cache. After an interruption the same command goes on.
    """

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.quality.measure import measure
        from outrider.quality.table import print_report
        from outrider.records.codec import dumps

        done: list[str] = []

        def place() -> str:
            kept = f"the figures of {', '.join(done)} are kept, and " if done else ""
            return f"; {kept}the same command goes on"

        with resumable(place), progress() as bar:
            report, unfinished = measure(self, lambda at: bar.show(*at), lambda line: done.append(line.label))
        print_report(report, console(sys.stdout))
        end_with(dumps(report), "")
        unfinished.end()
