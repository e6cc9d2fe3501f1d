"""The same logits, computed in different ways: how much does rounding move them?

`replay` reads a text again and again and gives the logits after its last token. Way 0 is plain decoding: the prompt is
prefilled, the rest read one row at a time. Way i reads the rest in chains of `num_rows[i]` rows, as a method does whose
drafts are all accepted, so that the cache too was written by passes of that size. The last pass is filled up with nodes
that do not matter, as behind a rejected draft. Nothing is decoded or decided here.

Example: a prompt of 5 tokens, an answer of 7 so far, chains of 3 rows: after prefilling 4 tokens, 8 are left, read as
3 + 3 + 2 rows and one to fill up; the logits of the last pass's second row are the result.

Shapes: R ways, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.target import Target, TargetSession, as_tensor

__all__ = ["DEFAULT_ROWS", "replay"]

DEFAULT_ROWS = (2, 4, 8, 16)


def replay(
    target: Target,
    tokens: Sequence[int],
    num_prompt: int,
    num_rows: Sequence[int] = DEFAULT_ROWS,
    num_slots: int = 1,
) -> Tensor:
    """Return the logits after `tokens` on the host, [R, V]: one row per pass first, then each of `num_rows`.

    Args:
        tokens: prompt and answer so far.
        num_prompt: tokens of the prompt, which is prefilled but for its last.
        num_slots: the text is read in that many slots at once; row 0 of the result is always read in one.
    """
    assert 1 <= num_prompt <= len(tokens)
    ways = [_read(target, tokens, num_prompt, 1, 1)]
    ways += [_read(target, tokens, num_prompt, rows, num_slots) for rows in num_rows]
    ways += [_read(target, tokens, num_prompt, 1, num_slots)] if num_slots > 1 else []
    return torch.cat(ways)


def _read(target: Target, tokens: Sequence[int], num_prompt: int, num_rows: int, num_slots: int) -> Tensor:
    session: TargetSession = target.open(target.plan(num_slots, max(2, len(tokens)), tail=num_rows))
    slots = list(range(num_slots))
    session.prefill(slots, [tokens[: num_prompt - 1]] * num_slots)
    logits: list[Tensor] = []
    for start in range(num_prompt - 1, len(tokens), num_rows):
        rows = tokens[start : start + num_rows]
        room = min(num_rows, target.spec.max_positions - start) - len(rows)
        chain = Tree.chain([*rows[1:], *[rows[-1]] * room])
        draft = Draft.of_trees([chain] * num_slots, target.spec.device)
        forward = session.forward(slots, [rows[0]] * num_slots, draft)
        session.cache.commit(slots, [range(1, len(rows))] * num_slots)
        logits = [as_tensor(forward.logits_BMV)[:, len(rows) - 1].cpu()]
    return logits[0]
