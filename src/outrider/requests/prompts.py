"""Prompts of every accepted form, converted to one.

A prompt is a string, a conversation (a list of messages) or a list of token ids; tensors and arrays of ids count as
lists. A call that takes several prompts also takes a single one:

    "Why?"                                        one prompt
    ["Why?", "How?"]                              two prompts
    [{"role": "user", "content": "Why?"}]         one conversation
    [3, 4, 5] or a 1-D tensor                     one prompt of three tokens
    [[3, 4], [5]] or a 2-D tensor                 a prompt per row

The content of a message is a string, or a list of text parts as other APIs take it, which are joined.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Number
from typing import Any

from outrider.errors import RequestError
from outrider.records.display import shown
from outrider.records.values import check_text, native, whole
from outrider.sampling import SamplingParams

__all__ = ["Prompt", "as_params", "as_params_of_each", "as_prompt", "as_prompts", "check_fit"]

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

KINDS = "give a string, a list of messages, or a list of token ids"


def as_prompts(prompts: Any) -> list[str | list[int] | list[dict[str, Any]]]:
    """Return the prompts of a call, each as `as_prompt` gives it.

    Raises:
        RequestError: for anything that is no prompt; it says which.
    """
    found = _listed(prompts, "the prompt")
    if isinstance(found, str) or any(isinstance(item, Mapping | Number) for item in found):
        return [as_prompt(found)]
    return [as_prompt(item, f"prompt {index}") for index, item in enumerate(found)]


def as_prompt(prompt: Any, name: str = "the prompt") -> str | list[int] | list[dict[str, Any]]:
    """Return one prompt as a string, a list of messages, or a list of token ids.

    Raises:
        RequestError: for anything else, an empty prompt, or text that is no Unicode.
    """
    found = _listed(prompt, name)
    if len(found) == 0:
        raise RequestError(f"{name} is empty; give at least one token")
    if isinstance(found, str):
        check_text(found, name)
        return found
    if _are_plain(found):
        return found
    if any(isinstance(item, Mapping) for item in found):
        return [_message(item, f"message {index} of {name}") for index, item in enumerate(found)]
    return [_token(item, index, name) for index, item in enumerate(found)]


def _listed(value: Any, name: str) -> str | list[Any]:
    """Return the items of a prompt or of a list of prompts, or the string that it is."""
    found = native(value)
    if isinstance(found, str):
        return str(found)
    if isinstance(found, bytes | bytearray | memoryview):
        raise RequestError(f"{name} is {type(found).__name__}; decode it to a string first")
    if isinstance(found, Mapping):
        remedy = "give its input_ids" if "input_ids" in found else "give a list of messages, [{'role': ..., ...}]"
        raise RequestError(f"{name} is a single {type(found).__name__}; {remedy}")
    if not isinstance(found, Iterable) or isinstance(found, Set):
        raise RequestError(f"{name} is {shown(value)}; {KINDS}")
    items = list(found)  # an iterator is read once, here
    return items if _are_plain(items) else [native(item) for item in items]


def _are_plain(items: list[Any]) -> bool:
    """Return whether all are Python's own ints, so that a long prompt is not converted token by token."""
    return set(map(type, items)) == {int}


def _token(item: Any, index: int, name: str) -> int:
    if isinstance(item, str):
        raise RequestError(
            f"{name} is a list that holds the string {shown(item)}; give strings as prompts of their own"
        )
    if isinstance(item, Iterable):
        raise RequestError(f"{name} is a list of lists; {KINDS}")
    return whole(f"token {index} of {name}", item, RequestError)


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {shown(message)}; give a dict with role and content")
    role, content = message.get("role"), native(message.get("content"))
    if not isinstance(role, str) or not role:
        raise RequestError(f"{name} has the role {shown(role)}; give a string such as 'user'")
    check_text(role, f"the role of {name}")
    if content is None and message.get("tool_calls"):  # an assistant's call of a tool has no text
        return {key: value for key, value in message.items() if key != "content"}
    if isinstance(content, list | tuple):
        content = "".join(_part(part, name) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{name} has the content {shown(content)}; give a string")
    check_text(content, name)
    return {**message, "role": str(role), "content": str(content)}


def _part(part: Any, name: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        raise RequestError(f"{name} has the part {shown(part)}; only parts of text are read")
    return text


def check_fit(
    tokens: Sequence[int], params: SamplingParams, tokenizer: object, vocab_size: int, max_positions: int
) -> None:
    """Refuse a request that an engine cannot serve.

    Args:
        tokens: token ids of the prompt.
        params: settings of the request.
        tokenizer: tokenizer of the target, or None.
        vocab_size: number of the target's tokens.
        max_positions: the longest text in tokens, answer included.

    Raises:
        RequestError: naming the value and its limit.
    """
    if not tokens:
        raise RequestError("the prompt is empty; give at least one token")
    if len(tokens) >= max_positions:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens but the context limit is {max_positions}, "
            "answer included; shorten it or raise max_len"
        )
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise RequestError(f"token {shown(token)} is outside the vocabulary of {vocab_size}")
    if params.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this target has none")


def as_params(params: Any) -> SamplingParams:
    """Return the settings of a request; None stands for the defaults.

    Raises:
        RequestError: for anything but a `SamplingParams`.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(
            f"params={shown(params)} must be a SamplingParams, for example outrider.SamplingParams(temperature=0.7)"
        )
    return params


def as_params_of_each(params: Any, num_prompts: int) -> list[SamplingParams]:
    """Return the settings of each prompt: one `SamplingParams` for all, or a list with one for each.

    Raises:
        RequestError: for anything else, or a list of another length.
    """
    if not isinstance(params, list | tuple):
        return [as_params(params)] * num_prompts
    if len(params) != num_prompts:
        raise RequestError(f"params has {len(params)} items for {num_prompts} prompts; give one, or one for each")
    return [as_params(one) for one in params]
