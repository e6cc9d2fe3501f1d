"""What the target's part of a step costs, for steps of one kind: the numbers that a choice asks for again and again.

    seconds(nodes, tokens) = forward(B, B + nodes) + accept(B, tokens) + rest(B)

The rule looks at a row only when its walk gets there: at one per slot, and one more for every accepted node, which is
as many rows as the step emits tokens. So a choice charges the tokens that it expects, which are never more than the
rows, and a step that is over those that it emitted.

Worked example: two slots, three nodes, of which one is accepted. Five rows are read and three are judged.
"""

from functools import cache
from math import floor
from typing import final

from outrider.costs import TargetCosts

__all__ = ["StepCost"]


@final
class StepCost:
    """Seconds of steps with so many slots, so long a context, and one kind of sampling."""

    def __init__(self, costs: TargetCosts, num_slots: int, context: float, greedy: bool) -> None:
        self._read_s = cache(
            lambda num_nodes: costs.forward_s(num_slots, num_slots + num_nodes, context) + costs.rest_s(num_slots)
        )
        self._judge_s = cache(lambda num_rows: costs.accept_s(num_slots, num_rows, greedy))
        self.plain_s = self.seconds(0, num_slots)

    def seconds(self, num_nodes: int, num_tokens: float) -> float:
        """Of a step, all slots together; linear between whole tokens, which are expected and need not be whole."""
        whole = floor(num_tokens)
        judge_s: float = self._judge_s(whole)
        if num_tokens > whole:
            judge_s += (self._judge_s(whole + 1) - judge_s) * (num_tokens - whole)
        return float(self._read_s(num_nodes)) + judge_s
