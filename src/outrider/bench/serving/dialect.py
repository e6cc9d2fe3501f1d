"""The interface of a dialect: one engine's way to take token ids and to give token ids back.

All engines list their models at `/v1/models` and name themselves there (`owned_by`); how a completion is asked for, and
what an answer tells besides its tokens, differs:

    openai_dialect   vLLM: /v1/completions, streamed; its counts stand on its metrics page
    sglang_dialect   SGLang: /generate, streamed; each answer holds its own counts
    llama_dialect    llama.cpp: /completion, in one piece; each answer holds its own counts and times

An answer is taken only if it is whole: it ends with a reason and with the server's own counts, which must be what was
sent and what arrived. Everything else is one `EndpointError` that says what happened.

Example: `await SglangDialect().ask(http, "http://localhost:30000/v1", request, "m")` is a `Reply`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from outrider.http.answers import AnswerError, Usage, check_prompt, check_reason, parsed
from outrider.http.client import ServerHttp
from outrider.records.display import shown
from outrider.results.counters import Counters

__all__ = ["CompletionRequest", "Dialect", "Reply", "check_whole", "streamed"]

DONE = b"[DONE]"


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """One request: token ids in, at most `limit` tokens out; `ends` are tokens that end the answer, unless ignored.

    vocab_size   above every token id that the target has
    extra        fields of the body that only some engines have
    """

    prompt: Sequence[int]
    limit: int
    vocab_size: int
    temperature: float
    seed: int
    ends: Sequence[int]
    ignore_eos: bool
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Reply:
    """An answer as it arrived; times are seconds of `perf_counter`.

    bursts     tokens by arrival; empty where the answer came in one piece
    counters   counts of this answer alone, by the server; None where its answers hold none. `num_drafts` is 0 where
               only tokens are counted
    """

    start: float
    tokens: list[int] = field(default_factory=list)
    bursts: list[int] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    reason: str | None = None
    usage: Usage | None = None
    counters: Counters | None = None

    def extend(self, tokens: Sequence[int], request: CompletionRequest, now: float) -> None:
        """Append a burst.

        Raises:
            AnswerError: if the answer had ended, or is longer than was asked for.
        """
        if self.reason is not None:
            raise AnswerError("went on with its answer after the end")
        if len(self.tokens) + len(tokens) > request.limit:
            raise AnswerError(f"wrote more than the {request.limit} tokens that were asked for")
        self.tokens += tokens
        self.bursts.append(len(tokens))
        self.first, self.last = self.first or now, now


class Dialect(ABC):
    """An engine's words."""

    @abstractmethod
    async def ask(self, http: ServerHttp, url: str, request: CompletionRequest, model: str) -> Reply:
        """Send one request and read its answer to the end.

        Args:
            url: the server's address, up to and with /v1.
            model: its name at the server.

        Raises:
            EndpointError: for any answer that is not whole.
        """


Take = Callable[[Reply, Mapping[str, Any], CompletionRequest, float], bool]


async def streamed(
    http: ServerHttp, address: str, body: Mapping[str, Any], request: CompletionRequest, take: Take
) -> Reply:
    """Send a request and read its stream; `take` adds an event to the reply and returns whether it brought tokens."""
    reply = Reply(start=perf_counter())

    def read(data: bytes) -> bool | None:
        if data == DONE:
            check_whole(reply, request)
            return None
        return take(reply, parsed(data), request, perf_counter()) if data else False

    await http.events(address, body, read)
    return reply


def check_whole(reply: Reply, request: CompletionRequest) -> None:
    """
    Raises:
        AnswerError: if an answer that has ended is not whole.
    """
    check_reason(reply.reason)
    usage = reply.usage
    if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        raise AnswerError("cut its answer off before the end: its counts are missing")
    check_prompt(usage, len(request.prompt))
    if usage.completion_tokens != len(reply.tokens):
        raise AnswerError(
            f"cut its answer off: it wrote {shown(usage.completion_tokens)} tokens and sent {len(reply.tokens)}"
        )
    if not reply.tokens:
        raise AnswerError("gave an empty answer")
