"""Acceptance rules: which drafted nodes the target would have written itself.

p is the target's distribution after a row (with the request's processors), q the draft's. Rules keep its law.

**coupled** (default). The target's token after a row is y = argmax(log p + gumbel(seed, position)). Walk from the root
while y is a child of the current row (Daliri et al., arXiv 2408.07978).

**rejection**. Accept child x with probability min(1, p(x)/q(x)); otherwise p <- normalise(max(p - q, 0)) and q loses x.
The bonus is drawn from the p that is left (Leviathan et al., arXiv 2211.17192; on trees, arXiv 2402.14160).

**block**. Judge a whole chain at once (Sun et al., arXiv 2403.10444). With r_i = min(1, r_{i-1} p(x_i)/q(x_i)) and
S_i = sum_v max(r_i p_{i+1}(v) - q_{i+1}(v), 0), accept the largest i with u_i <= h_i, where h_i = S_i / (S_i + 1 - r_i)
and h_K = r_K.


Example: p = (0.5, 0.5), draft x = 0 with q = (0.8, 0.2). `rejection` accepts with probability 0.625; otherwise the
residual (0, 0.3) says 1. In total P(0) = 0.8 * 0.625 = 0.5.

Shapes: B slots, N nodes, M = N + 1 rows, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError, nearest
from outrider.noise import Stream, pick, position_key
from outrider.processors.base import ProcessorState
from outrider.processors.path import NoLawError, PathLogits, PathProbs
from outrider.sampling import NO_TOKEN, SamplingParams, choose, choose_one, distribution, has_law
from outrider.target import Logits, as_tensor

__all__ = [
    "VERIFIERS",
    "AcceptedPath",
    "Chance",
    "NoiseChance",
    "VerifyInput",
    "block",
    "coupled",
    "coupled_chains",
    "rejection",
    "verifier",
    "walk",
]


class AcceptedPath(NamedTuple):
    """The accepted path of one slot.

    rows     rows of the path, without the root
    tokens   their tokens
    bonus    the target's own token after the path, or NO_TOKEN where its logits are not finite
    """

    rows: list[int]
    tokens: list[int]
    bonus: int


class Chance(ABC):
    """A source of random decisions about one slot.

    In production they come from counter-based noise. The proof of the tests takes both branches with their exact
    probabilities, so the code that runs is the code that is enumerated.
    """

    @abstractmethod
    def accept(self, probability: float, position: int, draw: int) -> bool:
        """Return True with the given probability. No two decisions of one text share (position, draw)."""

    @abstractmethod
    def pick(self, probs_V: Tensor, position: int) -> int:
        """Draw a token with probability proportional to `probs_V`, once for each position of a text."""


@final
class NoiseChance(Chance):
    """Decisions from the request's counter-based noise, independent of the noise of drafters."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def accept(self, probability: float, position: int, draw: int) -> bool:
        return position_key(self.seed, position, Stream.ACCEPT, draw).uniform < probability

    def pick(self, probs_V: Tensor, position: int) -> int:
        key_12 = torch.tensor([position_key(self.seed, position, Stream.RESIDUAL)])
        return int(pick(probs_V.cpu().log()[None], key_12).item())


@dataclass(frozen=True)
class VerifyInput:
    """The input of a rule, for all slots of a batch.

    logits_BMV   raw target logits of every row
    lengths      committed tokens of each slot in the cache, which is the root's position
    samplings    the settings of each slot's request
    processors   the state of each slot's processors behind the root, None where it has none; empty if no slot has any
    """

    logits_BMV: Logits
    lengths: list[int]
    samplings: list[SamplingParams]
    processors: Sequence[ProcessorState | None] = ()

    def path_logits(self, slot: int, tree: Tree) -> PathLogits | None:
        """Return the changed logits along a walk down this slot's tree, or None without processors."""
        state = self.processors[slot] if self.processors else None
        return None if state is None else PathLogits(self.logits_BMV[slot], tree, state)


def coupled(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
    """Walk down each tree while the target's own token is a child.

    On the host, logits are read only at the rows that the walk reaches.
    """
    if isinstance(given.logits_BMV, list) or given.logits_BMV.device.type == "cpu":
        return [walk(tree, _OwnTokens(given, slot, tree)) for slot, tree in enumerate(draft.trees)]
    accepted = _coupled_at_once(draft, given)
    for slot, state in enumerate(given.processors):
        if state is not None:
            tree = draft.trees[slot]
            accepted[slot] = walk(tree, _OwnTokens(given, slot, tree))
    return accepted


class _OwnTokens:
    """A function from a row of one slot to the target's own token after it."""

    def __init__(self, given: VerifyInput, slot: int, tree: Tree) -> None:
        self._logits_MV = given.path_logits(slot, tree) or given.logits_BMV[slot]
        self._sampling = given.samplings[slot]
        self._positions = [given.lengths[slot] + 1 + depth for depth in [0, *tree.depths()]]

    def __call__(self, row: int) -> int:
        return choose_one(self._logits_MV[row], self._positions[row], self._sampling)


def _coupled_at_once(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
    """Choose for every real row on the device, and walk after one copy to the host."""
    if draft.is_chain:
        return coupled_chains(draft, given)
    logits_RV = as_tensor(given.logits_BMV).flatten(0, 1)
    counts = [count + 1 for count in draft.num_nodes]
    if len(draft.real_rows) < logits_RV.shape[0]:  # padding rows need no choice
        logits_RV = logits_RV[draft.real_rows]
    row_samplings = [sampling for sampling, count in zip(given.samplings, counts, strict=True) for _ in range(count)]
    choices_R = choose(logits_RV, _next_positions_R(draft, given), row_samplings)
    choices = choices_R.where(has_law(logits_RV), NO_TOKEN).tolist()
    ends = list(accumulate(counts))
    wanted = [choices[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [walk(tree, tokens.__getitem__) for tree, tokens in zip(draft.trees, wanted, strict=True)]


def coupled_chains(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
    """Verify chains as `coupled` does, on the device.

    One copy brings choices, drafted tokens and accepted counts to the host. The emitted tokens are the choices, up to
    and with the first that the draft missed.
    """
    logits_BMV = as_tensor(given.logits_BMV)
    B, M, _ = logits_BMV.shape
    if all(sampling.greedy for sampling in given.samplings):
        choices_BM = logits_BMV.argmax(-1)
    else:
        firsts_B1 = torch.tensor(given.lengths, device=logits_BMV.device)[:, None] + 1
        positions_BM = firsts_B1 + torch.arange(M, device=firsts_B1.device)
        row_samplings = [sampling for sampling in given.samplings for _ in range(M)]
        choices_BM = choose(logits_BMV.flatten(0, 1), positions_BM.flatten(), row_samplings).view(B, M)
    choices_BM = choices_BM.where(has_law(logits_BMV), NO_TOKEN)
    right_BN = choices_BM[:, :-1] == draft.tokens_BN
    if min(draft.num_nodes) < M - 1:
        right_BN &= draft.real_rows_BM()[:, 1:]
    # the running product is 1 up to the first miss, so its sum is the accepted length
    counts_B1 = right_BN.long().cumprod(1).sum(1, keepdim=True)
    rows = torch.cat([choices_BM, draft.tokens_BN, counts_B1], dim=1).tolist()
    draft.tell_tokens([row[M:-1] for row in rows])
    return [AcceptedPath(list(range(1, row[-1] + 1)), row[: row[-1]], row[row[-1]]) for row in rows]


def _next_positions_R(draft: Draft, given: VerifyInput) -> Tensor:
    positions = [
        length + 1 + depth
        for length, tree in zip(given.lengths, draft.trees, strict=True)
        for depth in [0, *tree.depths()]
    ]
    return torch.tensor(positions, device=as_tensor(given.logits_BMV).device)


def walk(tree: Tree, own: Callable[[int], int]) -> AcceptedPath:
    """Walk down the tree while `own(row)`, the target's own token after a row, is a child of that row."""
    by_token = {(parent + 1, token): node + 1 for node, (token, parent) in enumerate(zip(*tree, strict=True))}
    path: list[int] = []
    row, token = 0, own(0)
    while (row, token) in by_token:
        row = by_token[row, token]
        path.append(row)
        token = own(row)
    return AcceptedPath(path, [tree.tokens[row - 1] for row in path], token)


def rejection(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
    """Apply the ratio test down the tree of each slot."""
    return [_judged(reject_tree, draft, given, slot, tree) for slot, tree in enumerate(draft.trees)]


def block(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
    """Apply the block rule to the chain of each slot."""
    if not draft.is_chain:
        raise ConfigError("verification 'block' needs chain drafts; use 'rejection' or 'coupled' for trees")
    return [_judged(judge_block, draft, given, slot, tree.tokens) for slot, tree in enumerate(draft.trees)]


def _judged(
    rule: Callable[..., AcceptedPath], draft: Draft, given: VerifyInput, slot: int, drafted: Any
) -> AcceptedPath:
    """Apply a ratio test to one slot; where a row has no distribution, nothing is accepted."""
    if bool(has_law(given.logits_BMV[slot][: draft.num_nodes[slot] + 1]).all()):
        with suppress(NoLawError):
            return rule(drafted, *_distributions(draft, given, slot), given.lengths[slot] + 1, _chance(given, slot))
    return AcceptedPath([], [], NO_TOKEN)


def _distributions(draft: Draft, given: VerifyInput, slot: int) -> tuple[Tensor | PathProbs, Tensor | None]:
    path_MV = given.path_logits(slot, draft.trees[slot])
    p_MV: Tensor | PathProbs
    if path_MV is None:
        p_MV = distribution(given.logits_BMV[slot], given.samplings[slot])
    else:
        p_MV = PathProbs(path_MV, given.samplings[slot])
    return p_MV, None if draft.probs_BMV is None else draft.probs_BMV[slot].to(p_MV.dtype)


def _chance(given: VerifyInput, slot: int) -> Chance:
    return NoiseChance(given.samplings[slot].seed)


def reject_tree(
    tree: Tree, p_MV: Tensor | PathProbs, q_MV: Tensor | None, position: int, chance: Chance
) -> AcceptedPath:
    """Return the accepted path of one tree under recursive rejection sampling.

    Args:
        p_MV: the target's distribution after every row; a row is read when the walk gets there.
        q_MV: the distribution each row's children were drawn from, without replacement; None for deterministic drafts.
        position: index in the text of the first token to be decided.
    """
    children = tree.children()
    path: list[int] = []
    while True:
        # after a rejection p_V is the residual; a new row starts again from the target's distribution
        row = path[-1] if path else 0
        p_V = p_MV[row]
        q_V = None if q_MV is None else q_MV[row]
        for draw, child in enumerate(children[row]):
            token = tree.tokens[child - 1]
            p, q = float(p_V[token]), 1.0 if q_V is None else float(q_V[token])
            if q > 0 and chance.accept(min(1.0, p / q), position + len(path), draw):
                path.append(child)
                break
            if q > 0:
                p_V = _residual(p_V, _one_hot(p_V, token) if q_V is None else q_V)
            q_V = None if q_V is None else _without(q_V, token)
        else:
            return AcceptedPath(path, [tree.tokens[row - 1] for row in path], chance.pick(p_V, position + len(path)))


def judge_block(
    tokens: list[int], p_MV: Tensor | PathProbs, q_MV: Tensor | None, position: int, chance: Chance
) -> AcceptedPath:
    """Return the accepted path of one chain under the block rule; the arguments are those of `reject_tree`."""
    length = len(tokens)
    p_V = p_MV[0]
    q_rows = [_one_hot(p_V, token) for token in tokens] if q_MV is None else q_MV
    ratio, num_accepted = 1.0, 0
    residual_V = p_V if length == 0 else _residual(p_V, q_rows[0])
    for i, token in enumerate(tokens, start=1):
        q = float(q_rows[i - 1][token])
        ratio = min(1.0, ratio * float(p_V[token]) / q) if q > 0 else 0.0
        if ratio == 0:
            break  # no later token can be accepted, and a form has no state behind a token that it forbids
        p_V = p_MV[i]
        excess_V = p_V * ratio if i == length else (p_V * ratio - q_rows[i]).clamp_(min=0)
        excess = float(excess_V.sum())
        keep = ratio if i == length else excess / (excess + 1 - ratio) if excess + 1 - ratio > 0 else 1.0
        # keyed by the step's first position: a later step decides about position + i - 1 again, with a fresh number
        if chance.accept(keep, position, i - 1):
            num_accepted = i
            residual_V = excess_V / excess if excess > 0 else p_V
    path = list(range(1, num_accepted + 1))
    return AcceptedPath(path, tokens[:num_accepted], chance.pick(residual_V, position + num_accepted))


def _residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Return normalise(max(p - q, 0)), or p itself where rounding leaves nothing, for then p == q."""
    rest_V = (p_V - q_V).clamp_(min=0)
    mass = rest_V.sum()
    return rest_V / mass if mass > 0 else p_V


def _without(q_V: Tensor, token: int) -> Tensor:
    rest_V = q_V.clone()
    rest_V[token] = 0
    mass = rest_V.sum()
    return rest_V / mass if mass > 0 else rest_V


def _one_hot(p_V: Tensor, token: int) -> Tensor:
    q_V = torch.zeros_like(p_V)
    q_V[token] = 1
    return q_V


Verifier = Callable[[Draft, VerifyInput], list[AcceptedPath]]
VERIFIERS: dict[str, Verifier] = {"coupled": coupled, "rejection": rejection, "block": block}


def verifier(name: str) -> Verifier:
    """Return the rule with a name.

    Raises:
        ConfigError: if there is no rule with that name.
    """
    if name not in list(VERIFIERS):
        raise ConfigError(f"unknown verification '{name}'{nearest(name, VERIFIERS)}")
    return VERIFIERS[name]
