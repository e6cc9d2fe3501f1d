"""SGLang's words: its own `/generate`, for its OpenAI-compatible answers hold no token ids.

Events hold `output_ids`, all tokens so far, or only the new ones where the server runs with
`--incremental-streaming-output`; `meta_info.completion_tokens` says which. The last event counts the answer's
speculation. Two generations of names are read:

    spec_verify_ct                                          verifications, each of one draft
    spec_num_proposed_drafts, before spec_draft_token_num   drafted tokens
    spec_num_correct_drafts, before spec_accept_token_num   accepted tokens
    spec_correct_drafts_histogram, before spec_accept_histogram   verifications by number of accepted tokens

Source: `TokenizerManager._calculate_spec_decoding_metrics` of SGLang. Example: the histogram [1, 0, 2] is two of three
drafts accepted to depth 2, so position 0 and position 1 count 2 each.
"""

from collections.abc import Mapping
from typing import Any, final

from outrider.bench.serving.dialect import CompletionRequest, Dialect, Reply, streamed
from outrider.http.answers import AnswerError, Usage, check_reason, count_of, token_ids
from outrider.http.client import ServerHttp
from outrider.records.display import shown
from outrider.results.counters import Counters

__all__ = ["SglangDialect"]

DRAFTED = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
HISTOGRAMS = ("spec_correct_drafts_histogram", "spec_accept_histogram")
MOST_DEPTHS = 4096


@final
class SglangDialect(Dialect):
    """The native interface of SGLang."""

    async def ask(self, http: ServerHttp, url: str, request: CompletionRequest, model: str) -> Reply:
        return await streamed(http, f"{url.removesuffix('/v1')}/generate", body_of(request), request, take)


def body_of(request: CompletionRequest) -> dict[str, Any]:
    """Return the JSON body of a request; a seed where there is something to draw."""
    ending = {"ignore_eos": True} if request.ignore_eos else {"stop_token_ids": sorted(request.ends)}
    seed = {"sampling_seed": request.seed % 2**31} if request.temperature else {}
    sampling = {
        "max_new_tokens": request.limit,
        "temperature": request.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        **ending,
        **seed,
    }
    return {"input_ids": list(request.prompt), "sampling_params": sampling, "stream": True}


def take(reply: Reply, event: Mapping[str, Any], request: CompletionRequest, now: float) -> bool:
    """Take in an event; return whether it brought tokens."""
    told = event.get("meta_info")
    if not isinstance(told, Mapping):
        raise AnswerError(f"did not answer as SGLang: 'meta_info' is {shown(told)}")
    usage = Usage(count_of(told, "prompt_tokens"), count_of(told, "completion_tokens"))
    tokens = token_ids({"token_ids": event.get("output_ids")}, request.vocab_size) or []
    if len(tokens) == usage.completion_tokens:
        if tokens[: len(reply.tokens)] != reply.tokens:
            raise AnswerError("took back tokens that it had sent")
        tokens = tokens[len(reply.tokens) :]
    if tokens:
        reply.extend(tokens, request, now)
    reply.usage = usage
    ended = told.get("finish_reason")
    if ended is not None:
        reason = ended.get("type") if isinstance(ended, Mapping) else ended
        check_reason(reason)
        reply.reason = reason
        reply.counters = counters_in(told, len(reply.tokens))
    return bool(tokens)


def counters_in(told: Mapping[str, Any], num_tokens: int) -> Counters | None:
    """Return the counts of an answer; None where it was speculated on, but the server does not say how."""
    drafts = count_of(told, "spec_verify_ct") or 0
    drafted, accepted = (_first(told, names) for names in (DRAFTED, ACCEPTED))
    if drafts and (drafted is None or accepted is None):
        return None
    found = Counters(
        num_generation_tokens=num_tokens,
        num_drafts=drafts,
        num_draft_tokens=drafted or 0,
        num_accepted_tokens=accepted or 0,
        num_accepted_tokens_per_pos=_per_pos(told),
    )
    return found if found.is_growth_of(num_tokens) else None


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := count_of(told, name)) is not None), None)


def _per_pos(told: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how many verifications accepted a token at each position."""
    steps: list[int] = next((told[name] for name in HISTOGRAMS if isinstance(told.get(name), list)), [])
    if len(steps) > MOST_DEPTHS or not all(type(count) is int and count >= 0 for count in steps):
        return ()
    return tuple(sum(steps[depth:]) for depth in range(1, len(steps)))
