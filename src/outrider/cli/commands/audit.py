"""`outrider audit`: is every text the target's own, and would a fault have been seen?"""

import sys
from dataclasses import dataclass

from outrider.auditing.config import AuditConfig

__all__ = ["Audit"]


@dataclass(frozen=True, kw_only=True)
class Audit(AuditConfig):
    """Check that methods are lossless on a target, and that faults would be seen: PASS, FAIL or INCONCLUSIVE.

    Exit status 0 is a pass, 3 a failure, 4 neither: a planted fault was not caught, or nothing was accepted. A line for
    each layer goes to standard output, followed by one line of JSON unless that is a terminal.
    """

    def run(self) -> int:
        from outrider.auditing.page import audit_page
        from outrider.auditing.run import audit
        from outrider.auditing.table import print_report
        from outrider.cli.terminal import console, end_with, progress
        from outrider.records.codec import dumps
        from outrider.records.files import write_text

        with progress() as bar:
            report = audit(self, listen=lambda at: bar.show(*at))
        print_report(report, console(sys.stdout))  # first: what a full disk keeps from a file is seen all the same
        if self.output is not None:
            write_text(self.output, dumps(report) + "\n")
        if self.page is not None:
            write_text(self.page, audit_page(report))
        places = ", ".join(str(path) for path in (self.page, self.output) if path is not None)
        end_with(dumps(report), f"All findings: {places}" if places else "")
        return report.status
