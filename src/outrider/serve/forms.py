"""Answers in OpenAI's forms, with vLLM's additions: token ids on request, and the reason of a stop.

A `Reply` collects the answers to the prompts of one request. A form writes it, whole or as the chunks of a stream:

    chat          {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, ...}], "usage": {...}}
    completions   {"choices": [{"index": 0, "text": "Hi", "finish_reason": "stop", ...}], "usage": {...}}

`stop_reason` is the stop token or the stop string; None at the end of a text, at a limit, and where several strings
were given.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final
from uuid import uuid4

from outrider.records.codec import to_plain
from outrider.requests.logprobs import TokenLogprob
from outrider.serve.exchange import Step
from outrider.serve.logprobs import chat_logprobs, completion_logprobs
from outrider.serve.schema import ChatRequest, GenerationRequest
from outrider.serve.tools import ToolCall, ToolParser, wants_tools
from outrider.traces.trace import Texts, step_trace

__all__ = ["Answer", "ChatForm", "CompletionForm", "Form", "Reply"]

FINISH: Final = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "cancelled": "abort"}

Json = dict[str, Any]


@dataclass(kw_only=True)
class Answer:
    """The answer to one prompt, as far as it has come; `delta` holds what the last step brought."""

    index: int
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    new_tokens: Sequence[int] = ()
    new_text: str = ""
    shown: Json | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    new_logprobs: Sequence[TokenLogprob] = ()
    calls: list[ToolCall] = field(default_factory=list)
    new_calls: Sequence[ToolCall] = ()
    parser: ToolParser | None = None

    def read(self, text: str) -> None:
        """Add text; calls of tools are taken out of it."""
        content, calls = (text, list[ToolCall]()) if self.parser is None else self.parser.push(text)
        if self.parser is not None and self.finish_reason is not None:
            more, last = self.parser.flush()
            content, calls = content + more, [*calls, *last]
        self.new_text, self.new_calls = content, calls
        self.text += content
        self.calls += calls
        if self.calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"


@final
class Reply:
    """The answers to the prompts of one request."""

    def __init__(self, body: GenerationRequest, model: str, prompts: Sequence[Sequence[int]], texts: Texts) -> None:
        self.body = body
        self.model = model
        self.created = int(time.time())
        self.key = uuid4().hex
        with_tools = isinstance(body, ChatRequest) and wants_tools(body)
        self.choices = [
            Answer(index=index, prompt=prompt, parser=ToolParser() if with_tools else None)
            for index, prompt in enumerate(prompts)
        ]
        self.texts = texts

    def take(self, step: Step) -> Answer:
        """Add a step to its answer."""
        choice, event = self.choices[step.number], step.event
        choice.new_tokens = event.tokens
        choice.tokens += event.tokens
        choice.new_logprobs = event.logprobs
        choice.logprobs += event.logprobs
        choice.shown = None if step.trace is None else to_plain(step_trace(step.trace, event, self.texts))
        if event.finished is not None:
            choice.finish_reason = FINISH[event.finished]
            choice.stop_reason = self._stop_reason(event.tokens) if event.finished == "stop" else None
        choice.read(event.text)
        return choice

    def _stop_reason(self, tokens: Sequence[int]) -> int | str | None:
        if tokens and tokens[-1] in (self.body.stop_token_ids or ()):
            return tokens[-1]
        stops = [self.body.stop] if isinstance(self.body.stop, str) else self.body.stop or []
        return stops[0] if len(stops) == 1 else None

    @property
    def usage(self) -> Json:
        """The counts of tokens so far."""
        read = sum(len(choice.prompt) for choice in self.choices)
        written = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Form(ABC):
    """A kind of answers."""

    prefix: str
    whole_name: str
    chunk_name: str

    @abstractmethod
    def message(self, choice: Answer, reply: Reply) -> Json:
        """Return the fields of a whole answer."""

    @abstractmethod
    def delta(self, choice: Answer, reply: Reply) -> Json:
        """Return the fields of what the last step brought."""

    @abstractmethod
    def opening(self, reply: Reply) -> Iterator[Json]:
        """Yield the chunks before the first step."""

    def whole(self, reply: Reply) -> Json:
        """Return the finished answers."""
        choices = [_choice(choice, self.message(choice, reply)) for choice in reply.choices]
        return self.head(reply, self.whole_name) | {"choices": choices, "usage": reply.usage}

    def chunk(self, reply: Reply, choice: Answer) -> Json | None:
        """Return the chunk of the last step; None if it has nothing to say."""
        body = reply.body
        if not (
            choice.new_text
            or choice.new_calls
            or choice.finish_reason
            or body.return_token_ids
            or choice.shown
            or choice.new_logprobs
        ):
            return None
        chunk = self.head(reply, self.chunk_name) | {"choices": [_choice(choice, self.delta(choice, reply))]}
        if body.stream_options is not None and body.stream_options.continuous_usage_stats:
            chunk["usage"] = reply.usage
        return chunk if choice.shown is None else chunk | {"outrider": choice.shown}

    def closing(self, reply: Reply) -> Iterator[Json]:
        """Yield the chunks behind the last step."""
        if reply.body.has_usage:
            yield self.head(reply, self.chunk_name) | {"choices": [], "usage": reply.usage}

    def head(self, reply: Reply, name: str) -> Json:
        """Return the fields that every object of a reply has."""
        return {
            "id": f"{self.prefix}-{reply.key}",
            "object": name,
            "created": reply.created,
            "model": reply.model,
        }


def _choice(choice: Answer, fields: Mapping[str, Any]) -> Json:
    return {
        "index": choice.index,
        **fields,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


@final
class ChatForm(Form):
    """Answers of `/v1/chat/completions`."""

    prefix, whole_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def message(self, choice: Answer, reply: Reply) -> Json:
        message: Json = {"role": "assistant", "content": choice.text}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": [call.json for call in choice.calls]}
        found: Json = {"message": message, "logprobs": chat_logprobs(choice.logprobs, reply.texts)}
        return found | ({"token_ids": choice.tokens} if reply.body.return_token_ids else {})

    def delta(self, choice: Answer, reply: Reply) -> Json:
        delta: Json = {"content": choice.new_text}
        if choice.new_calls:
            start = len(choice.calls) - len(choice.new_calls)
            calls = enumerate(choice.new_calls, start)
            delta["tool_calls"] = [{"index": index, **call.json} for index, call in calls]
        found: Json = {"delta": delta, "logprobs": chat_logprobs(choice.new_logprobs, reply.texts)}
        return found | ({"token_ids": list(choice.new_tokens)} if reply.body.return_token_ids else {})

    def whole(self, reply: Reply) -> Json:
        return super().whole(reply) | _prompt_ids(reply)

    def opening(self, reply: Reply) -> Iterator[Json]:
        for choice in reply.choices:
            fields = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
            yield self.head(reply, self.chunk_name) | {"choices": [_choice(choice, fields)]} | _prompt_ids(reply)


def _prompt_ids(reply: Reply) -> Json:
    return {"prompt_token_ids": list(reply.choices[0].prompt)} if reply.body.return_token_ids else {}


@final
class CompletionForm(Form):
    """Answers of `/v1/completions`."""

    prefix, whole_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def message(self, choice: Answer, reply: Reply) -> Json:
        found: Json = {"text": choice.text, "logprobs": completion_logprobs(choice.logprobs, reply.texts, 0)}
        ids = {"token_ids": choice.tokens, "prompt_token_ids": list(choice.prompt)}
        return found | (ids if reply.body.return_token_ids else {})

    def delta(self, choice: Answer, reply: Reply) -> Json:
        known = choice.tokens[: -len(choice.new_tokens)] if choice.new_logprobs else []
        start = sum(len(reply.texts.of(token)) for token in known)
        logprobs = completion_logprobs(choice.new_logprobs, reply.texts, start)
        found: Json = {"text": choice.new_text, "logprobs": logprobs}
        if not reply.body.return_token_ids:
            return found
        is_first = len(choice.tokens) == len(choice.new_tokens)
        ids = {"prompt_token_ids": list(choice.prompt)} if is_first else {}
        return found | {"token_ids": list(choice.new_tokens)} | ids

    def opening(self, reply: Reply) -> Iterator[Json]:
        return iter(())
