"""A diagnosis on a terminal: the answer first, then what to fix, then the evidence.

Example: `print_findings(check_machine(), console)` prints a line for each check, and a remedy below where one is due.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider.doctor.accuracy import DepthAccuracy
from outrider.doctor.diagnose import Diagnosis
from outrider.doctor.finding import Finding
from outrider.records.display import visible_line
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["print_diagnosis", "print_findings", "sentence_of"]

STYLES = {"ok": "green", "warn": "yellow", "problem": "bold red"}
LEGEND = {
    "accepted": "accepted: guesses up to this depth are right",
    "own": "own: this guess is right where those before it are, read from the drafter's own states",
    "taught": "taught: the same with the target's states",
}
COLUMNS: tuple[Column[DepthAccuracy], ...] = (
    Column("depth", lambda one: str(one.depth)),
    Column("places", lambda one: str(one.count), drop=1),
    Column("accepted", lambda one: f"{one.accepted:.1%}", legend=LEGEND["accepted"]),
    Column("own", lambda one: f"{one.own:.1%}", legend=LEGEND["own"]),
    Column("taught", lambda one: f"{one.taught:.1%}", legend=LEGEND["taught"]),
)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print one entry for each finding: level, check and evidence side by side, the remedy below."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for overflow in ("ignore", "ignore", "fold"):
        table.add_column(no_wrap=overflow == "ignore", overflow=overflow)
    for one in findings:
        evidence = Text(visible_line(one.evidence))
        table.add_row(Text(one.level, style=STYLES[one.level]), Text(one.check), evidence)
        if one.remedy:
            table.add_row("", "", Text(f"-> {visible_line(one.remedy)}", style="bold"))
    console.print(table)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the answer, the findings, and accuracy by depth."""
    print_note(sentence_of(diagnosis), console, style="bold")
    console.print()
    print_findings(diagnosis.findings, console)
    if diagnosis.depths:
        title = f"as it is: {diagnosis.num_positions} positions of {diagnosis.num_prompts} answers"
        print_sheet(Sheet(title, COLUMNS, diagnosis.depths), console)
    if diagnosis.fixed_depths:
        print_sheet(Sheet("with the remedies", COLUMNS, diagnosis.fixed_depths), console)
    if diagnosis.output is not None:
        print_note(f"corrected copy: {diagnosis.output}", console, style="bold")


def sentence_of(diagnosis: Diagnosis) -> str:
    """Return the answer in a sentence."""
    problems = [one for one in diagnosis.findings if one.level == "problem"]
    tau = "does not load" if diagnosis.tau is None else f"has tau {diagnosis.tau:.2f}"
    name = f"{diagnosis.checkpoint} ({diagnosis.method}) {tau} on {diagnosis.target}"
    if not problems:
        return f"{name}: nothing is wrong with it."
    first = problems[0]
    gain = "" if diagnosis.fixed_tau is None else f", which brings tau to {diagnosis.fixed_tau:.2f}"
    return f"{name}: fix the {first.check} first{gain}."
