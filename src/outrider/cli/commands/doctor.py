"""`outrider doctor`: check the machine, or say why a drafter is accepted so seldom."""

import logging
import sys
from dataclasses import dataclass

from outrider.doctor.config import DoctorConfig
from outrider.errors import ConfigError, on_one_line

__all__ = ["FOUND", "DoctorCommand"]

log = logging.getLogger(__name__)
FOUND = 3
"""Exit status where a problem was found."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(DoctorConfig):
    """Say why a drafter is accepted so seldom and what to fix; without a target, check this machine.

    The target answers some prompts, and the drafter guesses along its answers: as it is, and with one thing after
    another read differently. Findings go to standard output, followed by one line of JSON unless that is a terminal.
    The exit status is 0 without a problem and 3 with one.
    """

    def run(self) -> int:
        from outrider.cli.terminal import console, end_with, progress
        from outrider.doctor.finding import is_sound
        from outrider.records.codec import dumps

        screen = console(sys.stdout)
        if not self.drafter:
            try:
                from outrider.doctor.machine import check_machine
                from outrider.doctor.report import print_findings
            except ImportError as error:  # what other commands end with, too
                raise ConfigError(f"{on_one_line(str(error))}; run pip install . in the checkout") from error

            findings = check_machine()
            print_findings(findings, screen)
            end_with(dumps({"findings": findings}), "")
            return 0 if is_sound(findings) else FOUND
        from outrider.doctor.diagnose import diagnose
        from outrider.doctor.report import print_diagnosis

        with progress() as bar:
            found = diagnose(self, bar.show)
        print_diagnosis(found, screen)
        if self.fix and found.output is None:
            log.info("no copy was written: nothing that was tried fits the texts better")
        end_with(dumps(found), "")
        return 0 if is_sound(found.findings) else FOUND
