"""Log-probabilities of emitted tokens in OpenAI's two forms.

    chat          {"content": [{"token": " cat", "logprob": -0.1, "bytes": [32, 99, 97, 116], "top_logprobs": [...]}]}
    completions   {"tokens": [" cat"], "token_logprobs": [-0.1], "top_logprobs": [{" cat": -0.1}], "text_offset": [0]}

JSON has no infinity: a token that has no probability at all gets -9999, as in vLLM.
"""

from collections.abc import Sequence
from typing import Any, Final

from outrider.requests.logprobs import TokenLogprob
from outrider.traces.trace import Texts

__all__ = ["chat_logprobs", "completion_logprobs"]

LEAST: Final = -9999.0


def chat_logprobs(entries: Sequence[TokenLogprob], texts: Texts) -> dict[str, Any] | None:
    """Return the `logprobs` of a choice or a delta of a chat; None if there are none."""
    if not entries:
        return None
    return {
        "content": [
            _entry(one.token, one.logprob, texts)
            | {"top_logprobs": [_entry(token, logprob, texts) for token, logprob in one.top]}
            for one in entries
        ]
    }


def _entry(token: int, logprob: float, texts: Texts) -> dict[str, Any]:
    text = texts.of(token)
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode())}


def completion_logprobs(entries: Sequence[TokenLogprob], texts: Texts, start: int) -> dict[str, Any] | None:
    """Return the `logprobs` of a completion whose text begins at character `start`; None if there are none."""
    if not entries:
        return None
    tokens = [texts.of(one.token) for one in entries]
    offsets = [start]
    for text in tokens[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": tokens,
        "token_logprobs": [max(one.logprob, LEAST) for one in entries],
        "top_logprobs": [
            {texts.of(token): max(logprob, LEAST) for token, logprob in ((one.token, one.logprob), *one.top)}
            for one in entries
        ],
        "text_offset": offsets,
    }
