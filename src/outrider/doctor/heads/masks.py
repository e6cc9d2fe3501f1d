"""Candidates for the mask token of drafters that guess several tokens at once.

Only its embedding means anything, and trainers take a row that no text uses: the first one behind the tokenizer's, or
one of its added tokens.

Example: `mask_tokens(target, 0)` of a target with added tokens 0, 1 and 2, and 4 rows, is `[3, 2, 1]`.
"""

from itertools import islice
from typing import Final

from outrider.target import Target

__all__ = ["mask_tokens"]

MOST: Final = 12


def mask_tokens(target: Target, named: object) -> list[int]:
    """Return the candidates but the one that is named, the likeliest first."""
    tokenizer = target.tokenizer
    if tokenizer is None:
        return []
    behind = [len(tokenizer)] if len(tokenizer) < target.spec.vocab_size else []
    added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    found = [*behind, *sorted((one for one in added if type(one) is int), reverse=True)]
    return list(islice((token for token in found if token != named), MOST))
