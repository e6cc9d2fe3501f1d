"""The target's part of a step, in seconds, for steps of one kind.

    seconds(nodes, tokens) = forward(B, B + nodes) * drift(B, nodes) + accept(B, tokens) + rest(B)

The acceptance rule reads one row per slot and one more per accepted node, as many rows as the step emits tokens. So
selection charges the expected tokens, and a finished step is charged the emitted ones. The drift corrects the table
(`adaptive/drift.py`).

Worked example: two slots, three nodes, of which one is accepted: the forward has five rows, the rule reads three.
"""

from collections.abc import Sequence
from functools import cache
from math import floor
from typing import Final, final

from outrider.adaptive.drift import Drift
from outrider.budget import SlotState
from outrider.costs.tables import TargetCosts

__all__ = ["StepCost", "StepCosts"]

CONTEXT: Final = 128
"""Width of a context range, in tokens."""


@final
class StepCost:
    """Costs of steps with one number of slots, one range of contexts, and one kind of sampling."""

    def __init__(self, costs: TargetCosts, drift: Drift, num_slots: int, context: float, greedy: bool) -> None:
        self.num_slots = num_slots
        self.drift = drift
        self._read_s = cache(lambda num_nodes: costs.forward_s(num_slots, num_slots + num_nodes, context))
        self._judge_s = cache(lambda num_rows: costs.accept_s(num_slots, num_rows, greedy))
        self._rest_s = costs.rest_s(num_slots)
        self.plain_s = self.seconds(0, num_slots)

    def seconds(self, num_nodes: int, num_tokens: float) -> float:
        """Return the seconds of a step; linear between whole tokens, since expected tokens are fractional."""
        whole = floor(num_tokens)
        judge_s: float = self._judge_s(whole)
        if num_tokens > whole:
            judge_s += (self._judge_s(whole + 1) - judge_s) * (num_tokens - whole)
        read_s = float(self._read_s(num_nodes)) * self.drift.factor(self.num_slots, num_nodes)
        return read_s + judge_s + self._rest_s

    def learn(self, num_nodes: int, forward_s: float) -> None:
        """Record the seconds that the forward of such a step took."""
        self.drift.add(self.num_slots, num_nodes, forward_s / float(self._read_s(num_nodes)))


@final
class StepCosts:
    """Step costs by kind of step, built on first use."""

    def __init__(self, costs: TargetCosts) -> None:
        self._costs = costs
        self._drift = Drift()
        self._kinds: dict[tuple[int, int, bool], StepCost] = {}

    def of(self, slot_states: Sequence[SlotState]) -> StepCost:
        """Return the costs of steps with these slots; without slots, of a step with one."""
        num_slots = max(1, len(slot_states))
        context = sum(state.context_length for state in slot_states) // (CONTEXT * num_slots)
        key = (num_slots, context, all(state.greedy for state in slot_states))
        if key not in self._kinds:
            self._kinds[key] = StepCost(self._costs, self._drift, num_slots, (context + 0.5) * CONTEXT, key[2])
        return self._kinds[key]
