"""An audit's verdict as lines for a terminal: one for each layer, and one for each finding that is no pass.

Example: `PASS  text  1536 tokens of 32 answers are plain decoding's`; what does not fit goes on below the sentence.
"""

import textwrap

from rich.console import Console
from rich.text import Text

from outrider.audit.report import AuditReport, Verdict
from outrider.records.display import visible_line

__all__ = ["print_report"]

STYLES: dict[Verdict, str] = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
LEAST_WIDTH = 30


def print_report(report: AuditReport, console: Console) -> None:
    """Print the verdict, layer by layer."""
    _say(console, f"{report.target}: {', '.join(report.methods)}")
    for layer in report.layers:
        _say(console, layer.sentence, layer.verdict, f"{layer.name:<10}")
        wrong = [finding for finding in layer.findings if finding.verdict != "PASS"]
        for finding in wrong[1:]:  # the sentence names the first
            _say(console, f"{finding.name}: {finding.detail}", finding.verdict, " " * 10)
    _say(console, f"{report.sentence} ({report.seconds:.0f} s)", report.verdict)


def _say(console: Console, words: str, verdict: Verdict | None = None, name: str = "") -> None:
    head = "" if verdict is None else f"{verdict:<13}"
    indent = " " * len(head + name)
    width = max(LEAST_WIDTH, console.width - len(indent))
    first, *more = textwrap.wrap(visible_line(words), width, break_on_hyphens=False) or [""]
    line = Text(head, style="" if verdict is None else STYLES[verdict])
    console.print(line.append(f"{name}{first}", style="default"))
    for rest in more:
        console.print(Text(f"{indent}{rest}"))
