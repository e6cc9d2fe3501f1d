"""A process that dies before a file operation of one's choice."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


class Killed(BaseException):
    """The process is gone."""


class Watch:
    """Counts file operations whose path begins with `root`, and dies before the one with the number `deadly`."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.deadly = 0
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None or not arguments or not str(arguments[0]).startswith(self.root):
            return
        is_write = event == "open" and arguments[1] is not None and set(arguments[1]) & set("wax+")
        if event in WRITES or is_write:
            self.count += 1
            if self.count == self.deadly:
                self.root = None
                raise Killed


WATCH = Watch()
sys.addaudithook(WATCH)  # hooks stay until Python ends; without a root this one does nothing


@contextmanager
def dying_at(number: int, root: Path) -> Iterator[Watch]:
    """Die before the operation `number`, from 1; 0 only counts."""
    WATCH.root, WATCH.deadly, WATCH.count = str(root), number, 0
    try:
        yield WATCH
    finally:
        WATCH.root = None
