"""Checks of what a proposer and a budget answer, beside the draft itself (`draft_check.py`).

Third parties write both. Whatever they answer, no text is wrong and no memory is overrun: an answer that cannot be used
is refused with one sentence, and the engine goes on with the next call.

Example: a budget whose `limits` returns None is refused: "limits() of the budget returned None; ...".
"""

from typing import Any

from outrider.errors import ConfigError, ProposerError
from outrider.proposer import DraftLimit, Kept, Proposer, Session, SessionPlan
from outrider.records.display import shown

__all__ = ["check_kept", "check_limits", "open_session"]


def open_session(proposer: Proposer, plan: SessionPlan) -> Session:
    """Open a session.

    Raises:
        ProposerError: if the proposer returns none.
    """
    session: object = proposer.open(plan)
    if not isinstance(session, Session):
        raise ProposerError(f"open() of {type(proposer).__name__} returned {shown(session)}; return a Session")
    return session


def check_limits(limits: Any, num_slots: int, most: int) -> list[DraftLimit]:
    """Return a budget's limits if there is one per slot, none above what the cache has room for.

    Raises:
        ConfigError: with what would be right.
    """
    try:
        fits = len(limits) == num_slots and all(0 <= nodes <= most and depth >= 0 for nodes, depth in limits)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigError(
            f"limits() of the budget returned {shown(limits)}; return {num_slots} DraftLimits, of at most {most} nodes"
        )
    return list(limits)


def check_kept(kept: object) -> Kept | None:
    """Return what a session kept of a text.

    Raises:
        ProposerError: if that is neither a `Kept` of possible sizes nor None.
    """
    if kept is None:
        return None
    if isinstance(kept, Kept):
        sizes = (kept.num_positions, kept.num_again)
        if all(type(one) is int and one >= 0 for one in sizes):
            return kept
    raise ProposerError(f"keep() of the session returned {shown(kept)}; return a Kept of sizes from 0 on, or None")
