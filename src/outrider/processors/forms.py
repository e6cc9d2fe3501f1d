"""Forms of structured output, compiled for a tokenizer by llguidance and kept.

A tokenizer is prepared once (some 0.1 to 1 s for a large vocabulary); a form is compiled once, and every request takes
a copy of its matcher, in microseconds. llguidance compiles by recursion, and a chain of 2,500 references would overflow
the stack of an ordinary thread and end the process. So forms are limited in length and compiled on a deep stack.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerFast

from outrider.errors import RequestError, is_failure, on_one_line
from outrider.params import StructuredOutputs

__all__ = ["Forms", "words_of"]

NUM_KEPT: Final = 64
LONGEST: Final = 2**17
"""The most characters of a form."""
META: Final = frozenset(r"\.+*?()|[]{}^$#&-~")
"""Characters that stand for themselves behind a backslash alone."""
STACK_BYTES: Final = 2**28
_STACK_SIZE: Final = threading.Lock()


@final
class Forms:
    """The compiled forms of one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = _prepared(tokenizer, vocab_size, eos_ids)
        self._matchers: OrderedDict[StructuredOutputs, Any] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> "Forms":
        """Return the forms of this tokenizer, shared by all engines.

        Raises:
            RequestError: if llguidance is not installed, or cannot read the tokenizer.
        """
        known = _KNOWN.setdefault(tokenizer, {})
        key = (vocab_size, tuple(eos_ids))
        if key not in known:
            known[key] = cls(tokenizer, vocab_size, eos_ids)
        return known[key]

    def matcher(self, wanted: StructuredOutputs) -> Any:
        """Return a new `LLMatcher` at the start of a form.

        Raises:
            RequestError: if the form cannot be compiled; it says why.
        """
        with self._lock:
            found = self._matchers.get(wanted)
        if found is None:
            found = _on_a_deep_stack(lambda: self._compiled(wanted))
        with self._lock:
            self._matchers[wanted] = found
            self._matchers.move_to_end(wanted)
            if len(self._matchers) > NUM_KEPT:
                self._matchers.popitem(last=False)
            return found.deep_copy()

    def _compiled(self, wanted: StructuredOutputs) -> Any:
        from llguidance import LLMatcher, grammar_from

        kind, text = wanted.form
        if len(text) > LONGEST:
            raise RequestError(
                f"{kind} of structured_outputs has {len(text)} characters; at most {LONGEST} can be compiled"
            )
        try:
            if kind == "json":
                options = {"whitespace_flexible": not wanted.disable_any_whitespace}
                grammar = LLMatcher.grammar_from_json_schema(text, defaults=options)
            elif kind == "choice":  # as alternatives of a grammar at most 2,000 would do
                grammar = LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(text))))
            else:
                grammar = grammar_from(kind, text)
        except ValueError as error:
            raise _refusal(kind, str(error)) from error
        wrong = LLMatcher.validate_grammar(grammar, self._tokenizer)
        if wrong and not wrong.startswith("WARNING"):
            raise _refusal(kind, wrong)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        first = matcher.deep_copy()
        first.compute_bitmask()  # some forms fail here alone, such as one that refers to nothing but itself
        if first.is_error():
            raise _refusal(kind, words_of(first))
        return matcher


def _on_a_deep_stack(work: Callable[[], Any]) -> Any:
    """Return what a function returns in a thread of its own; its exception is raised here."""
    found: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="outrider-forms")
    with _STACK_SIZE:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


def words_of(matcher: Any) -> str:
    """Return the error of a matcher on one line, without its state, which takes pages."""
    return on_one_line(str(matcher.get_error()).partition("\n<state>")[0])


def _literal(text: str) -> str:
    """Return an expression for this text alone.

    >>> _literal("a.b")
    'a\\\\.b'
    """
    return "".join(f"\\{char}" if char in META else char for char in text)


def _refusal(kind: str, said: str) -> RequestError:
    return RequestError(f"{kind} of structured_outputs cannot be compiled: {on_one_line(said)}")


def _prepared(tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> Any:
    """Return llguidance's form of a tokenizer."""
    try:
        from llguidance.hf import from_tokenizer
    except ImportError as error:
        raise RequestError(
            "structured outputs need the package llguidance; install it with: pip install 'outrider[structured]'"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RequestError(
            f"structured outputs need a fast tokenizer, and this target's is a {type(tokenizer).__name__}"
        )
    if not eos_ids:
        raise RequestError("structured outputs need an end-of-text token, and this target has none")
    try:
        return from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_ids))
    except BaseException as error:
        if not is_failure(error):
            raise
        said = on_one_line(str(error))
        raise RequestError(f"structured outputs cannot read the tokenizer of this target: {said}") from error


_KNOWN: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], Forms]] = WeakKeyDictionary()
