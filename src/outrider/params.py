"""The settings of one request: how its answer is sampled, when it ends, and which form it must have.

Field names and meanings are vLLM's; the defaults are greedy decoding. Every value is checked once, here; what depends
on the target (a token id, a grammar) is checked when an engine takes the request.

Example: `SamplingParams(temperature=0.7, structured_outputs=StructuredOutputs(choice=["yes", "no"]))`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outrider.errors import RequestError
from outrider.records.display import shown
from outrider.records.values import check_text, flag, native, real, whole

__all__ = ["SamplingParams", "StructuredOutputs"]

REALS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
COUNTS = ("top_k", "seed", "max_tokens", "min_tokens")
MOST_LOGPROBS = 1000
ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """A form that the answer must have, given by exactly one of the first five fields; it needs llguidance.

    json          a JSON schema, as a dict or as text
    json_object   True for any JSON object
    regex         a regular expression that the whole answer matches, in the syntax of Rust's `regex`
    choice        strings of which the answer is one
    grammar       a context-free grammar in the notation of Lark or llama.cpp (GBNF)

    disable_any_whitespace   True allows no white space between the parts of JSON, which saves tokens and keeps small
                             models from writing blank lines without end

    Raises:
        RequestError: if no field or more than one is set, or a value is of a wrong type.
    """

    json: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace"):
            object.__setattr__(self, name, flag(name, getattr(self, name), RequestError))
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        given += ["json_object"] * self.json_object
        if len(given) != 1:
            said = " and ".join(given) or "nothing"
            raise RequestError(f"structured_outputs sets {said}; set one of json, json_object, regex, choice, grammar")
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _strings(self.choice, "choice", "the choice"))
            if not self.choice:
                raise RequestError("choice is empty; give at least one string")
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None and not (isinstance(text, str) and text):
                raise RequestError(f"{name}={shown(text)} must be a string of at least one character")
            if text is not None:
                check_text(text, name)

    @property
    def form(self) -> tuple[str, str]:
        """The kind of the form and its text: ("json" | "regex" | "choice" | "grammar", text)."""
        if self.json_object:
            return "json", ANY_OBJECT
        if self.choice is not None:
            return "choice", json.dumps(self.choice)
        name = next(name for name in ("json", "regex", "grammar") if getattr(self, name) is not None)
        return name, getattr(self, name)


def _schema(schema: Any) -> str:
    """Return a JSON schema as text; the order of its properties, which an answer keeps, stays."""
    try:
        known = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(known, Mapping):
            raise RequestError(f"json={shown(schema)} must be a JSON schema: a dict, or the text of a JSON object")
        return json.dumps(dict(known))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"json={shown(schema)} is no JSON schema ({shown(str(error))}); give a dict or text"
        ) from error


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The sampling and stop settings of one request. The field names are vLLM's; the defaults are greedy decoding.

    temperature          divisor of the logits, from 0.01 to 100; 0 is greedy decoding
    top_k                number of tokens kept; 0 (or -1) keeps all
    top_p                probability mass kept, in (0, 1]; 1 keeps all
    min_p                least probability kept, as a share of the largest, in [0, 1); 0 keeps all
    seed                 64-bit number; the request's randomness is a function of it and of positions in the text
    max_tokens           the most tokens of the answer
    stop                 strings that end the answer and are cut from its text; a single string counts as a list of one
    stop_token_ids       tokens that end the answer, besides the target's own end-of-text tokens
    ignore_eos           continue after an end-of-text token
    presence_penalty     subtracted from the logit of each token that the answer holds, from -2 to 2
    frequency_penalty    the same for each time that it occurs in the answer, from -2 to 2
    repetition_penalty   divisor of the positive logits of tokens in prompt or answer, factor of their negative ones
    logit_bias           numbers added to the logits of some tokens, by token id, from -100 to 100
    min_tokens           tokens before which the answer does not end by a token or a stop string
    bad_words            strings that the answer must not hold
    logprobs             also return the log-probability of every emitted token, and so many of the most probable
                         tokens with theirs: raw ones, of the target's logits before any setting; None returns none
    structured_outputs   form of the answer

    Example: `SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=64, stop="\\n\\n")`.

    Raises:
        RequestError: for a value of a wrong type or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 128
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    bad_words: str | Sequence[str] = ()
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        taken: dict[str, Any] = {name: real(name, getattr(self, name), RequestError) for name in REALS}
        taken |= {name: whole(name, getattr(self, name), RequestError) for name in COUNTS}
        taken |= {"stop": _strings(self.stop, "stop", "the stop string"), "stop_token_ids": _ids(self.stop_token_ids)}
        taken |= {"bad_words": _strings(self.bad_words, "bad_words", "the bad word")}
        taken |= {"ignore_eos": flag("ignore_eos", self.ignore_eos, RequestError)}
        taken |= {"logit_bias": _biases(self.logit_bias)}
        if self.logprobs is not None:
            taken["logprobs"] = whole("logprobs", self.logprobs, RequestError)
        for name, value in taken.items():  # frozen, so normalised values are set past the dataclass
            object.__setattr__(self, name, value)
        self._check_sampling()
        self._check_processors()

    def _check_sampling(self) -> None:
        if not (self.temperature == 0 or 0.01 <= self.temperature <= 100):
            raise RequestError(f"temperature={self.temperature} must be 0 (greedy) or between 0.01 and 100")
        if self.top_k < -1:
            raise RequestError(f"top_k={shown(self.top_k)} must be 0 (keep all) or positive")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p={self.top_p} must be above 0 and at most 1 (keep all)")
        if not 0 <= self.min_p < 1:
            raise RequestError(f"min_p={self.min_p} must be at least 0 (keep all) and below 1")
        if not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"seed={shown(self.seed)} must fit in 64 bits")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens={shown(self.max_tokens)} must be at least 1")

    def _check_processors(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise RequestError(f"{name}={getattr(self, name)} must be between -2 and 2")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise RequestError(
                f"repetition_penalty={self.repetition_penalty} must be between 0.01 and 100; 1 is no penalty"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise RequestError(
                f"min_tokens={shown(self.min_tokens)} must be between 0 and max_tokens={shown(self.max_tokens)}"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise RequestError(f"logprobs={shown(self.logprobs)} must be None or between 0 and {MOST_LOGPROBS}")
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise RequestError(
                f"structured_outputs={shown(self.structured_outputs)} must be a StructuredOutputs, for example "
                "StructuredOutputs(choice=['yes', 'no'])"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def law(self) -> tuple[float, int, float, float]:
        """The settings that the distribution depends on, given the logits as the processors leave them."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    @property
    def filters(self) -> bool:
        """True if the settings cut off some tokens."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def _strings(value: Any, name: str, one: str) -> tuple[str, ...]:
    """Return a string or a list of strings as a tuple without repetitions."""
    found = native([] if value is None else [value] if isinstance(value, str) else value)
    if not isinstance(found, Iterable) or isinstance(found, Mapping | bytes | bytearray):
        raise RequestError(f"{name}={shown(value)} must be a string or a list of strings")
    strings = tuple(found)
    for string in strings:
        if not isinstance(string, str):
            raise RequestError(f"{one} {shown(string)} is a {type(string).__name__}; give strings")
        if not string:
            raise RequestError(f"{one.replace('the ', 'a ', 1)} is empty; give at least one character")
        check_text(string, f"{one} {shown(string)}")
    return tuple(dict.fromkeys(str(string) for string in strings))


def _ids(ids: Any) -> tuple[int, ...]:
    found = native(ids)
    if not isinstance(found, Iterable) or isinstance(found, Mapping | str | bytes | bytearray):
        raise RequestError(f"stop_token_ids={shown(ids)} must be a list of token ids")
    return tuple(whole("a stop token", one, RequestError) for one in found)


def _biases(biases: Any) -> tuple[tuple[int, float], ...]:
    """Return a dict of biases, or its pairs, as pairs."""
    try:
        pairs = dict({} if biases is None else biases).items()
    except (TypeError, ValueError):
        raise RequestError(f"logit_bias={shown(biases)} must be a dict from token ids to numbers") from None
    found = []
    for token, bias in pairs:
        number = real(f"logit_bias of token {shown(token)}", bias, RequestError)
        if not -100 <= number <= 100:
            raise RequestError(f"logit_bias of token {shown(token)} is {number} and must be between -100 and 100")
        id = int(token) if isinstance(token, str) and token.isdecimal() else token  # JSON has no other keys
        found.append((whole("a token of logit_bias", id, RequestError), number))
    return tuple(found)
