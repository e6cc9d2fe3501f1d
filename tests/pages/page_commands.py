"""Commands of the pages: split as a shell does it, and read by the real command line of their program.

A program is one function that takes the words behind its name and raises `CommandError` where it would refuse them.
`outrider` builds the command's dataclass; a script of ours is started and stopped where it has read its options; of
`make` and `pip` the names of targets and extras are looked up.

    outrider bench --bathces 1     bench has no option --bathces; did you mean '--batches'?
"""

import argparse
import json
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tyro
from page_blocks import ROOT

import outrider.cli as command_line
from outrider.bench.cells import cells_of
from outrider.bench.config import BenchConfig
from outrider.cli.parsing import UsageError
from outrider.data.workloads import load_category
from outrider.errors import OutriderError
from outrider.proposers import REGISTRY, method_name
from outrider.proposers.method_spec import method_specs

LANGUAGES = ("bash", "sh", "shell", "console")
WITHOUT_OPTIONS = ("src/outrider/vllm/environment.py", "src/outrider/llama_cpp/environment.py", "dev/archive_heads.py")
"""Programs that take paths and no option."""


class CommandError(AssertionError):
    """Raised for words that a program refuses."""


class _ReadError(Exception):
    """Raised inside a script once its options are read."""


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of a shell block; variables that the block sets are put in."""
    variables: dict[str, str] = {}
    for line in _joined(text):
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if "|" in words:  # what follows is another program's
            words = words[: words.index("|")]
        if len(words) == 1 and (found := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
            variables[found[1]] = found[2]
            continue
        yield words


def _joined(text: str) -> Iterator[str]:
    """Yield logical lines: continued by a backslash, or inside an open quotation."""
    held = ""
    for line in text.splitlines():
        held += line.removeprefix("$ ") if not held else line
        if held.endswith("\\"):
            held = held[:-1]
            continue
        try:
            shlex.split(held, comments=True)
        except ValueError:
            held += "\n"
            continue
        yield held
        held = ""
    if held:
        raise CommandError(f"'{held.strip()}' has an open quotation or nothing behind its backslash")


def read(words: Sequence[str], *, is_inline: bool = False) -> str:
    """Read a command without running it, and return its program.

    Args:
        is_inline: whether it stands in a sentence, where required parts may be missing.

    Raises:
        CommandError: for a program that is unknown here, or words that it refuses.
    """
    program, *rest = words
    if program not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise CommandError(f"'{program}' is no program that can be checked here (known: {known}); add it to PROGRAMS")
    if rest[-1:] == ["..."]:
        rest, is_inline = rest[:-1], True
    if is_inline:
        rest = ["eagle3" if word == "METHOD" else word for word in rest]
    try:
        PROGRAMS[program](rest)
    except (CommandError, OutriderError) as error:
        if is_inline and _is_only_short(str(error)):
            return program
        raise CommandError(f"{' '.join(words)}: {error}") from error
    return program


def _is_only_short(said: str) -> bool:
    """Return whether nothing but a required part is missing."""
    return re.match(r"[\w-]+ ?[\w-]* needs [A-Za-z-]|give ", said) is not None


def _outrider(words: Sequence[str]) -> None:
    if not words or words[0] in ("--version", "--help"):
        return
    command = read_command(words)
    if isinstance(config := getattr(command, "config", None), Callable):  # type: ignore[arg-type]
        config = config()
    if isinstance(config, BenchConfig):
        _check_cells(config, "--categories" in words)
    for name in ("method", "methods"):
        given = getattr(command, name, ())
        _check_methods([given] if isinstance(given, str) else given if isinstance(given, tuple) else [])


def read_command(words: Sequence[str]) -> Any:
    """Return the dataclass that the command line makes of the words."""
    words = list(words)
    if words[0] in command_line.SPELLED:
        words[1:] = command_line._named(command_line.SPELLED[words[0]])(words[1:])
    with redirect_stdout(StringIO()):
        try:
            return command_line._command(words)
        except SystemExit as stop:
            if stop.code in (None, 0):  # help
                return None
            raise UsageError(str(stop)) from stop


def _check_methods(methods: Sequence[str]) -> None:
    """Check names and settings; a name that is not ours is one of the reader's own."""
    for spec in methods:
        if spec != "auto" and spec.partition(":")[0] in REGISTRY:
            method_specs([spec])
        elif spec != "auto" and spec.partition(":")[0] not in ("bigram", "my_method"):
            method_name(spec.partition(":")[0])


def _check_cells(config: BenchConfig, has_categories: bool) -> None:
    """Check that every batch of every category can be filled."""
    workload = {category: load_category(category) for category in config.categories}
    if config.pooled or not workload:
        return
    wanted = {(batch, category) for batch in config.batches for category in workload}
    found = {(cell.batch, cell.category) for cell in cells_of(config, workload)}
    if found != wanted:
        raise CommandError(f"batches that no category can fill: {sorted(wanted - found)}")
    if has_categories and config.max_prompt_tokens is not None:
        raise CommandError("a preset's cap on the length of prompts hides the categories that are asked for")


def _python(words: Sequence[str]) -> None:
    match list(words):
        case ["-c", code]:
            compile(code, "python -c", "exec")
        case ["-m", "outrider", *rest]:
            _outrider(rest)
        case ["-m", module, *_] if module.partition(".")[0] in ("pytest", "vllm", "pip"):
            pass
        case ["-m", module, *rest]:
            try:
                found = find_spec(module)
            except ModuleNotFoundError:
                found = None
            if found is None:
                raise CommandError(f"there is no module {module}")
            _script(rest, module=module)
        case ["tools/docs/terminal.py", _, *rest]:
            _outrider(rest)
        case [path, *rest] if (ROOT / path).exists():
            _script(rest, path=path)
        case _:
            raise CommandError("no such script")


def _script(words: Sequence[str], *, module: str | None = None, path: str | None = None) -> None:
    """Start a script, and stop it where it has read its options."""
    place = ROOT / path if path else Path(find_spec(module).origin)  # type: ignore[union-attr, arg-type]
    if place.is_dir() or place.name == "__init__.py":
        place = (place if place.is_dir() else place.parent) / "__main__.py"
    if place.relative_to(ROOT).as_posix() in WITHOUT_OPTIONS:
        if any(word.startswith("-") for word in words):
            raise CommandError(f"{place.name} takes paths and no option")
        return
    files = place.parent.glob("*.py") if place.name == "__main__.py" else [place]
    if not re.search(r"argparse|tyro\.cli", "".join(file.read_text(encoding="utf-8") for file in files)):
        raise CommandError(f"{place} reads its options in no way that can be checked")
    said = StringIO()
    with _stopping(), redirect_stderr(said), redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments, folders = [str(place), *words], [str(place.parent), *sys.path]
        with patch.object(sys, "argv", arguments), patch.object(sys, "path", folders):
            try:
                runpy.run_module(module, run_name="__main__") if module else runpy.run_path(
                    str(place), run_name="__main__"
                )
            except _ReadError:
                return
            except SystemExit as stop:
                raise CommandError(said.getvalue().strip().splitlines()[-1] if said.getvalue() else str(stop)) from stop
    raise CommandError("it ended before it had read its options")


@contextmanager
def _stopping() -> Iterator[None]:
    """Let argparse and tyro read options for real, and go no further."""
    parse, cli = argparse.ArgumentParser.parse_args, tyro.cli

    def parse_args(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        parse(self, *given, **named)
        raise _ReadError

    def read_cli(*given: Any, **named: Any) -> Any:
        cli(*given, **named)
        raise _ReadError

    with patch.object(argparse.ArgumentParser, "parse_args", parse_args), patch.object(tyro, "cli", read_cli):
        yield


def _make(words: Sequence[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for word in words:
        if "=" not in word and word not in targets:
            raise CommandError(f"the Makefile has no target {word}; it has {', '.join(targets)}")


def _pip(words: Sequence[str]) -> None:
    if words[:1] != ["install"]:
        raise CommandError("only pip install is known here")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words[1:]:
        if found := re.fullmatch(r"(\.|outrider)(?:\[([\w,]+)\])?", word):
            if unknown := {*(found[2] or "").split(",")} - {*extras, ""}:
                raise CommandError(f"there is no extra {', '.join(unknown)}; there are {', '.join(extras)}")
        elif word.startswith("./") and not (ROOT / word / "pyproject.toml").exists():
            raise CommandError(f"{word} is no package of the checkout")


def _bash(words: Sequence[str]) -> None:
    script = ROOT / words[0]
    if not script.exists():
        raise CommandError(f"{words[0]} does not exist")
    if len(words) > 1 and not re.search(rf"^ *{words[1]}(\(|\))", script.read_text(encoding="utf-8"), re.MULTILINE):
        raise CommandError(f"{words[0]} has no {words[1]}")


def _vllm(words: Sequence[str]) -> None:
    """Check that the JSON of its options can be read, and that a class of ours that it names exists."""
    for option, value in pairwise(words):
        if option in ("--speculative-config", "--additional-config") and value != "...":
            path = str(json.loads(value).get("model", ""))
            if path.startswith("outrider."):
                module, _, name = path.rpartition(".")
                if f"class {name}" not in Path(find_spec(module).origin).read_text():  # type: ignore[union-attr, arg-type]
                    raise CommandError(f"there is no {path}")


def _elsewhere(words: Sequence[str]) -> None:
    """Accept the words of a program that is not ours."""


def _accelerate(words: Sequence[str]) -> None:
    if "-m" in words:
        _python(words[words.index("-m") :])


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "outrider": _outrider,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "bash": _bash,
    "vllm": _vllm,
    "accelerate": _accelerate,
    "curl": _elsewhere,
    "pre-commit": _elsewhere,
    "git": _elsewhere,
    "cd": _elsewhere,
}
