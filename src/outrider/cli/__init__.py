"""The command line: one file per command, one line here.

A command is a frozen dataclass; its fields are the options, its `run` does the work. Nothing heavy is imported before a
command runs, so that help is instant.

    exit 0     done
    exit 1     a fault of Outrider's own; the traceback belongs into a report
    exit 2     bad input, or a run that cannot go on; one sentence on standard error says why
    exit 3, 4  verdicts: what audit or doctor looked at has a problem; too little could be seen
    exit 130   interrupted; where work can be resumed, the sentence says how
    exit 143   terminated (SIGTERM), in the same way
"""

import contextlib
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Union

from outrider.env import check_variables
from outrider.errors import OutriderError, Terminated, nearest, said
from outrider.records.display import visible, visible_line

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "audit": "outrider.cli.commands.audit:Audit",
    "bench": "outrider.cli.commands.bench:Bench",
    "chat": "outrider.cli.commands.chat:Chat",
    "corpus": "outrider.cli.commands.corpus:CorpusCommand",
    "doctor": "outrider.cli.commands.doctor:DoctorCommand",
    "drafters": "outrider.cli.commands.drafters:Drafters",
    "export": "outrider.cli.commands.export:ExportCommand",
    "fetch": "outrider.cli.commands.fetch:Fetch",
    "generate": "outrider.cli.commands.generate:Generate",
    "plan": "outrider.cli.commands.plan:Plan",
    "profile": "outrider.cli.commands.profile:ProfileCommand",
    "quality": "outrider.cli.commands.quality:QualityCommand",
    "report": "outrider.cli.commands.report:ReportCommand",
    "serve": "outrider.cli.commands.serve:Serve",
    "synthesize": "outrider.cli.commands.synthesize:Synthesize",
    "train": "outrider.cli.commands.train:Train",
    "tune": "outrider.cli.commands.tune:Tune",
}

LATE = {"bench": "outrider.cli.commands.bench:with_settings", "train": "outrider.cli.commands.train:with_methods"}
"""Command -> function that builds its options from other classes, given the words after it; called only when that
command is asked for."""

SPELLED = {"train": "outrider.cli.commands.train:spelled"}
"""Command -> function that gives a method the spelling that the command knows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status; words that are no command end with `SystemExit`, as help does."""
    try:
        return _guarded(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if _is_unwritable(stream):
                _discard(stream)


DESCRIPTION = "Speculative decoding of language models: one loop, one verifier, one benchmark for every method."


def _guarded(arguments: Sequence[str] | None) -> int:
    """Turn everything that ends a command into a sentence and a status."""
    try:
        from outrider.cli.interruption import interruptible
        from outrider.cli.terminal import prepare_streams

        prepare_streams()
        with interruptible():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except OutriderError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt as stop:
        is_terminated = isinstance(stop, Terminated)
        return _say(str(stop) or ("terminated" if is_terminated else "interrupted"), 143 if is_terminated else 130)
    except Exception as error:
        return _failed(error)


def _run(words: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_VisibleFormatter("%(message)s"))
    logging.getLogger("outrider").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # other libraries' bars rewrite their line
    if "--version" in words[:1]:
        print(_version())
        return 0
    from outrider.cli.parsing import UsageError

    check_variables()
    if words and words[0] in SPELLED:
        words[1:] = _named(SPELLED[words[0]])(words[1:])
    try:
        command = _command(words)
    except UsageError as error:
        sys.exit(_say(str(error), 2))
    status = command.run()
    sys.stdout.flush()  # while a failure can still be told
    return int(status or 0)


def _command(words: list[str]) -> Any:
    from outrider.cli.parsing import UsageError, parsed

    if not words:
        raise UsageError(f"give a command: {', '.join(COMMANDS)}; outrider --help explains them")
    if words[0] not in COMMANDS and words[0] not in ("-h", "--help"):
        kind = "option" if words[0].startswith("-") else "command"
        raise UsageError(f"there is no {kind} '{words[0]}'{nearest(words[0], [*COMMANDS, '--help', '--version'])}")
    return parsed(_commands(words), words, prog="outrider", description=DESCRIPTION)


def _commands(words: Sequence[str]) -> Any:
    import tyro

    found = []
    for name, path in COMMANDS.items():
        command = _named(LATE[name])(words[1:]) if name in LATE and name in words[:1] else _named(path)
        found.append(Annotated[command, tyro.conf.subcommand(name)])
    return Union[tuple(found)]  # noqa: UP007


def _named(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = []
    for package in ("outrider", "torch"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return ", ".join([*found, f"Python {python_version()}"])


class _VisibleFormatter(logging.Formatter):
    """Messages may quote names and text that others wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _failed_system_call(error: OSError) -> int:
    """Print one sentence; nothing at all if the reader of our output has closed it."""
    if isinstance(error, BrokenPipeError) and any(map(_is_left, (sys.stdout, sys.stderr))):
        return 0
    places = " and ".join(str(place) for place in (error.filename, error.filename2) if place is not None)
    if not places:
        places = "standard output" if _is_unwritable(sys.stdout) else "a file or a connection"
    reason = error.strerror or str(error) or type(error).__name__
    return _say(f"{places} cannot be used ({reason}); what was finished before is kept", 2)


def _is_left(stream: Any) -> bool:
    """Return whether the stream is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream in memory
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_unwritable(stream: Any) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return True
    return False


def _discard(stream: Any) -> None:
    """Let what is left in a buffer go nowhere, so that the interpreter does not complain when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed(error: Exception) -> int:
    """Say what ended a command that no part of it has explained."""
    if "torch" in sys.modules or isinstance(error, MemoryError):  # what has no PyTorch takes no memory
        import torch

        from outrider.loop.free_memory import free_bytes, is_out_of_memory
        from outrider.records.files import size

        if is_out_of_memory(error):
            free = size(free_bytes(torch.device("cpu")))
            return _say(
                f"there is not enough memory ({said(error)}), with {free} free; use fewer requests at once, shorter "
                "texts, --weights int4 or a smaller model",
                2,
            )
    return _failed_system_call(error) if isinstance(error, OSError) else _our_fault(error)


def _our_fault(error: Exception) -> int:
    with contextlib.suppress(OSError):
        print(visible("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return _say(
        "this is a fault of Outrider, not yours; please report it with the lines above, the command and the output of "
        "outrider --version",
        1,
    )


def _say(sentence: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(f"outrider: {visible_line(' '.join(sentence.split()))}", file=sys.stderr)
    return status
