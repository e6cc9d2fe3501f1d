"""Acceptance and node counts, parsed from a command line.

    acceptance    0.8                       every guess is right in 80 % of the cases, if those before it were
                  0.8,0.6,0.5               by depth; the last stands for all deeper ones
                  0.7/0.1,0.6/0.1           by depth, and there by rank: trees are planned
                  0.8,0.6@0.4               in 40 % of the steps there is a draft at all
                  a_method=0.8,0.6          of one method; the others take the one without a name
    nodes         0..8 or 1 2 4

Example: `parse_acceptance("0.8,0.6@0.4")` is `(None, AcceptanceProfile(ranks=((0.8,), (0.6,)), coverage=0.4))`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from outrider.errors import ConfigError, nearest
from outrider.planning.acceptance_profile import AcceptanceProfile
from outrider.proposers.method_spec import spelled

__all__ = ["Given", "acceptances_of", "parse_acceptance", "parse_nodes"]

MOST_NODES = 64


class Given(NamedTuple):
    """An acceptance, of one method or (None) of all others."""

    method: str | None
    acceptance: AcceptanceProfile


def parse_acceptance(text: str) -> Given:
    """
    Raises:
        ConfigError: if it is no acceptance, or one out of range.
    """
    name, equals, rest = text.rpartition("=")
    numbers, at, coverage = rest.partition("@")
    try:
        ranks = tuple(tuple(map(float, depth.split("/"))) for depth in numbers.split(","))
        share = float(coverage) if at else 1.0
    except ValueError:
        raise ConfigError(f"acceptance '{text}' is not a list of shares; write 0.8,0.6 or 0.8,0.6@0.4") from None
    return Given(spelled(name) if equals else None, AcceptanceProfile(ranks=ranks, coverage=share))


def acceptances_of(
    texts: Sequence[str], methods: Sequence[str], measured: Mapping[str, AcceptanceProfile]
) -> dict[str, AcceptanceProfile]:
    """Return the acceptance of each method: its own, else the measured one, else the one without a name.

    Raises:
        ConfigError: if a method has none, or one is of a method that is not planned.
    """
    given: Mapping[str | None, AcceptanceProfile] = dict(map(parse_acceptance, texts))
    for name in given:
        if name is not None and name not in methods:
            raise ConfigError(f"there is an acceptance of '{name}', which is not planned{nearest(name, methods)}")
    found = {}
    for method in methods:
        chosen = given.get(method) or measured.get(method) or given.get(None)
        if chosen is None:
            raise ConfigError(f"there is no acceptance of '{method}'; add {method}=0.8, or one without a name")
        found[method] = chosen
    return found


def parse_nodes(texts: Sequence[str]) -> tuple[int, ...]:
    """Return numbers of nodes, rising.

    >>> parse_nodes(["0..3", "8"])
    (0, 1, 2, 3, 8)

    Raises:
        ConfigError: if one is not a number or a range, or out of range.
    """
    counts: set[int] = set()
    for text in texts:
        first, dots, last = text.partition("..")
        try:
            low, high = int(first), int(last if dots else first)
        except ValueError:
            raise ConfigError(f"nodes '{text}' is neither a number nor a range; write 0..8") from None
        if not 0 <= low <= high <= MOST_NODES:
            raise ConfigError(f"nodes '{text}' must lie between 0 and {MOST_NODES}, the smaller first")
        counts.update(range(low, high + 1))
    if not counts - {0}:
        raise ConfigError("there are no nodes to plan for; write --nodes 1..8")
    return tuple(sorted(counts))
