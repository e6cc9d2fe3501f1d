"""Counters of a serving engine's speculation, and the figures that follow from them.

An engine behind HTTP gives no step records. vLLM counts drafts (steps of one request that had a draft), drafted and
accepted tokens, and accepted tokens by position; a client sees tokens arrive in bursts, one per step of its request.
With E the tokens behind each request's first one, and A the accepted tokens,

    steps                  max(bursts behind the first, E - A): a slow client sees two bursts as one, and what was
                           accepted behind the end of an answer is counted there though nobody gets it; E - A alone
                           where answers came in one piece
    tau                    E / steps, tokens per target forward, steps without a draft included
    mean_acceptance_length 1 + A / drafts, vLLM's own figure: only steps with a draft
    draft_coverage         drafts / steps; unknown where tokens were drafted and no drafts counted
    acceptance_per_pos     accepted at position k / drafts

Worked example: 21 tokens of one request in 9 bursts, 6 drafts of 4 tokens, 12 accepted. E = 20, so there were 8 steps:
tau 2.5, mean acceptance length 3.0, coverage 0.75.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

__all__ = ["Counters", "Seen", "figures_of", "total_of"]


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counts of an engine, or their growth over a while; named as vLLM names them.

    num_generation_tokens        tokens written, for anybody
    num_accepted_tokens_per_pos  accepted tokens at the drafts' first, second, ... position
    """

    num_generation_tokens: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: tuple[int, ...] = ()

    def is_growth_of(self, num_tokens: int) -> bool:
        """Return whether the counts can be those of `num_tokens` written tokens, and of nothing else."""
        counts = (self.num_drafts, self.num_draft_tokens, self.num_accepted_tokens, *self.num_accepted_tokens_per_pos)
        rises = [self.num_drafts, *self.num_accepted_tokens_per_pos]
        return (
            self.num_generation_tokens == num_tokens
            and min(counts) >= 0
            and self.num_accepted_tokens <= self.num_draft_tokens
            and all(deeper <= here for here, deeper in pairwise(rises))
        )

    def __add__(self, other: "Counters") -> "Counters":
        return self._with(other, 1)

    def __sub__(self, other: "Counters") -> "Counters":
        return self._with(other, -1)

    def _with(self, other: "Counters", sign: int) -> "Counters":
        width = max(len(self.num_accepted_tokens_per_pos), len(other.num_accepted_tokens_per_pos))
        mine, theirs = (_padded(counters.num_accepted_tokens_per_pos, width) for counters in (self, other))
        return Counters(
            num_generation_tokens=self.num_generation_tokens + sign * other.num_generation_tokens,
            num_drafts=self.num_drafts + sign * other.num_drafts,
            num_draft_tokens=self.num_draft_tokens + sign * other.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + sign * other.num_accepted_tokens,
            num_accepted_tokens_per_pos=tuple(one + sign * two for one, two in zip(mine, theirs, strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Observations of clients behind the first token of each request: tokens, and the bursts in which they came."""

    num_tokens: int
    num_bursts: int


def total_of(counters: Iterable[Counters]) -> Counters:
    """Return the sum of the counters."""
    return reduce(Counters.__add__, counters, Counters())


def figures_of(counters: Counters, seen: Seen) -> dict[str, Any]:
    """Return fields of a row by name; a figure that nothing defines is None."""
    steps = max(seen.num_bursts, seen.num_tokens - counters.num_accepted_tokens)
    drafts, drafted, accepted = counters.num_drafts, counters.num_draft_tokens, counters.num_accepted_tokens
    per_pos = counters.num_accepted_tokens_per_pos
    reached = [(drafts, per_pos[0]), *pairwise(per_pos)] if drafts and per_pos else []
    return {
        "tau": seen.num_tokens / steps if steps else None,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
        "draft_coverage": min(1.0, drafts / steps) if steps and (drafts or not drafted) else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_per_pos": tuple(count / drafts for count in per_pos) if reached else None,
        "conditional_acceptance_per_pos": tuple(now / before if before else 0.0 for before, now in reached) or None,
        "wasted_rows": (drafted - accepted) / drafted if drafted else None,
    }


def _padded(counts: tuple[int, ...], width: int) -> tuple[int, ...]:
    return counts + (0,) * (width - len(counts))
