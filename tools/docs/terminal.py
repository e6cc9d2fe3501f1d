"""The picture of a command's coloured output: the command runs, and rich draws what it printed.

    python tools/docs/terminal.py docs/start/drafts.svg generate "Why is the sky blue?" --method eagle3 --show-drafts

The command writes into a pipe with FORCE_COLOR set, so its escape sequences are those of a terminal, and
`rich.console.Console(record=True).export_svg` turns them into an SVG. Nothing is edited by hand.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

__all__ = ["drawn", "main"]

COLUMNS = 92


def drawn(command: str, output: str) -> str:
    """Return the SVG of a command line and what it printed, escape sequences included."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold"), command))
    console.print(Text.from_ansi(output.rstrip("\n")))
    picture = console.export_svg(title="outrider generate", theme=MONOKAI, unique_id="drafts")
    return re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # fonts of another server


def main(arguments: Sequence[str]) -> int:
    """Run a command of Outrider and write its picture; return the command's exit status."""
    out, words = Path(arguments[0]), list(arguments[1:])
    coloured = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    ran = subprocess.run(
        [sys.executable, "-m", "outrider", *words], env=coloured, text=True, stdout=subprocess.PIPE, check=False
    )
    if not ran.returncode:
        command = " ".join(["outrider", *(f'"{word}"' if " " in word else word for word in words)])
        out.write_text(drawn(command, ran.stdout), encoding="utf-8")
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
