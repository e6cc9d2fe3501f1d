"""`outrider audit`: is every text the target's own, and would a fault have been seen?"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.audit.config import AuditConfig

if TYPE_CHECKING:
    from outrider.audit.report import AuditReport

__all__ = ["Audit"]


@dataclass(frozen=True, kw_only=True)
class Audit(AuditConfig):
    """Check that methods are lossless on a target, and that faults would be seen: PASS, FAIL or INCONCLUSIVE.

    With --endpoint it checks the texts of a server instead. Exit status 0 is a pass, 3 a failure, 4 neither: a planted
    fault was not caught, nothing was accepted, or a server does not repeat itself. A line for each layer goes to
    standard output, followed by one line of JSON unless that is a terminal. Give the same command again to resume an
    interrupted audit of methods.
    """

    def run(self) -> int:
        from outrider.audit import audit
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import progress

        directory: list[Path] = []

        def place() -> str:
            if self.endpoint is not None:
                return "; a server may change, so the same command begins again"
            return f"; finished comparisons are in {directory[0]}, and the same command goes on" if directory else ""

        with resumable(place), progress() as bar:
            report = audit(self, listen=lambda at: bar.show(*at), started=directory.append, ended=self._give)
        return report.status

    def _give(self, report: "AuditReport") -> None:
        """Print the report, and write it where it is wanted."""
        from outrider.audit.output.page import audit_page
        from outrider.audit.output.table import print_report
        from outrider.cli.terminal import console, end_with
        from outrider.records.codec import dumps
        from outrider.records.files import write_text

        print_report(report, console(sys.stdout))  # first: what a full disk keeps from a file is seen all the same
        if self.output is not None:
            write_text(self.output, dumps(report) + "\n")
        if self.page is not None:
            write_text(self.page, audit_page(report))
        places = ", ".join(str(path) for path in (self.page, self.output) if path is not None)
        end_with(dumps(report), f"All findings: {places}" if places else "")
