"""Blocks of the pages, read by markdown-it, with the directives above them.

A directive is an HTML comment, which no reader sees. It stands directly above its block:

    <!-- example: only parsed: REASON -->     commands: the real command line reads them, nothing runs
    <!-- example: not run: REASON -->         no example at all: a formula, a picture in letters, another program's file
    <!-- example: with --max-new-tokens 4 --> options added when the commands run; `a=>b` puts the word b in a's place
    <!-- example: saved as FILE -->           the text is a file that later commands of the page read
    <!-- example: part of FILE -->            the text stands, line by line, in this file of the checkout
    <!-- example: output -->                  what the last block printed; a line `...` stands for any lines
    <!-- example: output, figures differ -->  the same; every number stands for any number
    <!-- example: before                      Python that the reader does not need, run before the block
    CODE
    -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks", "workloads", "recipes")
DIRECTIVE = re.compile(r"<!-- example: (?P<words>.*?)\s*-->\s*", re.DOTALL)
KINDS = ("only parsed", "not run", "with", "saved as", "part of", "output, figures differ", "output", "before")
REASONED = ("only parsed", "not run")
GENERATED, CLOSED = "<!-- generated:", "<!-- /generated -->"


class Directive(NamedTuple):
    kind: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a page, or one command in a sentence."""

    page: Path
    line: int
    language: str
    text: str
    directives: tuple[Directive, ...] = field(default=())
    is_generated: bool = False
    is_inline: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def words(self, kind: str) -> str | None:
        """Return what the directive of this kind says, None without one."""
        return next((one.words for one in self.directives if one.kind == kind), None)

    def has(self, kind: str) -> bool:
        return self.words(kind) is not None


class PageError(AssertionError):
    """Raised for a directive that cannot be obeyed."""


def example_pages() -> list[Path]:
    """Return every page whose examples are tried; the notebook of the laboratory and the heads' cards are records."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found]


@cache
def blocks_of(page: Path, text: str | None = None) -> tuple[Block, ...]:
    """Return the blocks of a page in order.

    Raises:
        PageError: for a directive that is none, or stands above nothing.
    """
    return tuple(_blocks(page, page.read_text(encoding="utf-8") if text is None else text))


def _blocks(page: Path, text: str) -> Iterator[Block]:
    directives: list[Directive] = []
    is_generated = False
    for token in MarkdownIt().enable("table").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            is_generated = _is_generated(token.content, is_generated)
            directives += _directives(token.content, f"{page.name}:{line}")
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.strip() else ""
            yield Block(
                page=page,
                line=line,
                language=language,
                text=token.content,
                directives=tuple(directives),
                is_generated=is_generated,
            )
            directives.clear()
        elif token.type == "inline":
            if directives:
                raise PageError(f"{page.name}:{line}: no block follows the directive '{directives[0].kind}'")
            for child in token.children or ():
                if child.type == "code_inline":
                    yield Block(
                        page=page, line=line, language="", text=child.content, is_inline=True, is_generated=is_generated
                    )
    if directives:
        raise PageError(f"{page.name}: no block follows the directive '{directives[0].kind}'")


def _is_generated(comment: str, before: bool) -> bool:
    opened, closed = comment.rfind(GENERATED), comment.rfind(CLOSED)
    return before if opened == closed else opened > closed


def _directives(comment: str, place: str) -> Iterator[Directive]:
    for found in DIRECTIVE.finditer(comment):
        words = found["words"]
        kind = next((kind for kind in KINDS if re.match(rf"{kind}(:|\s|$)", words)), None)
        if kind is None:
            raise PageError(f"{place}: '{words}' is no directive; known: {', '.join(KINDS)}")
        said = words[len(kind) :].lstrip(":").strip("\n") if kind == "before" else words[len(kind) :].lstrip(": ")
        if kind in REASONED and not said:
            raise PageError(f"{place}: give a reason: <!-- example: {kind}: REASON -->")
        yield Directive(kind, said)
