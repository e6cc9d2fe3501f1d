"""What tests of serving share: how a run is started, and what became of the fake servers."""

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from outrider.results.rows import Report

Run = Callable[..., Report]


def running(pids: Path) -> list[int]:
    """Which of the fake servers' processes still run; one that was ended before it could write its id has none."""
    lines = pids.read_text().splitlines() if pids.exists() else []
    named = [int(pid) for line in lines for pid in line.split()[:2]]
    return [pid for pid in named if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def commands(pids: Path) -> list[list[str]]:
    """The flags of each server that was started, in order."""
    return [json.loads(line.split(maxsplit=2)[2]) for line in pids.read_text().splitlines()]
