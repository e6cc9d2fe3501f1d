"""Conversion of conversations and text to tokens, with an untrusted tokenizer and chat template.

A chat template is a program that came with the checkpoint: it may refuse messages (a system message, two user turns in
a row), fail on them, or never end. `transformers` runs it in a sandbox; here every failure becomes one sentence, and a
template that runs too long or allocates too much memory is stopped.

Example: for a template that calls `raise_exception('roles must alternate')`, `render` raises a `RequestError` that says
so.
"""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from outrider.errors import RequestError, on_one_line
from outrider.records.values import check_text, native, whole
from outrider.requests.detokenize import guarded

__all__ = ["render", "tokenize"]

TICK, MOST_TICKS = 0.25, 80
PATIENCE = 20
"""Ticks until the error is raised again: one that arrives inside a destructor is lost."""
MOST_BYTES = 2**30
MOST_CHARS = 2**26


class _EndlessTemplateError(BaseException):
    """Raised inside a template; not an `Exception`, which a template engine might catch."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Return the text of a conversation under the chat template, ready for the next answer.

    Args:
        variables: further variables of the template, such as `tools`.

    Raises:
        RequestError: if the template refuses these messages, fails, does not end, or gives no text.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping) and "default" not in template:
        raise RequestError(
            f"the tokenizer has the chat templates {', '.join(map(str, template))}, and none is called default; rename"
            " one in its files, or give token ids"
        )
    try:
        with _limited():
            text = guarded(
                lambda: tokenizer.apply_chat_template(
                    list(messages), **variables, tokenize=False, add_generation_prompt=True
                ),
                _refuse_messages,
            )
    except _EndlessTemplateError:
        raise RequestError(
            f"the chat template has not come to an end in {TICK * MOST_TICKS:.0f} s or {MOST_BYTES >> 30} GiB; mend it,"
            " or give token ids"
        ) from None
    if not isinstance(text, str):
        raise RequestError(f"the chat template gives a {type(text).__name__} instead of text; mend it")
    if len(text) > MOST_CHARS:
        raise RequestError(f"the chat template writes {len(text)} characters; mend it, or give token ids")
    check_text(text, "the text of the chat template")
    return text


def tokenize(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the token ids of a text; the options are the tokenizer's own.

    Raises:
        RequestError: if the tokenizer fails on it, or gives something else.
    """
    found = native(guarded(lambda: tokenizer(text, **options)["input_ids"], _refuse_text))
    if not isinstance(found, list | tuple):
        raise RequestError(f"the tokenizer gives a {type(found).__name__} instead of token ids; give token ids")
    return [whole(f"token {index} of the tokenizer", token, RequestError) for index, token in enumerate(found)]


def _refuse_messages(error: Exception) -> str:
    reason = _reason(error)
    if type(error).__name__ == "TemplateError":  # what raise_exception raises
        raise RequestError(f"the chat template refuses these messages: {reason}") from error
    raise RequestError(
        f"the chat template fails on these messages ({type(error).__name__}: {reason}); change them, or give token ids"
    ) from error


def _refuse_text(error: Exception) -> list[int]:
    raise RequestError(
        f"the tokenizer cannot read this text ({type(error).__name__}: {_reason(error)}); give token ids"
    ) from error


def _reason(error: Exception) -> str:
    return on_one_line(str(error)).rstrip(".") or "no reason given"


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `_EndlessTemplateError` in this thread when the time is up, or when the process has grown too large.

    The time is counted in waits, so the seconds of a stopped process do not count.
    """
    done, lock, thread = threading.Event(), threading.Lock(), threading.get_ident()
    memory = psutil.Process().memory_info().rss

    def watch() -> None:
        ticks = next_throw = 0
        while not done.wait(TICK):
            ticks += 1
            with lock:
                if not done.is_set() and ticks >= next_throw and (ticks >= MOST_TICKS or _grown(memory)):
                    _throw(thread, _EndlessTemplateError)
                    next_throw = ticks + PATIENCE

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            with lock:  # nothing is thrown from here on
                done.set()
        finally:  # what was thrown may have arrived just before
            done.set()


def _grown(memory: int) -> bool:
    return bool(psutil.Process().memory_info().rss > memory + MOST_BYTES)


def _throw(thread: int, error: type[BaseException]) -> None:
    """Raise this error in another thread, at its next instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
