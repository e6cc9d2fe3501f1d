"""A check of every file on loading: are drafted steps on llama.cpp what plain decoding is?

Tokens are read one by one, which is the reference, and then as the engine reads them: two slots of different lengths, a
step with a tree in one and a chain in the other, of which a part is accepted, and a step behind it. Both are done with
keys and values in fp32, and once more as the target computes. How far rounding alone moves logits is measured too: by
reading all tokens at once.

    tokens 0 1 2 3 4 5 6 7 8        slot 0: prompt 0..4, root 5, a wrong node, 6, a wrong node, 7 under 6; 6 accepted
                                    slot 1: prompt 0..2, root 3, draft 4 5 and a wrong node; 4 5 accepted
    next step                       slot 0: root 7, slot 1: root 6

A wrong mask, a wrong position or a state that was not restored moves logits by far more than rounding; such a file is
refused. Difference measured: ||ours - plain|| / ||plain - its mean over the vocabulary||.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from outrider.cache import CachePlan
from outrider.draft import Draft, Tree
from outrider.errors import CheckpointError, RunError, said
from outrider.target import Target, TargetSession, as_tensor

__all__ = ["MemoryBytes", "memory_bytes", "rehearse"]

NUM_TOKENS: Final = 9
TOLERANCE: Final = 0.05
ROUNDED: Final = 0.8
"""The same where keys and values are rounded to fp16 and summed in another order; quantised activations magnify it."""
ROUNDED_TWICE: Final = 2.0
"""Times by which drafted steps may differ more than plain decoding does from reading the text at once."""

Opener = Callable[[CachePlan], TargetSession]


class MemoryBytes(NamedTuple):
    """Memory of a slot: for each position, and beside them."""

    per_token: int
    per_slot: int


def memory_bytes(target: Target) -> MemoryBytes:
    """Measure the memory of a slot by what is stored of texts of two lengths."""
    session = target.open(target.plan(1, 2 * NUM_TOKENS, tail=1))
    sizes: list[int] = []
    for length in (NUM_TOKENS, 2 * NUM_TOKENS):
        session.prefill([0], [_tokens(target.spec.vocab_size)])  # a piece more
        sizes.append(session.cache.copy(0, length).num_bytes)
    per_token = max(0, (sizes[1] - sizes[0]) // NUM_TOKENS)
    return MemoryBytes(per_token, max(0, sizes[0] - per_token * NUM_TOKENS))


def rehearse(target: Target, exactly: Opener) -> None:
    """Compare drafted steps with plain decoding, in sessions that `exactly` opens and in the target's own.

    Raises:
        CheckpointError: if they differ.
    """
    name, tokens = target.spec.name, _tokens(target.spec.vocab_size)
    for opened, tolerance in ((exactly, TOLERANCE), (target.open, ROUNDED)):
        rehearsal = _Rehearsal(target, opened, tokens)
        plain_MV, read_MV = rehearsal.plain(), rehearsal.read()
        allowed = max(tolerance, ROUNDED_TWICE * _difference(read_MV, plain_MV))
        try:
            steps = rehearsal.drafted()
        except (RunError, AssertionError) as error:
            raise CheckpointError(
                f"{name} cannot verify drafts on llama.cpp: {said(error)}; use another file or another back end"
            ) from error
        for step, (ours_MV, at) in enumerate(steps):
            difference = min(_difference(ours_MV, plain_MV[at]), _difference(ours_MV, read_MV[at]))
            if not difference <= allowed:
                what = "the step behind a rejected draft" if step else "a step with drafts"
                raise CheckpointError(
                    f"{name} cannot verify drafts on llama.cpp: {what} changes its logits by {difference:.1e}"
                    f" (tolerance {allowed:.0e}); use another file or another back end"
                )


def _difference(ours_MV: Tensor, plain_MV: Tensor) -> float:
    ours_MV, plain_MV = ours_MV.double(), plain_MV.double()
    spread = (plain_MV - plain_MV.mean(-1, keepdim=True)).norm()
    return float((ours_MV - plain_MV).norm() / spread)


class _Step(NamedTuple):
    """Logits [M, V] of some rows, and the tokens behind which plain decoding has the same."""

    logits_MV: Tensor
    at: list[int]


@final
class _Rehearsal:
    """The same tokens, read one by one and with drafts."""

    def __init__(self, target: Target, opened: Opener, tokens: list[int]) -> None:
        self._target = target
        self._opened = opened
        self._tokens = tokens

    def plain(self) -> Tensor:
        """Return the logits [M, V] after each token, read one by one."""
        session = self._opened(self._target.plan(1, NUM_TOKENS, tail=1))
        rows: list[Tensor] = []
        for token in self._tokens:
            rows.append(as_tensor(session.forward([0], [token], Draft.empty(1)).logits_BMV)[0, 0])
            session.cache.commit([0], [[]])
        return torch.stack(rows)

    def read(self) -> Tensor:
        """Return the same of all tokens read at once."""
        session = self._opened(self._target.plan(1, NUM_TOKENS, tail=NUM_TOKENS))
        draft = Draft.of_chains([self._tokens[1:]])
        return as_tensor(session.forward([0], [self._tokens[0]], draft).logits_BMV)[0]

    def drafted(self) -> list[_Step]:
        """Return the logits of two steps."""
        spec, tokens = self._target.spec, self._tokens
        wrong = (tokens[6] + 1) % spec.vocab_size
        session = self._opened(self._target.plan(2, 2 * NUM_TOKENS, tail=5))
        session.prefill([0, 1], [tokens[:5], tokens[:3]])
        if spec.drafts == "trees":
            tree, rows, path = Tree([wrong, tokens[6], wrong, tokens[7]], [-1, -1, 0, 1]), {0: 5, 2: 6, 4: 7}, [2]
        else:
            tree, rows, path = Tree.chain([tokens[6], wrong]), {0: 5, 1: 6}, [1]
        draft = Draft.of_trees([tree, Tree.chain([tokens[4], tokens[5], wrong])])
        logits = session.forward([0, 1], [tokens[5], tokens[3]], draft).logits_BMV
        first = _Step(torch.cat([logits[0][list(rows)], logits[1][:3]]), [*rows.values(), 3, 4, 5])
        session.cache.commit([0, 1], [path, [1, 2]])
        logits = session.forward([0, 1], [tokens[7], tokens[6]], Draft.empty(2)).logits_BMV
        return [first, _Step(torch.stack([logits[0][0], logits[1][0]]), [7, 6])]


def _tokens(vocab_size: int) -> list[int]:
    """Return tokens that are distinct if the vocabulary allows it, none of the first few, which are often special."""
    return [(5 + 3 * index) % vocab_size for index in range(NUM_TOKENS)]
