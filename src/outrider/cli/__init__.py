"""The command line: one file per command, one line here.

A command is a frozen dataclass; its fields are the options, its `run` does the work. Nothing heavy is imported before a
command runs, so that help is instant.

    exit 0     done
    exit 2     bad input, or a run that cannot go on; one sentence on standard error says why
    exit 130   interrupted; where work can be resumed, the sentence says how
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from outrider.errors import OutriderError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "bench": "outrider.cli.bench:Bench",
    "export": "outrider.cli.export:ExportCommand",
    "generate": "outrider.cli.generate:Generate",
    "plan": "outrider.cli.plan:Plan",
    "profile": "outrider.cli.profile:ProfileCommand",
    "synthesize": "outrider.cli.synthesize:Synthesize",
    "train": "outrider.cli.train:Train",
}

LATE = {"train": "outrider.cli.train:with_methods"}
"""Of a command with options of its own for every method: builds it. Called only when that command is asked for."""

SPELLED = {"train": "outrider.cli.train:spelled"}
"""Of a command whose method has several spellings: gives the one that it knows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("outrider").setLevel(logging.INFO)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in SPELLED:
            given[1:] = _named(SPELLED[given[0]])(given[1:])
        command: Any = tyro.cli(_commands(given[:1]), prog="outrider", description=DESCRIPTION, args=given)
        command.run()
    except OutriderError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


DESCRIPTION = "Speculative decoding of language models: one loop, one verifier, one benchmark for every method."


def _commands(asked: Sequence[str]) -> Any:
    found = []
    for name, path in COMMANDS.items():
        command = _named(LATE[name])() if name in LATE and name in asked else _named(path)
        found.append(Annotated[command, tyro.conf.subcommand(name)])
    return Union[tuple(found)]  # noqa: UP007


def _named(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _say(sentence: str, status: int) -> int:
    print(f"outrider: {' '.join(sentence.split())}", file=sys.stderr)
    return status
