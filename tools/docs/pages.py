"""Generated docs: this program writes what can be taken from code and filed runs, and tests check that it is current.

    python tools/docs            rewrite what is out of date
    python tools/docs --check    change nothing; exit 1 and name the pages that are out of date

A page holds generated blocks between two comment lines of their own, `generated:NAME` and `/generated`, each inside
`<!--` and `-->`. `blocks.py` knows the names. Everything outside the blocks is written by hand. With a
committed run in docs/results, its picture is written too (`outrider.results.pages.chart`).

Example: `filled("a\\n<!-- generated:methods -->\\nold\\n<!-- /generated -->\\n", {"methods": lambda _: "new"})` puts
"new" in the place of "old".

Nothing imports this module; with `blocks` it stands above the command line, whose help it prints.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from outrider.errors import ConfigError, OutriderError, nearest

__all__ = ["filled", "main", "outdated", "pages"]

Block = Callable[[str], str]
"""From the block's argument (what follows `NAME:`, or nothing) to its Markdown."""

OPENING = re.compile(r"<!-- generated:(?P<name>[^:\s]+)(?::(?P<argument>\S+))? -->")
CLOSING = "<!-- /generated -->"


def filled(page: str, blocks: Mapping[str, Block]) -> str:
    """Return the page with every generated block rewritten.

    Raises:
        ConfigError: for a block with an unknown name, or without an end.
    """
    lines: list[str] = []
    rest = iter(page.split("\n"))
    for line in rest:
        lines.append(line)
        if opening := OPENING.fullmatch(line):
            name, argument = opening["name"], opening["argument"] or ""
            if name not in blocks:
                raise ConfigError(f"a page asks for the generated block '{name}'{nearest(name, blocks)}")
            if CLOSING not in rest:  # consumes the old content
                raise ConfigError(f"the generated block '{name}' has no end; close it with {CLOSING}")
            lines += ["", blocks[name](argument).strip("\n"), "", CLOSING]
    return "\n".join(lines)


def pages(root: Path) -> list[Path]:
    """Return every page that may hold generated blocks."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.exists()]


def outdated(root: Path) -> dict[Path, str]:
    """Return the files that are out of date, with their new content.

    Raises:
        ConfigError: if there is no docs/ in `root`, a method has no page, or a block cannot be written.
    """
    from blocks import blocks_of, method_pages, pictures

    if not (root / "docs").is_dir():
        raise ConfigError(f"{root} has no docs/; run this in a checkout of the project or name one")
    for page in method_pages(root):
        if not page.exists():
            raise ConfigError(f"the method '{page.stem}' has no page; write {page.relative_to(root)}")
    blocks = blocks_of(root)
    wanted = {page: filled(page.read_text(encoding="utf-8"), blocks) for page in pages(root)} | pictures(root)
    return {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check, and return the exit status: 1 if `--check` found something, 2 if a block cannot be written."""
    parser = argparse.ArgumentParser(prog="python tools/docs", description="Write the generated docs.")
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).parents[2])
    parser.add_argument("--check", action="store_true", help="change nothing and name what is out of date")
    given = parser.parse_args(arguments)
    try:
        found = outdated(given.root)
    except OutriderError as error:
        print(f"outrider: {error}", file=sys.stderr)
        return 2
    for path, text in found.items():
        print(f"{'out of date' if given.check else 'written'}: {path.relative_to(given.root)}")
        if not given.check:
            path.write_text(text, encoding="utf-8")
    return 1 if found and given.check else 0
