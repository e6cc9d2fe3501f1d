"""The adaptive budget's notes on the current step.

Example: two slots with 0 and 300 pending tokens, of which the second drafts: `pending_where([0, 4])` is 300.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.adaptive.credit import Owner
from outrider.budget import SlotState

__all__ = ["CurrentStep"]


@dataclass(slots=True)
class CurrentStep:
    """The slots of a step and what was decided about them.

    owners        owners of the balances: the requests, or one for all
    drafts_all    the proposer is cheap and drafts all it can
    is_probe      the proposer drafts before it is decided what to verify
    most_nodes    nodes of the largest limit
    num_nodes     verified nodes of all slots, forced ones included
    pending       pending tokens of each slot; 0 where there are few enough to be free
    num_pending   pending tokens of the slots that draft
    """

    slot_states: Sequence[SlotState] = ()
    requests: list[int] = field(default_factory=list)
    owners: Sequence[Owner] = ()
    drafts_all: bool = False
    is_probe: bool = False
    most_nodes: int = 0
    num_nodes: int = 0
    pending: Sequence[int] = ()
    num_pending: int = 0

    def pending_where(self, counts: Sequence[int]) -> int:
        """Sum the pending tokens of the slots with a count above 0."""
        return sum(pending for pending, count in zip(self.pending, counts, strict=True) if count)
