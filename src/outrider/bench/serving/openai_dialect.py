"""vLLM's words: `/v1/completions` with token ids, so that the server reads exactly what our engine reads.

The answer is streamed; with `return_token_ids` each event holds the ids of the tokens that a step wrote, a *burst*.
What is asked for is spelled out, for a server may have other defaults (a repetition penalty from
`generation_config.json`, say). Servers of unknown engines are asked in these words too.

    data: {"choices": [{"token_ids": [17, 4], "finish_reason": null}]}        a burst of two
    data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 2}}
    data: [DONE]

Example: an answer of three tokens in two such events has the bursts [1, 2].
"""

from collections.abc import Mapping
from typing import Any, final

from outrider.bench.serving.dialect import CompletionRequest, Dialect, Reply, streamed
from outrider.http.answers import AnswerError, check_reason, choice_of, token_ids, usage_of
from outrider.http.client import ServerHttp

__all__ = ["OpenaiDialect"]


@final
class OpenaiDialect(Dialect):
    """Completions over token ids."""

    async def ask(self, http: ServerHttp, url: str, request: CompletionRequest, model: str) -> Reply:
        return await streamed(http, f"{url}/completions", body_of(request, model), request, take)


def body_of(request: CompletionRequest, model: str) -> dict[str, Any]:
    """Return the JSON body of a request."""
    ending = {"ignore_eos": True} if request.ignore_eos else {"stop_token_ids": sorted(request.ends)}
    return {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": request.limit,
        "temperature": request.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "seed": request.seed % 2**31,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        **ending,
        **request.extra,
    }


def take(reply: Reply, event: Mapping[str, Any], request: CompletionRequest, now: float) -> bool:
    """Take in an event; return whether it brought tokens."""
    reply.usage = usage_of(event) or reply.usage
    choice = choice_of(event)
    if choice is None:
        return False
    tokens = token_ids(choice, request.vocab_size)
    if tokens is None and choice.get("text"):
        raise AnswerError("gives no token ids; serve with vLLM 0.10.2 or later, which knows return_token_ids")
    reason = choice.get("finish_reason")
    if tokens:
        reply.extend(tokens, request, now)
    if reason is not None:
        check_reason(reason)
        reply.reason = reason
    return bool(tokens)
