"""The conversion of a body to what an engine takes: token ids, settings, and who drafts.

What cannot be honoured is refused by its name, so that no setting is silently dropped. A temperature below 0.01 but
above 0 counts as 0.01, as vLLM does it; without a temperature it is 1, OpenAI's default. Without a seed one is drawn.

Example: `{"max_tokens": 5, "temperature": 0}` is `SamplingParams(max_tokens=5)`.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from outrider.errors import RequestError, on_one_line
from outrider.params import StructuredOutputs
from outrider.records.values import check_text
from outrider.requests.chat import render, tokenize
from outrider.requests.prompts import as_prompt
from outrider.sampling import SamplingParams
from outrider.serve.failures import RefusalError
from outrider.serve.schema import ChatRequest, CompletionRequest, GenerationRequest, Message

__all__ = ["chat_ids", "completion_ids", "sampling_params"]

LEAST_TEMPERATURE: Final = 0.01
SEED_BITS: Final = 62
PROCESSED: Final = (
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
)
"""Settings of `SamplingParams` that a body has under the same names."""


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
        "ignore_eos": bool(body.ignore_eos),
    }
    given = {name: getattr(body, name) for name in PROCESSED}
    values |= {name: value for name, value in given.items() if value is not None}
    values |= {"logprobs": _logprobs(body), "logit_bias": _biases(body.logit_bias)}
    try:
        return SamplingParams(**values, structured_outputs=_structure(body))
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


def _biases(given: Mapping[str, float] | None) -> dict[int, float]:
    """Return biases by token id; JSON has strings for keys."""
    biases = given or {}
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise RefusalError(f"logit_bias has the key '{on_one_line(key)}'; give token ids", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}


def _structure(body: GenerationRequest) -> StructuredOutputs | None:
    """Return the form of the answer, under OpenAI's names or vLLM's."""
    form, given = body.response_format, body.structured_outputs
    if form is not None and form.type != "text":
        if given is not None:
            raise RefusalError("give response_format or structured_outputs, not both", param="response_format")
        if form.type == "json_object":
            return StructuredOutputs(json_object=True)
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise RefusalError("response_format needs json_schema with a schema", param="response_format")
        return StructuredOutputs(json=form.json_schema.schema_)
    return None if given is None else StructuredOutputs(**given.model_dump(by_alias=True, exclude_none=True))


def _logprobs(body: GenerationRequest) -> int | None:
    """Return how many of the most probable tokens to tell; None for no log-probabilities."""
    if isinstance(body, ChatRequest):
        if body.top_logprobs and not body.logprobs:
            raise RefusalError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionRequest) else None


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
        arguments = json.loads(function["arguments"] or "{}")
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
