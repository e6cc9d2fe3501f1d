"""llama.cpp's words: its own `/completion`, for its OpenAI-compatible answers hold no token ids.

The answer comes in one piece: in a stream the tokens inside a character of several bytes are not sent, and writing a
line for each token would cost the server time that plain decoding with another engine does not pay. Its `timings`
separate reading from writing, and count the speculation:

    {"tokens": [17, 4, 2], "tokens_evaluated": 30, "stop_type": "eos",
     "timings": {"predicted_n": 3, "predicted_ms": 21.0, "draft_n": 4, "draft_n_accepted": 1}}

`draft_n` is missing where nothing was drafted. The number of drafts is on the metrics page only. The server ends at its
file's own end-of-text tokens.

Source: `server_slot_stats::to_json` in llama.cpp's tools/server/server-common.cpp. Example: the answer above has 1 of 4
drafted tokens accepted, and its first token 21 ms before its end.
"""

from collections.abc import Mapping
from time import perf_counter
from typing import Any, final

from outrider.bench.serving.dialect import CompletionRequest, Dialect, Reply, check_whole
from outrider.http.answers import AnswerError, Usage, count_of, token_ids
from outrider.http.client import ServerHttp
from outrider.records.display import shown
from outrider.results.counters import Counters

__all__ = ["LlamaDialect"]

REASONS = {"eos": "stop", "word": "stop", "limit": "length"}


@final
class LlamaDialect(Dialect):
    """The native interface of llama.cpp's server."""

    async def ask(self, http: ServerHttp, url: str, request: CompletionRequest, model: str) -> Reply:
        start = perf_counter()

        def read(answer: Mapping[str, Any]) -> Reply:
            return reply_of(answer, request, start, perf_counter())

        return await http.json("POST", f"{url.removesuffix('/v1')}/completion", body_of(request), read)


def body_of(request: CompletionRequest) -> dict[str, Any]:
    """Return the JSON body of a request; the cache of prompts is off, so that a repeat reads its prompt again."""
    return {
        "prompt": list(request.prompt),
        "n_predict": request.limit,
        "temperature": request.temperature,
        "samplers": ["temperature"],
        "seed": request.seed % 2**31,
        "ignore_eos": request.ignore_eos,
        "cache_prompt": False,
        "return_tokens": True,
        "stream": False,
    }


def reply_of(answer: Mapping[str, Any], request: CompletionRequest, start: float, now: float) -> Reply:
    """Read an answer.

    Raises:
        AnswerError: if it is not whole.
    """
    timings = answer.get("timings")
    tokens = token_ids({"token_ids": answer.get("tokens")}, request.vocab_size)
    if tokens is None or not isinstance(timings, Mapping):
        raise AnswerError(f"did not answer as llama.cpp: 'timings' is {shown(timings)}, 'tokens' {shown(tokens)}")
    reply = Reply(start=start, reason=REASONS.get(str(answer.get("stop_type"))))
    if len(tokens) > request.limit:
        raise AnswerError(f"wrote more than the {request.limit} tokens that were asked for")
    reply.tokens += tokens
    reply.usage = Usage(count_of(answer, "tokens_evaluated"), count_of(timings, "predicted_n"))
    check_whole(reply, request)
    reply.first, reply.last = max(start, now - _seconds(timings)), now
    counters = Counters(
        num_generation_tokens=len(tokens),
        num_draft_tokens=count_of(timings, "draft_n") or 0,
        num_accepted_tokens=count_of(timings, "draft_n_accepted") or 0,
    )
    reply.counters = counters if counters.is_growth_of(len(tokens)) else None
    return reply


def _seconds(timings: Mapping[str, Any]) -> float:
    """Return the seconds from the first token to the last."""
    spent_ms = timings.get("predicted_ms")
    if isinstance(spent_ms, bool) or not isinstance(spent_ms, int | float) or not 0 <= spent_ms < 1e9:
        raise AnswerError(f"did not answer as llama.cpp: 'predicted_ms' is {shown(spent_ms)}")
    return spent_ms / 1000
