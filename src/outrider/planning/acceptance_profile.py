"""Acceptance of drafts, and the tokens that a step then emits.

`ranks[d][r]` is the share of cases in which the drafter's candidate of rank r at depth d is the target's own token,
given that everything above it was; the last known depth stands for all deeper ones. A node with the rank path (r1, ..,
rd) is accepted with probability ranks[0][r1] * .. * ranks[d-1][rd], and a draft with the nodes T, which a step has with
probability c (its coverage), gives

    E[tau] = 1 + c * sum over T of that product          for a chain: 1 + c * (a_1 + a_1 a_2 + ...)

With several ranks, n nodes are best spent on the n likeliest paths (arXiv 2401.10774, section 2.3).

With X tokens a step, an answer of n tokens takes
N(n) = 1 + E[N(n - X)] steps, N(0 or less) = 0; its own tau is n / N(n).

Worked example: a = (0.5, 0.5), c = 1: a step emits 1, 2 or 3 tokens with 0.5, 0.25, 0.25, so E[tau] = 1.75. An answer
of 2 tokens takes N = 1 + 0.5 N(1) = 1.5 steps, tau 1.33.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from outrider.errors import ConfigError
from outrider.proposers.drafting.medusa_tree import grown_paths

__all__ = ["AcceptanceProfile", "DraftShape", "draft_of_paths", "expected_steps"]

Path = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DraftShape:
    """The average step with a draft.

    num_nodes   mean nodes of a slot that drafts
    depth       depth of the deepest node
    coverage    share of steps that draft at all
    reached     reached[d]: share of drafts accepted to depth d + 1 or deeper
    """

    num_nodes: float
    depth: int
    coverage: float
    reached: tuple[float, ...]

    @property
    def tau(self) -> float:
        """Tokens per target forward, of an answer without end."""
        return 1 + self.coverage * sum(self.reached)

    @property
    def emitted(self) -> tuple[float, ...]:
        """emitted[i]: share of steps that emit i + 1 tokens; sums to 1."""
        exactly = [here - deeper for here, deeper in pairwise((1.0, *self.reached, 0.0))]
        law = [self.coverage * share for share in exactly]
        law[0] += 1 - self.coverage
        return tuple(law)

    def tau_of(self, num_tokens: int) -> float:
        """Return the tokens per target forward of answers of exactly `num_tokens`."""
        return num_tokens / expected_steps(self.emitted, num_tokens)


EMPTY = DraftShape(num_nodes=0.0, depth=0, coverage=0.0, reached=())
"""Plain decoding."""


@dataclass(frozen=True, kw_only=True)
class AcceptanceProfile:
    """An acceptance profile; see the module's docstring.

    ranks      by depth, then by rank; at every depth they sum to at most 1
    coverage   share of steps with a draft
    width      mean nodes per level of a draft with a single rank

    Raises:
        ConfigError: for a share outside 0 to 1, ranks that sum to more than 1, or no depth at all.
    """

    ranks: tuple[tuple[float, ...], ...]
    coverage: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.ranks or not all(self.ranks):
            raise ConfigError("an acceptance profile is empty; give at least one number, such as 0.8")
        for share in (*(share for depth in self.ranks for share in depth), self.coverage):
            if not 0 <= share <= 1:
                raise ConfigError(f"an acceptance of {share:g} is not between 0 and 1; give shares, such as 0.8")
        for place, depth in enumerate(self.ranks, 1):
            if sum(depth) > 1 + 1e-9:
                raise ConfigError(
                    f"the ranks at depth {place} are accepted with {sum(depth):g} in all; candidates exclude each "
                    "other, so give shares that sum to at most 1"
                )

        if not self.width > 0:
            raise ConfigError(f"width={self.width:g} must be positive")

    @classmethod
    def chain(cls, conditional: Sequence[float], *, coverage: float = 1.0, width: float = 1.0) -> Self:
        """Return the profile of a drafter whose acceptance is known by depth alone."""
        return cls(ranks=tuple((share,) for share in conditional), coverage=coverage, width=width)

    @property
    def is_chain(self) -> bool:
        """True if there is one rank alone."""
        return all(len(depth) == 1 for depth in self.ranks)

    def depths(self, num_nodes: int) -> range:
        """Return the depths that are worth trying with so many nodes; with a single rank there is one."""
        if not self.is_chain:
            return range(1, num_nodes + 1)
        depth = num_nodes if self.width <= 1 else max(1, round(num_nodes / self.width))
        return range(depth, depth + 1)

    def draft(self, num_nodes: int, depth: int) -> DraftShape:
        """Return the best draft of at most `num_nodes` nodes and `depth` levels."""
        if num_nodes == 0 or depth == 0:
            return EMPTY
        known = [self.ranks[min(level, len(self.ranks) - 1)] for level in range(depth)]
        if self.is_chain:
            shape = draft_of_paths([(0,) * (level + 1) for level in range(depth)], known)
            nodes = min(float(num_nodes), depth * self.width)
        else:
            shape = draft_of_paths(grown_paths(known, num_nodes)[:num_nodes], known)
            nodes = shape.num_nodes
        return replace(shape, num_nodes=nodes, coverage=self.coverage)


def draft_of_paths(paths: Sequence[Path], ranks: Sequence[Sequence[float]]) -> DraftShape:
    """Return a draft with these nodes in every step.

    Args:
        paths: rank paths, each with all its ancestors; in any order.
        ranks: at least as deep as the deepest path.

    >>> draft_of_paths([(0,), (1,), (0, 0)], [(0.6, 0.2), (0.5,)]).reached
    (0.8, 0.3)
    """
    depth = max(map(len, paths), default=0)
    reached = [0.0] * depth
    for path in paths:
        share = 1.0
        for level, rank in enumerate(path):
            share *= ranks[level][rank]
        reached[len(path) - 1] += share
    return DraftShape(num_nodes=float(len(paths)), depth=depth, coverage=1.0, reached=tuple(reached))


def expected_steps(emitted: Sequence[float], num_tokens: int) -> float:
    """Return the mean steps until `num_tokens` are out, where a step emits i + 1 tokens in a share `emitted[i]` of
    cases.

    >>> expected_steps([0.5, 0.25, 0.25], 2)
    1.5
    """
    steps = [0.0]
    for left in range(1, num_tokens + 1):
        steps.append(1 + sum(share * steps[max(0, left - tokens)] for tokens, share in enumerate(emitted, 1)))
    return steps[num_tokens]
