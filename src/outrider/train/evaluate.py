"""The figures of a drafter on held-out texts: acceptance at each depth, the tau that it predicts, and the real tau.

An anchor is a position whose root the target wrote. Depth k is *reached* from an anchor if depths 1..k are all learnt
tokens of its text and the greedy guess was right at 1..k-1; it is *accepted* if the guess at k is right too.

    a_k  = accepted_k / reached_k              conditional acceptance
    tau  = 1 + sum_k prod_{j<=k} a_j           predicted tokens per target forward, greedy, chains

An anchor near the end of its text counts for the depths that exist there only. `overlap` is the mean of sum min(p, q)
at each depth: the acceptance of a sampled draft at temperature 1.

The prediction takes every position as an anchor; decoding starts a draft only where the last one ended, often at a
token that is hard to guess. So the real tau, which `decode` measures with the engine, is the figure that counts.

Worked example: two anchors, two depths, agreed [[1, 1], [1, 0]], all valid: a = (1, 0.5), tau = 1 + 1 + 0.5 = 2.5.

Shapes: K depths, R anchors.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from outrider.data.texts import Texts
from outrider.engine import Engine
from outrider.formats.token_ranking import write_ranking
from outrider.metrics import PrefillRecord, StepRecord, expected_tau, summarize
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.train.objective import Objective, Outcome

__all__ = ["Counts", "HeldOut", "RealTau", "decode", "prompts_of", "summary"]

NUM_SLOTS = 4


@dataclass(frozen=True, eq=False)
class Counts:
    """Sums over batches, in float64, so that those of several processes can be added.

    table_4K   rows: reached, accepted, valid places, overlap at them
    totals_3   loss, texts, 1 if overlap was computed anywhere
    """

    table_4K: Tensor
    totals_3: Tensor

    @classmethod
    def zero(cls, num_depths: int, device: torch.device | str = "cpu") -> Self:
        return cls(
            torch.zeros(4, num_depths, dtype=torch.float64, device=device),
            torch.zeros(3, dtype=torch.float64, device=device),
        )

    def add(self, outcome: Outcome) -> None:
        """Count one batch."""
        valid_KR = outcome.valid_KR.bool().cumprod(0).bool()  # a depth counts behind valid ones only
        right_KR = (outcome.agreed_KR.bool() & valid_KR).cumprod(0).bool()
        before_KR = torch.cat([torch.ones_like(right_KR[:1]), right_KR[:-1]])
        self.table_4K[0] += (valid_KR & before_KR).sum(1)
        self.table_4K[1] += right_KR.sum(1)
        if outcome.overlap_KR is not None:
            self.table_4K[2] += outcome.valid_KR.bool().sum(1)
            self.table_4K[3] += torch.where(outcome.valid_KR.bool(), outcome.overlap_KR, 0).sum(1)
            self.totals_3[2] = 1
        self.totals_3[0] += outcome.loss.detach()
        self.totals_3[1] += outcome.num_texts


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The figures of one evaluation; see the module's docstring. Empty tuples and None where nothing was counted.

    conditional    a_k; cut before the first depth that no anchor reached
    joint          prod_{j<=k} a_j
    overlap        acceptance of sampled drafts at each depth, given the target's own text before it
    sampled_tau    tau that `overlap` predicts
    """

    loss: float | None
    num_texts: int
    num_anchors: int
    conditional: tuple[float, ...]
    joint: tuple[float, ...]
    tau: float
    overlap: tuple[float, ...]
    sampled_tau: float | None


def summary(counts: Counts) -> HeldOut:
    """Return the figures of all that was counted."""
    reached, accepted, valid, overlap = counts.table_4K.tolist()
    loss, num_texts, has_overlap = counts.totals_3.tolist()
    conditional = _ratios(accepted, reached)
    overlaps = _ratios(overlap, valid) if has_overlap else ()
    return HeldOut(
        loss=loss / num_texts if num_texts else None,
        num_texts=int(num_texts),
        num_anchors=int(reached[0]),
        conditional=conditional,
        joint=tuple(accumulate(conditional, mul)),
        tau=expected_tau(conditional),
        overlap=overlaps,
        sampled_tau=expected_tau(overlaps) if overlaps else None,
    )


def _ratios(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, ...]:
    depths = next((k for k, whole in enumerate(wholes) if not whole), len(wholes))
    return tuple(part / whole for part, whole in zip(parts[:depths], wholes[:depths], strict=True))


@dataclass(frozen=True, kw_only=True)
class RealTau:
    """The result of decoding with the engine: tokens per target forward, over all answers."""

    tau: float
    conditional: tuple[float, ...]
    num_prompts: int
    num_tokens: int


def prompts_of(texts: Texts, limit: int, max_tokens: int) -> list[list[int]]:
    """Return the first prompts of texts: the tokens before the first one that the target wrote.

    Texts without an answer, without a prompt, or with a prompt longer than `max_tokens` are skipped.
    """
    found: list[list[int]] = []
    for index in range(len(texts)):
        if len(found) == limit:
            break
        example = texts.example(index)
        learnt = example.learn_T.nonzero()
        start = int(learnt[0]) if len(learnt) else 0
        if 1 <= start <= max_tokens:
            found.append(example.tokens_T[:start].tolist())
    return found


def decode(
    objective: Objective,
    target: Target,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ranking_N: Tensor | None = None,
) -> RealTau | None:
    """Save what is trained, load it as a proposer, and answer prompts greedily; None without prompts.

    Weights are saved in the target's dtype, or in fp32 for a target in fp64; the tokens' ranking lies beside them.

    Raises:
        OutriderError: if what was saved does not load; the objective and its proposer disagree.
    """
    if not prompts:
        return None
    spec = target.spec
    dtype = torch.float32 if spec.dtype == torch.float64 else spec.dtype
    with tempfile.TemporaryDirectory(prefix="outrider-") as directory:
        objective.save(Path(directory), dtype)
        if ranking_N is not None:
            write_ranking(Path(directory), ranking_N, target)
        proposer = load_proposer(objective.method, target, checkpoint=directory)
        records: list[StepRecord | PrefillRecord] = []
        longest = max(len(prompt) for prompt in prompts) + max_new_tokens
        engine = Engine(
            target,
            proposer,
            max_batch=min(NUM_SLOTS, len(prompts)),
            max_len=min(longest, spec.max_positions),
            record=records.append,
        )
        engine.generate([list(prompt) for prompt in prompts], SamplingParams(max_tokens=max_new_tokens))
    found = summarize(list(_steps(records)))
    return RealTau(
        tau=found.tokens_per_target_forward or 1.0,
        conditional=found.conditional_acceptance_per_pos,
        num_prompts=len(prompts),
        num_tokens=found.num_emitted_tokens,
    )


def _steps(records: Iterable[StepRecord | PrefillRecord]) -> Iterable[StepRecord]:
    return (record for record in records if isinstance(record, StepRecord))
