"""An audit's verdict as lines for a terminal: one for each layer, and one for each finding that is no pass.

Example: `PASS  text  1536 tokens of 32 answers are plain decoding's`.
"""

from rich.console import Console
from rich.text import Text

from outrider.audit.report import AuditReport, Verdict
from outrider.records.display import visible_line

__all__ = ["print_report"]

STYLES: dict[Verdict, str] = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}


def print_report(report: AuditReport, console: Console) -> None:
    """Print the verdict, layer by layer."""
    _say(console, f"{report.target}: {', '.join(report.methods)}")
    for layer in report.layers:
        _say(console, f"{layer.name:<9} {layer.sentence}", layer.verdict)
        wrong = [finding for finding in layer.findings if finding.verdict != "PASS"]
        for finding in wrong[1:]:  # the sentence names the first
            _say(console, f"{'':<9} {finding.name}: {finding.detail}", finding.verdict)
    _say(console, f"{report.sentence} ({report.seconds:.0f} s)", report.verdict)


def _say(console: Console, words: str, verdict: Verdict | None = None) -> None:
    line = Text("" if verdict is None else f"{verdict:<13}", style="" if verdict is None else STYLES[verdict])
    console.print(line.append(visible_line(words), style="default"))
