"""Calling a command as a user would, and reading the one line that it says about what is wrong."""

import pytest

from outrider.cli import main


def status_of(*words: object) -> int:
    """The exit status of `outrider` with these words."""
    try:
        return main([*map(str, words)])
    except SystemExit as stop:  # values are checked while options are read
        return int(str(stop.code))


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error: one line of ours."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("outrider: ")]
    assert len(lines) == 1
    return lines[0]
