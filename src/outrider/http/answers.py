"""Parsing and checking the answers of an OpenAI-compatible server.

A server may be broken, or another program. Every field that is used is checked for its type and against the request:
token ids lie in the vocabulary, there is one choice, counts are whole numbers. A wrong answer raises `AnswerError`, the
end of a sentence that begins with the server's address; `outrider.http.client` adds the address.

Example: `token_ids({"token_ids": [5, 99]}, vocab_size=90)` raises "gave the token id 99, but the target has 90 tokens".
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from outrider.errors import on_one_line
from outrider.records.display import shown

__all__ = [
    "AnswerError",
    "Usage",
    "check_prompt",
    "check_reason",
    "choice_of",
    "count_of",
    "model_names",
    "owner_of",
    "parsed",
    "said_by",
    "text_of",
    "token_ids",
    "usage_of",
]

MOST_NAMES = 10_000
REASONS = ("stop", "length")


class AnswerError(Exception):
    """A fault of a server, as the end of the sentence "URL ..."."""


class Usage(NamedTuple):
    """The server's own counts; None for a count that it does not give."""

    prompt_tokens: int | None
    completion_tokens: int | None


def parsed(data: bytes | str) -> dict[str, Any]:
    """Parse the JSON object of an answer; raise its error, if it holds one, in the server's words."""
    try:
        # utf-8-sig: some servers send a byte order mark
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        answer = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _foreign(f"it did not answer in JSON ({on_one_line(str(error))})") from error
    if not isinstance(answer, dict):
        raise _foreign(f"it answered with a {type(answer).__name__}")
    if answer.get("error"):
        raise AnswerError(f"broke its answer off with an error: {_words(answer)}")
    return answer


def model_names(answer: Mapping[str, Any]) -> list[str]:
    """Return the names of the models that a server lists."""
    listed = answer.get("data")
    if not isinstance(listed, list) or len(listed) > MOST_NAMES:
        raise _foreign("its list of models has no 'data'")
    names = [model.get("id") if isinstance(model, dict) else None for model in listed]
    for name in names:
        if not isinstance(name, str) or not name or not _is_unicode(name):
            raise _foreign(f"it lists a model whose 'id' is {shown(name)}")
    return names  # type: ignore[return-value]


def owner_of(answer: Mapping[str, Any]) -> str | None:
    """Return the engine that a server names as the owner of its models; None where it names none, or several."""
    models = [model for model in answer.get("data") or [] if isinstance(model, Mapping)]
    owners = {str(model["owned_by"]) for model in models if model.get("owned_by")}
    return owners.pop() if len(owners) == 1 else None


def count_of(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number that is not negative; None where it is missing."""
    count = fields.get(name)
    if count is not None and (type(count) is not int or count < 0):
        raise AnswerError(f"counts wrongly: '{name}' is {shown(count)}")
    return count


def choice_of(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the only choice; None for an event without one."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise _foreign("it gave no completion: 'choices' is not a list")
    if not choices:
        return None
    choice = choices[0]
    # one completion was requested
    if len(choices) > 1 or not isinstance(choice, dict) or choice.get("index", 0) != 0:
        raise _foreign("it gave other choices than the one that was asked for")
    return choice


def token_ids(choice: Mapping[str, Any], vocab_size: int) -> list[int] | None:
    """Return the token ids of a choice; None where it has none."""
    ids = choice.get("token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list):
        raise _foreign(f"'token_ids' is {shown(ids)}")
    for token in ids:
        if type(token) is not int:
            raise _foreign(f"'token_ids' holds {shown(token)}")
        if not 0 <= token < vocab_size:
            raise AnswerError(
                f"gave the token id {shown(token)}, but the target has {vocab_size} tokens; it serves another model"
            )
    return ids


def text_of(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice."""
    text = choice.get("text")
    if not isinstance(text, str) or not _is_unicode(text):
        raise _foreign(f"it gave no completion: 'text' is {shown(text)}")
    return text


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """Return the counts of an answer; None where it has none."""
    usage = answer.get("usage")
    if usage is None:
        return None
    counts = [usage.get(name) for name in Usage._fields] if isinstance(usage, dict) else [usage, usage]
    for count in counts:
        if count is not None and (type(count) is not int or count < 0):
            raise _foreign(f"'usage' holds {shown(count)}")
    return Usage(*counts)


def check_prompt(usage: Usage | None, num_sent: int) -> None:
    """Refuse an answer whose prompt has another length than the prompt sent."""
    if usage is not None and usage.prompt_tokens not in (None, num_sent):
        raise AnswerError(
            f"read {shown(usage.prompt_tokens)} tokens where {num_sent} were sent; it serves another model than the "
            "target, or adds tokens to prompts"
        )


def check_reason(reason: object) -> None:
    """Refuse an answer that finished for another reason than "stop" or "length"."""
    if reason not in REASONS:
        raise AnswerError(
            f"ended an answer for the reason '{on_one_line(str(reason))}', neither {' nor '.join(REASONS)}"
        )


def said_by(data: bytes) -> str:
    """Return the server's own words in a refusal, shortened."""
    text = data.decode(errors="replace")
    try:
        return _words(json.loads(text))
    except (ValueError, RecursionError):
        return on_one_line(text) or "no reason given"


def _words(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return on_one_line(str(error.get("message", error) if isinstance(error, dict) else error))


def _is_unicode(text: str) -> bool:
    """Return whether the text has no lone surrogate."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _foreign(what: str) -> AnswerError:
    return AnswerError(f"did not answer as an OpenAI-compatible server: {what}")
