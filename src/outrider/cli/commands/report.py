"""`outrider report`: write one HTML page about finished runs."""

import json
import logging
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["ReportCommand"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write one self-contained HTML page about finished runs: the answer first, then figures and where they come from.

    A run is a directory of `outrider bench` or `outrider tune`, a report.json, or the line of JSON of `outrider
    quality`; several stand side by side. The file loads nothing from anywhere and can be mailed. Standard output ends
    with the file's place, as one line of JSON unless that is a terminal.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs."""
    output: Path | None = None
    """File to write; by default report.html in the first run's directory, or NAME.html beside a file."""
    open: bool = False
    """Show the page in the browser."""

    def run(self) -> None:
        from outrider.cli.terminal import end_with
        from outrider.errors import ConfigError
        from outrider.report.page import write_page
        from outrider.report.sources import read_source

        if not self.runs:
            raise ConfigError(
                "there is no run to report; give the directory of one, such as runs/20260101-120000-quick"
            )
        sources = [read_source(path) for path in self.runs]
        first = self.runs[0]
        output = self.output or (first / "report.html" if first.is_dir() else first.with_suffix(".html"))
        write_page(sources, output)
        answer = {"schema": "outrider.report/1", "output": str(output), "bytes": output.stat().st_size}
        if self.open and not webbrowser.open(output.resolve().as_uri()):
            log.warning("no browser could be started; open %s in one", output)
        end_with(json.dumps(answer), f"report: {output}")
