"""The conversion of a body to what an engine takes: token ids, settings, and who drafts.

What this version of the engine does not know is refused by its name, so that no setting is silently dropped. A
temperature below 0.01 but above 0 counts as 0.01, as vLLM does it; without a temperature it is 1, OpenAI's default.
Without a seed one is drawn.

Example: `{"max_tokens": 5, "temperature": 0}` is `SamplingParams(max_tokens=5)`.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from outrider.errors import RequestError
from outrider.records.values import check_text
from outrider.requests.chat import render, tokenize
from outrider.requests.prompts import as_prompt
from outrider.sampling import SamplingParams
from outrider.serve.failures import RefusalError
from outrider.serve.schema import ChatRequest, CompletionRequest, GenerationRequest, Message

__all__ = ["chat_ids", "completion_ids", "sampling_params"]

LEAST_TEMPERATURE: Final = 0.01
SEED_BITS: Final = 62
NEUTRAL: Final[dict[str, Any]] = {
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "bad_words": [],
}
"""Settings that another processor of logits takes -> the value that changes nothing."""
KNOWN: Final = frozenset(field.name for field in fields(SamplingParams))


def sampling_params(body: GenerationRequest, max_tokens: int) -> SamplingParams:
    """Return the settings of a body.

    Raises:
        RefusalError: for a setting that cannot be honoured; names it.
    """
    _check_common(body)
    temperature = 1.0 if body.temperature is None else body.temperature
    values: dict[str, Any] = {
        "temperature": max(temperature, LEAST_TEMPERATURE) if temperature > 0 else 0.0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": 0 if body.top_k is None else body.top_k,
        "min_p": 0.0 if body.min_p is None else body.min_p,
        "seed": secrets.randbits(SEED_BITS) if body.seed is None else body.seed,
        "max_tokens": max_tokens,
        "stop": body.stop or (),
        "stop_token_ids": body.stop_token_ids or (),
        "ignore_eos": body.ignore_eos,
    }
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value != neutral:
            values[name] = _supported(name, value)
    values |= _structure(body) | _logprobs(body)
    try:
        return SamplingParams(**values)
    except RequestError as error:
        raise RefusalError(str(error)) from None


def _check_common(body: GenerationRequest) -> None:
    if body.n not in (None, 1):
        raise RefusalError(f"n={body.n}: this server gives one answer; send the request again for another", param="n")
    if isinstance(body, CompletionRequest):
        if body.echo:
            raise RefusalError("echo is not supported; leave it out", param="echo")
        if body.best_of not in (None, 1):
            raise RefusalError(f"best_of={body.best_of} is not supported; leave it out", param="best_of")


def _supported(name: str, value: Any) -> Any:
    if name not in KNOWN:
        raise RefusalError(f"{name} is not supported by this server; leave it out", param=name)
    return value


def _structure(body: GenerationRequest) -> dict[str, Any]:
    for name in ("structured_outputs", "response_format"):
        given = getattr(body, name)
        if given is not None and not (name == "response_format" and given.type == "text"):
            raise RefusalError(f"{name} is not supported by this server; leave it out", param=name)
    return {}


def _logprobs(body: GenerationRequest) -> dict[str, Any]:
    wanted = body.logprobs if isinstance(body, ChatRequest | CompletionRequest) else None
    if wanted is not None and wanted is not False:
        raise RefusalError("logprobs is not supported by this server; leave it out", param="logprobs")
    return {}


def chat_ids(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Return the token ids of a conversation, in which the model is told of tools.

    Raises:
        RequestError: if the model has no chat template, or that refuses the messages.
    """
    if tokenizer is None or not tokenizer.chat_template:
        raise RequestError("this model has no chat template; use /v1/completions")
    given = as_prompt([_message(message) for message in messages])
    variables = {"tools": list(tools)} if tools else {}
    text = render(tokenizer, given, **variables)  # type: ignore[arg-type]
    return tokenize(tokenizer, text, add_special_tokens=False)


def _message(message: Message) -> dict[str, Any]:
    """Return a message as templates read it: the arguments of a call as an object."""
    given = message.model_dump(exclude_unset=True)
    calls = given.get("tool_calls")
    if isinstance(calls, list):
        given["tool_calls"] = [_call(call) for call in calls]
    return given


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        raise RequestError("the arguments of a tool call are not JSON; send them as the model wrote them") from None
    return {**call, "function": {**function, "arguments": arguments}}


def completion_ids(tokenizer: Any, prompt: str | list[int]) -> list[int]:
    """Return the token ids of a plain prompt.

    Raises:
        RequestError: if it cannot be read.
    """
    if isinstance(prompt, list):
        return prompt
    if not prompt:
        raise RequestError("the prompt is empty; give at least one character")
    if tokenizer is None:
        raise RequestError("this model has no tokenizer; give token ids")
    check_text(prompt, "the prompt")
    return tokenize(tokenizer, prompt)
