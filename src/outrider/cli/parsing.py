"""The command line's words to a command: tyro reads the options, and what it refuses becomes one sentence.

Help and errors are written into memory first, so that they hold no escape sequences and only ASCII, wherever they go.

Example: `outrider bench --repeat 3` says `bench has no option --repeat; did you mean '--repeats'?`.
"""

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import tyro

from outrider.errors import ConfigError, nearest

__all__ = ["UsageError", "parsed"]

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
KINDS = {"INT": "a whole number", "FLOAT": "a number"}
KIND = re.compile(r"\b(INT|FLOAT)\b")
VALUE = re.compile(r"(?:from \[|with base 10: |to float: )('[^']*')")
SUBCOMMANDS = re.compile(r"^usage: .*\{([\w,-]+)\}$", re.MULTILINE)
NOTHING = re.compile(r"\s*\(default:\s*(?:None)?\)")
OPTIONAL = re.compile(r"\{None\}\||(?<=\{)None,")
REPEATED = re.compile(r"\{?\[(\S+) \[\1 \.\.\.\]\]\}?")
OPTION_LINE = re.compile(r"(  -.*?\S)((?: {2,}\S.*)?)$")
FRAME = re.compile(r"[|+]|-{3,}|\s+")
NARROWEST = 40


class UsageError(ConfigError):
    """Raised for words that are no command."""


class _RefusedError(Exception):
    """Raised with the event of words that tyro refuses."""


def parsed(commands: Any, words: Sequence[str], *, prog: str, description: str) -> Any:
    """Return the command that the words ask for; help is printed and ends the program.

    Raises:
        UsageError: for an unknown option, or a value that is missing or of the wrong type.
        ConfigError: for a value that the command's settings refuse.
        SystemExit: after help.
    """

    def read(given: Sequence[str]) -> Any:
        return tyro.cli(commands, prog=prog, description=description, args=list(given))

    printed, refused = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(refused), _events():
            return read(words)
    except _RefusedError as refusal:
        raise UsageError(_sentence(refusal.args[0], words, read)) from None
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise UsageError(FRAME.sub(" ", refused.getvalue())) from None
        sys.stdout.write(_wrapped(_readable(printed.getvalue())))
        sys.stdout.flush()
        raise


@contextmanager
def _events() -> Iterator[None]:
    """Raise what tyro refuses, where this version of it can say."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:
        raise _RefusedError(event)

    with on_parse_error(refuse):
        yield


def _sentence(event: Any, words: Sequence[str], read: Any) -> str:
    """Return what is wrong, and what would be right."""
    place = _place(words, read)
    known = set(OPTION.findall(_help(place, read)))
    for word in words:
        name = word.partition("=")[0]
        if OPTION.fullmatch(name.replace("_", "-")) and name.replace("_", "-") not in known:
            close = nearest(name, known)
            return f"{' '.join(place)} has no option {name}" + (
                close if "did you mean" in close else f"; outrider {' '.join(place)} --help lists them"
            )
    command, see = " ".join(place), f"see outrider {' '.join([*place, '--help'])}"
    match type(event).__name__:
        case "UnrecognizedArgs":
            return _unknown(event.tokens[0], place, read)
        case "MissingArgs":
            return f"{command} needs {', '.join(_name(one.arg) for one in event.missing_arguments)}; {see}"
        case "MissingSubcommand":
            return f"{command} needs one of: {', '.join(event.subcommand_spec.parser_from_name)}; {see}"
        case "InvalidChoice":
            return f"{_name(event.argument)} does not take '{event.value}'{nearest(event.value, event.choices)}"
        case "InstantiationFailure" if event.argument is not None:
            return f"{_name(event.argument)} {_wrong_value(event)}; {see}"
        case "BadValue":
            return f"{_name(event.argument)} needs a value; {see}"
    return f"{command} does not take these options together; {see}"


def _unknown(token: str, place: list[str], read: Any) -> str:
    subcommands = _subcommands(_help(place, read))
    if subcommands and token not in subcommands:
        return f"{' '.join(place)} has no '{token}'{nearest(token, subcommands)}"
    return f"{' '.join(place)} does not take '{token}'; quote a text that has spaces"


def _wrong_value(event: Any) -> str:
    kind = KIND.search(str(event.argument.lowered.metavar))
    if kind is None:
        return f"cannot take its value ({event.message})"
    found = VALUE.search(event.message)
    return f"needs {KINDS[kind[1]]}{f', not {found[1]}' if found else ''}"


def _name(argument: Any) -> str:
    if argument.is_positional():
        return str(argument.field.intern_name).rpartition(".")[2].upper()
    return str(argument.lowered.name_or_flags[0])


def _place(words: Sequence[str], read: Any) -> list[str]:
    """Return the command, and its subcommand where it has some."""
    command = list(words[:1])
    return list(words[:2]) if set(words[1:2]) & set(_subcommands(_help(command, read))) else command


def _help(place: Sequence[str], read: Any) -> str:
    printed = io.StringIO()
    with suppress(SystemExit), redirect_stdout(printed), redirect_stderr(io.StringIO()):
        read([*place, "--help"])
    return printed.getvalue()


def _subcommands(text: str) -> list[str]:
    found = SUBCOMMANDS.search(text)
    return found[1].split(",") if found else []


def _readable(text: str) -> str:
    """Return help with values as a person writes them: `STR` for `{None}|STR`, `[STR ...]` for lists, no empty default.

    >>> print(_readable("  --a {None}|STR  Text. (default: None)"))
      --a STR         Text.
    """
    lines = []
    for line in NOTHING.sub("", text).splitlines():
        if found := OPTION_LINE.match(line.rstrip()):
            option, help = found.groups()
            shown = REPEATED.sub(r"[\1 ...]", OPTIONAL.sub("", option))
            line = shown + " " * (len(option) - len(shown)) + help if help else shown
        lines.append(line)
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    """Return help whose long lines are wrapped to the terminal's width."""
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    lines: list[str] = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line.rstrip(), width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines) + "\n"
