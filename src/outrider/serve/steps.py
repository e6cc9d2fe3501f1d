"""A step of one request as JSON, for a page that shows who wrote each token.

    {"step": 7, "tokens": [{"id": 5, "text": " cat", "by": "draft"}, {"id": 9, "text": " sat", "by": "bonus"}],
     "draft": {"ids": [5, 6], "texts": [" cat", " ran"], "parents": [-1, 0], "accepted": [0], "probs": [0.9, 0.1]},
     "ms": {"propose": 0.2, "verify": 9.1, "accept": 0.1, "commit": 0.0, "host": 0.1, "total": 9.5}}

`by` is "draft" for an accepted token, "bonus" for the target's own after a draft, "plain" for that of a step without a
draft. The texts of `tokens` joined are the text of the chunk: one that waits for a stop string comes later.
"""

from functools import lru_cache
from typing import Any, final

from outrider.requests.detokenize import Vocabulary
from outrider.requests.events import Event
from outrider.serve.engines.tracing import StepTrace

__all__ = ["Texts", "step_json"]

MOST_TEXTS = 8192


@final
class Texts:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = None if tokenizer is None else Vocabulary(tokenizer)

        @lru_cache(MOST_TEXTS)
        def text(token: int) -> str:
            return "" if vocabulary is None else vocabulary.decode([token], False) or ""

        self.of = text


def step_json(trace: StepTrace, event: Event, texts: Texts) -> dict[str, Any]:
    """Return the step as the module's docstring shows it."""
    tree = trace.tree
    last = "bonus" if tree.tokens else "plain"
    pieces = [piece.text for piece in event.pieces]
    shown = _spread(pieces, len(event.tokens))
    return {
        "step": trace.step,
        "tokens": [
            {"id": token, "text": text, "by": "draft" if index < event.num_accepted else last}
            for index, (token, text) in enumerate(zip(event.tokens, shown, strict=True))
        ],
        "draft": {
            "ids": list(tree.tokens),
            "texts": [texts.of(token) for token in tree.tokens],
            "parents": list(tree.parents),
            "accepted": list(trace.accepted),
            "probs": list(trace.probs),
        },
        "ms": {name: round(1000 * seconds, 3) for name, seconds in trace.seconds.items()},
    }


def _spread(pieces: list[str], count: int) -> list[str]:
    """Return one text per token; the last one gets what is left.

    >>> _spread(["a", "b", "c"], 2)
    ['a', 'bc']
    """
    if count == 0:
        return []
    texts = [*pieces[: count - 1], *[""] * (count - 1 - len(pieces))]
    return [*texts, "".join(pieces[count - 1 :])]
