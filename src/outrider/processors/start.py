"""The processors of a request, in the order in which they act.

    grammar, bad words, min_tokens     masks: a token is allowed or not
    logit_bias
    repetition, frequency, presence    penalties
    temperature, top-k, top-p, min-p   `outrider.sampling`

This is vLLM's order. `transformers` applies its masks last, which gives the same logits, since a finite bias or penalty
does not bring a forbidden token back.

Example: `start_processors(SamplingParams(), prompt, ...)` is None: a request without them pays nothing.
"""

from collections.abc import Sequence
from typing import Any

from outrider.errors import RequestError
from outrider.params import SamplingParams
from outrider.processors.bans import BadWords, MinTokens
from outrider.processors.base import Processor, ProcessorState
from outrider.processors.forms import Forms
from outrider.processors.grammar import Grammar
from outrider.processors.logit_bias import LogitBias
from outrider.processors.penalties import Penalties
from outrider.records.display import shown

__all__ = ["start_processors"]


def start_processors(
    params: SamplingParams, prompt: Sequence[int], tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]
) -> ProcessorState | None:
    """Return the state of a request's processors behind its prompt, or None if it has none.

    Raises:
        RequestError: if the target cannot serve a setting.
    """
    found: list[Processor] = []
    if params.structured_outputs is not None:
        if tokenizer is None:
            raise RequestError("structured outputs need a tokenizer, and this target has none")
        matcher = Forms.of(tokenizer, vocab_size, eos_ids).matcher(params.structured_outputs)
        found.append(Grammar(matcher, vocab_size, tuple(eos_ids)))
    if params.bad_words:
        words = _bad_tokens(params.bad_words, tokenizer)
        if possible := [word for word in words if max(word) < vocab_size]:  # the rest has no logits
            found.append(BadWords(possible))
    ends = [token for token in {*eos_ids, *params.stop_token_ids} if 0 <= token < vocab_size]
    if params.min_tokens and ends:
        found.append(MinTokens(params.min_tokens, ends))
    if params.logit_bias:
        for token, _ in dict(params.logit_bias).items():
            if not 0 <= token < vocab_size:
                raise RequestError(f"token {shown(token)} of logit_bias is outside the vocabulary of {vocab_size}")
        found.append(LogitBias(tuple(dict(params.logit_bias).items())))
    if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1:
        found.append(Penalties(params, frozenset(prompt if params.repetition_penalty != 1 else ())))
    return ProcessorState(found) if found else None


def _bad_tokens(words: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """Return the words as tokens, each also with a space in front where that changes its first token, as vLLM does."""
    if tokenizer is None:
        raise RequestError("bad words need a tokenizer, and this target has none")
    found: list[tuple[int, ...]] = []
    for word in words:
        plain, spaced = (
            tuple(tokenizer.encode(space + word.lstrip(), add_special_tokens=False)) for space in ("", " ")
        )
        if not plain:
            raise RequestError(f"the bad word {shown(word)} has no tokens; leave it out")
        found.append(plain)
        if spaced[0] != plain[0] and len(spaced) == len(plain):
            found.append(spaced)
    return found
