"""A client of an OpenAI-compatible server that takes down when tokens arrive.

Prompts go to `/v1/completions` as token ids, so the server reads exactly what our engine reads. The answer is streamed;
with `return_token_ids` each event holds the ids of the tokens that a step wrote, a *burst*. What is asked for is
spelled out, for a server may have other defaults (a repetition penalty from `generation_config.json`, say).

An answer is taken only if it is whole: the stream ends with a reason and with the server's own counts, which must be
what was sent and what arrived. Everything else is one `EndpointError` that says what happened.

    data: {"choices": [{"token_ids": [17, 4], "finish_reason": null}]}        a burst of two
    data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 2}}
    data: [DONE]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, final

from outrider.bench.serving.prometheus import counters_in
from outrider.errors import EndpointError, nearest, on_one_line
from outrider.http.answers import (
    AnswerError,
    Usage,
    check_prompt,
    check_reason,
    choice_of,
    model_names,
    parsed,
    token_ids,
    usage_of,
)
from outrider.http.client import ServerHttp
from outrider.records.display import shown
from outrider.results.counters import Counters, total_of

__all__ = ["Client", "CompletionRequest", "Reply"]

DONE = b"[DONE]"


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """One request: token ids in, at most `limit` tokens out; `ends` are tokens that end the answer, unless ignored.

    vocab_size   above every token id that the target has
    """

    prompt: Sequence[int]
    limit: int
    vocab_size: int
    temperature: float
    seed: int
    ends: Sequence[int]
    ignore_eos: bool

    def body(self, model: str) -> dict[str, Any]:
        """Return the JSON body of the request."""
        ending = {"ignore_eos": True} if self.ignore_eos else {"stop_token_ids": sorted(self.ends)}
        return {
            "model": model,
            "prompt": list(self.prompt),
            "max_tokens": self.limit,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "seed": self.seed % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            **ending,
        }


@dataclass(kw_only=True)
class Reply:
    """An answer as it arrived; times are seconds of `perf_counter`."""

    start: float
    tokens: list[int] = field(default_factory=list)
    bursts: list[int] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    reason: str | None = None
    usage: Usage | None = None


@final
class Client:
    """Speaks to one server; a key in `OPENAI_API_KEY` is sent.

    Args:
        url: up to and with /v1.
        stall_s: seconds that the server may be silent.
        metrics: addresses of Prometheus pages whose counters are added; by default the server's own.
    """

    def __init__(self, url: str, *, stall_s: float, metrics: Sequence[str] = ()) -> None:
        self.url = url.rstrip("/")
        self.metrics = tuple(metrics) or (f"{self.url.removesuffix('/v1')}/metrics",)
        self._http = ServerHttp(timeout_s=stall_s)

    async def close(self) -> None:
        """Hang up."""
        await self._http.close()

    async def model(self, wanted: str | None = None) -> str:
        """Return the model's name at the server.

        Raises:
            EndpointError: if it serves several and none is wanted by name, or the wanted one is not there.
        """
        names = await self._http.json("GET", f"{self.url}/models", None, model_names)
        if wanted is None and len(names) != 1:
            listed = on_one_line(", ".join(names))
            raise EndpointError(f"{self.url} serves {len(names)} models ({listed}); name one with --endpoint-model")
        if wanted is not None and wanted not in names:
            raise EndpointError(f"{self.url} has no model '{wanted}'{on_one_line(nearest(wanted, names))}")
        return wanted or names[0]

    async def counters(self) -> Counters | None:
        """Return the server's counters now; None where it shows none, or pages that are damaged."""
        try:
            found = [counters_in(await self._http.text(address)) for address in self.metrics]
        except EndpointError:
            return None
        known = [counters for counters in found if counters is not None]
        return total_of(known) if len(known) == len(found) else None

    async def ask(self, request: CompletionRequest, model: str) -> Reply:
        """Send one request and read its answer to the end.

        Raises:
            EndpointError: for any answer that is not whole.
        """
        reply = Reply(start=perf_counter())

        def take(data: bytes) -> bool | None:
            if data == DONE:
                _check_whole(reply, request)
                return None
            return _take(reply, parsed(data), request, perf_counter()) if data else False

        await self._http.events(f"{self.url}/completions", request.body(model), take)
        return reply


def _take(reply: Reply, event: Mapping[str, Any], request: CompletionRequest, now: float) -> bool:
    """Take in an event; return whether it brought tokens or the end."""
    reply.usage = usage_of(event) or reply.usage
    choice = choice_of(event)
    if choice is None:
        return False
    tokens = token_ids(choice, request.vocab_size)
    if tokens is None and choice.get("text"):
        raise AnswerError("gives no token ids; serve with vLLM 0.10.2 or later, which knows return_token_ids")
    reason = choice.get("finish_reason")
    if tokens:
        if reply.reason is not None:
            raise AnswerError("went on with its answer after the end")
        if len(reply.tokens) + len(tokens) > request.limit:
            raise AnswerError(f"wrote more than the {request.limit} tokens that were asked for")
        reply.tokens += tokens
        reply.bursts.append(len(tokens))
        reply.first, reply.last = reply.first or now, now
    if reason is not None:
        check_reason(reason)
        reply.reason = reason
    return bool(tokens)


def _check_whole(reply: Reply, request: CompletionRequest) -> None:
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
