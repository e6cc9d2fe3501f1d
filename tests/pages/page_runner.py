"""One page's examples, run in order: Python in one namespace, commands in one directory, outputs compared.

Every example ends in one of four ways, and the count of each is printed with the tests:

    run         it ran, and what the page shows of its output was compared
    parsed      the real command line read it; the page or the program says why it does not run here
    held        it is text of another file or a generated block, which a test compares with its source
    marked      no example: the page says what it is
"""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from page_blocks import ROOT, Block, blocks_of
from page_commands import LANGUAGES, CommandError, commands_of, read
from page_world import SMALL, TARGETS, World

from outrider.cli import main

ELSEWHERE = {
    "make": "a target of the Makefile takes minutes; its name is looked up",
    "pip": "it installs; extras and packages are looked up",
    "vllm": "vLLM is not in this environment; its JSON is read",
    "bash": "a script of minutes; its subcommand is looked up",
    "accelerate": "it starts several processes",
    "pre-commit": "another program",
    "git": "another program",
    "cd": "another program",
}
"""Programs that no page runs, with the reason."""
ADDRESS = "http://127.0.0.1:8000"
SHOWN = re.compile(r"print\(.*\)  # (.+)")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
HELP = (
    "Make it run: name what the reader has by a placeholder that tests/pages/page_world.py makes (MODEL, "
    "my_prompts.jsonl, runs/DIRECTORY, ...), shorten it by <!-- example: with OPTIONS --> above the fence, or say why "
    "it cannot run: <!-- example: only parsed: REASON --> (commands) or <!-- example: not run: REASON --> (no "
    "example). tests/pages/page_blocks.py lists the directives."
)


class Ending(NamedTuple):
    """What became of one example."""

    how: str
    place: str
    what: str
    reason: str = ""


class ExampleError(AssertionError):
    """Raised for an example that does not do what its page says; the message names the line and the remedy."""


def planned(block: Block) -> list[Ending]:
    """Return how each example of a block will end, without running it.

    Raises:
        ExampleError: for a block that is neither run nor marked.
    """
    place, first = block.place, block.text.strip().partition("\n")[0][:70]
    if block.is_inline:
        return []
    if block.is_generated:
        return [Ending("held", place, first, "generated: python tools/docs --check")]
    if (reason := block.words("not run")) is not None:
        return [Ending("marked", place, first, reason)]
    for kind in ("part of", "saved as"):
        if (file := block.words(kind)) is not None:
            return [Ending("held" if kind == "part of" else "run", place, first, f"{kind} {file}")]
    if block.has("output") or block.has("output, figures differ"):
        return [Ending("run", place, first, "compared with the output")]
    if block.language == "python":
        return [Ending("run", place, first)]
    if block.language in LANGUAGES:
        return [_planned_command(block, words) for words in commands_of(block.text)]
    raise ExampleError(f"{place}: a block of '{block.language or 'no language'}' is neither run nor marked. {HELP}")


def _planned_command(block: Block, words: Sequence[str]) -> Ending:
    reason = block.words("only parsed")
    if reason is None:
        reason = ELSEWHERE.get(words[0])
    if reason is None and any("://" in word and ADDRESS not in word for word in words[1:]):
        reason = "it asks a server elsewhere"
    if reason is None and words[0] == "python" and words[1].endswith(".py"):
        reason = "a script of minutes; its options are read by its own parser"
    return Ending("run" if reason is None else "parsed", block.place, shlex.join(words)[:90], reason or "")


def inline_commands(page: Path) -> Iterator[tuple[Block, str]]:
    """Yield the commands that stand in the page's sentences."""
    for block in blocks_of(page):
        if block.is_inline and re.match(r"(outrider|make|pip install|python -m|python \w+/)[ \w]", block.text + " "):
            yield block, block.text


def dotted_names(page: Path) -> Iterator[tuple[Block, str]]:
    """Yield the names of our modules, classes and functions that stand in the page's sentences."""
    for block in blocks_of(page):
        if block.is_inline and (found := re.match(r"outrider(?:\.[A-Za-z_]\w*)+(?=\(|$)", block.text)):
            yield block, found[0]


class Page:
    """A page whose examples run one after the other."""

    def __init__(self, page: Path, world: World, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.page, self.world, self.directory, self.capsys = page, world, directory, capsys
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""
        self.address = ""
        self.running = ExitStack()

    def run(self) -> None:
        """Run every block.

        Raises:
            ExampleError: for the first one that does not do what the page says.
        """
        blocks = blocks_of(self.page)
        words = (directive.words for block in blocks for directive in block.directives)
        self.world.furnish(self.directory, "\n".join([*(block.text for block in blocks), *words]))
        with self.running:
            for block in blocks:
                for ending in planned(block)[:1]:
                    if ending.how in ("run", "parsed") or block.has("part of"):
                        self._run(block)

    def _run(self, block: Block) -> None:
        try:
            self._dispatch(block)
        except ExampleError:
            raise
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            out, err = self.capsys.readouterr()
            raise ExampleError(
                f"{block.place}: this example fails: {said}\n{block.text}\n{out[-1500:]}{err[-1500:]}\n{HELP}"
            ) from error

    def _dispatch(self, block: Block) -> None:
        if (code := block.words("before")) is not None:
            self.capsys.readouterr()
            exec(compile(code, f"{block.place} (before)", "exec"), self.namespace)
            self.printed = self.capsys.readouterr().out
        if (file := block.words("part of")) is not None:
            _compare_with_file(block, ROOT / file)
        elif (file := block.words("saved as")) is not None:
            _parse(block)
            (self.directory / file).unlink(missing_ok=True)  # never through the link to a placeholder
            (self.directory / file).write_text(block.text, encoding="utf-8")
        elif block.has("output") or block.has("output, figures differ"):
            compare(block.text, self.printed, figures=not block.has("output"), place=block.place)
        elif block.language == "python":
            self._python(block)
        else:
            self._commands(block)

    def _python(self, block: Block) -> None:
        self.capsys.readouterr()
        code = self._addressed(block.text)
        for old, new in _replacements(shlex.split(block.words("with") or "")):
            if old not in code:
                raise ExampleError(f"{block.place}: the directive replaces '{old}', which is not there")
            code = code.replace(old, new)
        exec(compile("\n" * block.line + code, str(block.page), "exec"), self.namespace)
        self.printed = self.capsys.readouterr().out
        if (said := SHOWN.findall(block.text)) and self.printed.splitlines() != said:
            raise ExampleError(
                f"{block.place}: the comments behind print say\n{said}\nand it prints\n{self.printed}\nA comment "
                "behind a print is its output; put one that is none above the line."
            )

    def _commands(self, block: Block) -> None:
        self.capsys.readouterr()
        for words in commands_of(block.text):
            read(words)
            if _planned_command(block, words).how == "parsed":
                continue
            more = shlex.split(block.words("with") or "")
            status = self._command(words, more)
            if status:
                raise CommandError(f"{shlex.join(words)} ended with status {status}")
        self.printed = self.capsys.readouterr().out

    def _command(self, words: Sequence[str], more: Sequence[str]) -> int:
        program, *rest = [self._addressed(word) for word in words]
        if program == "outrider":
            small = [*_shortened(rest), *(word for word in more if "=>" not in word)]
            for old, new in _replacements(more):
                small = [new if word == old else word for word in small]
            self.world.furnish(self.directory, shlex.join(small))
            return self._serve(small) if rest[:1] == ["serve"] else main(small)
        if program == "curl":
            return self._curl(rest)
        if program == "python":
            return _python(rest)
        raise CommandError(f"{program} does not run here")

    def _serve(self, words: Sequence[str]) -> int:
        """Start a server that later blocks of the page ask."""
        self.running.close()
        command = [sys.executable, "-m", "outrider", *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.callback(server.communicate)
        self.running.callback(server.terminate)
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r" at (http://\S+)", line)
        if found is None:
            raise CommandError(f"the server did not start: {server.communicate()[1][-1000:]}")
        self.address = found[1]
        return 0

    def _curl(self, words: Sequence[str]) -> int:
        if not self.address:
            raise CommandError("no server runs: an example above must be outrider serve")
        done = subprocess.run(["curl", "-s", "--fail-with-body", *words], capture_output=True, text=True, check=False)
        print(done.stdout)
        return done.returncode

    def _addressed(self, text: str) -> str:
        return text.replace(ADDRESS, self.address) if self.address else text


def _replacements(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of `a=>b`; an `a` may hold signs of equality."""
    return [(old, new) for old, arrow, new in (word.rpartition("=>") for word in words) if arrow]


def _python(words: Sequence[str]) -> int:
    if words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
        return 0
    arguments, sys.argv = sys.argv, ["python", *words[2:]]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
            runpy.run_module(words[1], run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = arguments
    return 0


def _shortened(words: Sequence[str]) -> list[str]:
    """Return the command with the tiny target, its head, and the options that make it short."""
    name = words[0] if words else ""
    if name in ("drafters", "plan"):  # they load no weights
        return list(words)
    words = ["MODEL" if word in TARGETS else word for word in words if word != "..."]
    if name != "train":  # its method is what it makes
        words = [_with_head(word) for word in words]
    return [*words, *SMALL.get(name, ())]


def _with_head(word: str) -> str:
    """Return a method with the tiny target's head, which is not shipped."""
    found = re.fullmatch(r"eagle3(?::(.*))?", word)
    if found is None or "checkpoint=" in word:
        return word
    return ",".join(["eagle3:checkpoint=DIR", *filter(None, [found[1]])])


def _parse(block: Block) -> None:
    readers = {"json": json.loads, "jsonl": json.loads, "toml": tomllib.loads}
    if block.language in readers:
        readers[block.language](block.text)


def _compare_with_file(block: Block, file: Path) -> None:
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    missing = [line for line in block.text.splitlines() if line.strip() and line.strip() not in lines]
    if missing:
        raise ExampleError(f"{block.place}: {file.relative_to(ROOT)} has no line {missing[0]!r}; copy it from there")


def compare(shown: str, printed: str, *, figures: bool, place: str) -> None:
    """Compare what a page shows with what was printed; `...` is any lines, and with `figures` a number any number.

    Raises:
        ExampleError: if they differ.
    """
    pattern = "\n".join(_pattern(line, figures) for line in shown.rstrip().splitlines())
    pattern = re.sub(r"(?:^|\n)\.\.\.(?=\n|$)", r"(?:\n.*)*", pattern)
    text = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    if not re.fullmatch(pattern, text):
        raise ExampleError(
            f"{place}: the page shows\n{shown}\nand it prints\n{text}\nShow what it prints; `...` stands for lines "
            "left out, <!-- example: output, figures differ --> for numbers that depend on the machine."
        )


def _pattern(line: str, figures: bool) -> str:
    if line.strip() == "...":
        return "..."
    if not figures:
        return re.escape(line.rstrip())
    parts = NUMBER.split(line.rstrip())
    return r"\s*" + r"\s*[-+]?\d[\d,.e+-]*\s*".join(r"\s*".join(map(re.escape, part.split())) for part in parts)
