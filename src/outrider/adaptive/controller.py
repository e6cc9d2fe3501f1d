"""The adaptive budget: drafts as much as pays off, at a bounded cost to every request.

With B slots, the probabilities m of `adaptive/acceptance.py` and the costs of this machine, verifying a set K of nodes
gives, in tokens per second,

    rate(K) = (B + M) / (propose(K) + forward(B, B + |K|) + accept(B, B + M) + rest(B)),   M = sum of m over K

`adaptive/selection.py` finds the best set. Drafting starts where its rate beats plain decoding by `start_gain` and
stops where it falls below `stop_gain`. Balances in plain steps (`adaptive/credit.py`) bound what any request can lose.

**Probes.** While drafting is off, a probe drafts now and then (`adaptive/probes.py`). It is pruned to what pays off now
and judged in hindsight. A sampled draft under a ratio test is never pruned (see `budget.py`). `docs/concepts/budget.md`
explains the policy.

Worked example: one slot, plain step 15 ms, one more row 0.3 ms, drafting 0.1 ms; m = 0.2, 0.04. One node: 1.2 tokens in
15.4 ms, 1.17 times plain decoding; two nodes: 1.24 in 15.7 ms, 1.18 times.
"""

from collections.abc import Mapping, Sequence
from typing import Self, final

from outrider.adaptive.acceptance import Acceptance, Shape, shape_of
from outrider.adaptive.config import AdaptiveConfig
from outrider.adaptive.credit import TOGETHER, SlowdownBudget
from outrider.adaptive.current_step import CurrentStep
from outrider.adaptive.draft_cost import OnlineDraftCost
from outrider.adaptive.probes import Exploration, ProbeTimer
from outrider.adaptive.remaining import Remaining
from outrider.adaptive.selection import Constraints, Node, Selection, choose
from outrider.adaptive.step_cost import StepCosts
from outrider.budget import Budget, SlotState
from outrider.costs.calibrate import costs_for
from outrider.costs.tables import TargetCosts
from outrider.draft import Draft
from outrider.proposer import NOTHING, Commit, DraftLimit
from outrider.target import Target

__all__ = ["AdaptiveBudget"]


NUM_PLAIN, NUM_FIRST = 2, 2
"""Steps at the start of an engine that measure: without a draft, then with one node in the slot with least to read."""
HOPED, HOPED_DEPTH = 0.7, 4
"""A proposer that is worth exploring pays off if it drafts this deep and each node is right with this chance."""
LEAST_CHANCE = 0.01
"""Smallest chance of a node that is considered."""
FEW = 1
"""Pending tokens beyond a full draft that every draft reads: the one that the target added."""


@final
class AdaptiveBudget(Budget):
    """Decides by measured cost and estimated acceptance.

    Args:
        costs: costs of the target on this machine.
        num_nodes: the most nodes that a slot may draft.
    """

    reads_ahead = False

    def __init__(self, costs: TargetCosts, num_nodes: int, config: AdaptiveConfig | None = None) -> None:
        self.costs = costs
        self.num_nodes = num_nodes
        self.config = config = config or AdaptiveConfig()
        self.acceptance = Acceptance()
        self.draft_cost = OnlineDraftCost()
        self.remaining = Remaining()
        self.slowdown = SlowdownBudget(
            refill=config.refill + config.probe_share, overdraft=config.overdraft, max_balance=config.max_balance
        )
        self.drafting = False
        self.timer = ProbeTimer(config.probe_share, config.free_probe)
        self.exploration = Exploration()
        self._may_prune = True
        self._measuring = True
        self._has_news = True
        self._widest: tuple[int, ...] = ()
        self._step = CurrentStep()
        self._costs = StepCosts(costs)
        self._cost = self._costs.of([])

    @classmethod
    def for_target(cls, target: Target, num_nodes: int) -> Self:
        """Return a budget with the costs of a target, measured now if they are not on file."""
        return cls(costs_for(target), num_nodes)

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        step = self._begin(slot_states, num_waiting)
        self._cost = self._costs.of(slot_states)
        if all(state.num_remaining <= 1 or state.num_forced for state in slot_states):
            return [NOTHING] * len(slot_states)  # says nothing about drafts
        explores = self.exploration.request is not None
        if not (self.drafting or self.timer.is_due or explores or self._has_news or self._measuring):
            return [NOTHING] * len(slot_states)
        self._has_news = False
        step.pending = [state.num_pending if state.num_pending > self.num_nodes + FEW else 0 for state in slot_states]
        limits = [
            DraftLimit(count, state.num_remaining - 1) if state.num_remaining > 1 and not state.num_forced else NOTHING
            for state, count in zip(slot_states, self._counts(), strict=True)
        ]
        step.most_nodes = max((limit.num_nodes for limit in limits), default=0)
        step.num_pending = step.pending_where([limit.num_nodes for limit in limits])
        return limits

    def prune(self, draft: Draft) -> Draft:
        step = self._step
        if not step.most_nodes:
            return draft
        if draft.probs_BMV is not None:
            self._may_prune = False
        for state, tree in zip(step.slot_states, draft.trees, strict=True):
            self.acceptance.drafted(state.request, tree)
            if len(tree.parents) >= len(self._widest):
                self._widest = tuple(tree.parents)
        if step.is_probe and self._may_prune:
            draft = draft.keep(self._worth_verifying(draft))
        step.num_nodes += sum(draft.num_nodes)
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        step, propose_s = self._step, seconds["propose_s"]
        for request, commit in zip(step.requests, commits, strict=True):
            self.acceptance.emitted(request, commit.tokens)
            self.remaining.emitted(request, len(commit.tokens))
        if step.num_pending:
            self.draft_cost.add_pending(len(step.requests), step.most_nodes, step.num_pending, propose_s)
        else:
            self.draft_cost.add(len(step.requests), step.most_nodes, propose_s)
        self._cost.learn(step.num_nodes, seconds["verify_s"])
        self.timer.pass_step(step.most_nodes > 0)
        self.slowdown.pass_step()
        if step.most_nodes:
            self._book(commits, propose_s)
            self._has_news = not step.drafts_all
        if self._measuring:
            seen = self.draft_cost.num_seen
            self._measuring = seen(0) < NUM_PLAIN or seen(1) < NUM_FIRST

    def reset(self) -> None:
        self.acceptance.reset()
        self.remaining.reset()
        self.slowdown.reset()
        self.exploration.leave()
        self._step = CurrentStep()

    def _begin(self, slot_states: Sequence[SlotState], num_waiting: int) -> CurrentStep:
        requests = [state.request for state in slot_states]
        if requests != self._step.requests:
            new = [request for request in requests if request not in self._step.requests]
            self._has_news = self._has_news or bool(new)
            self.exploration.admit(new, requests)
            self.acceptance.admit({state.request: state.greedy for state in slot_states})
            self.remaining.admit(requests)
            self.slowdown.admit(requests)
        num_forced = sum(state.num_forced for state in slot_states)
        self._step = CurrentStep(slot_states, requests, [TOGETHER] if num_waiting else requests, num_nodes=num_forced)
        return self._step

    def _counts(self) -> list[int]:
        """Return the nodes to ask for, by slot, and decide whether this step drafts."""
        step, slots = self._step, len(self._step.slot_states)
        step.is_probe = step.drafts_all = self._drafts_all()
        if self._measuring:
            step.is_probe, step.drafts_all = True, False
            first = step.pending.index(min(step.pending)) if any(step.pending) else None
            drafts = self.draft_cost.num_seen(0) >= NUM_PLAIN
            return [int(drafts and first in (None, slot)) for slot in range(slots)]
        if step.drafts_all:
            self.exploration.leave()
            return [self.num_nodes] * slots
        ranked = self._ranked([self._expected_shape(state) for state in step.slot_states])
        best = self._best(ranked)
        if best.gain >= self._least_gain and any(step.pending):
            ready = self._ready(best.gain)
            best = self._best([node for node in ranked if ready[node.slot]])
        self.drafting = best.gain >= self._least_gain
        if self.drafting:
            self.exploration.pay()
            return [len(nodes) for nodes in best.kept]
        if self._explores():
            return self._explored(ranked)
        return self._probed(ranked) if self.timer.is_due else [0] * slots

    def _explores(self) -> bool:
        """Return whether this step explores a request."""
        step, request = self._step, self.exploration.request
        if request not in step.requests:
            return False
        slot = step.requests.index(request)
        state = step.slot_states[slot]
        if state.num_remaining <= 1 or state.num_forced:
            return False
        if not self.exploration.begun:
            slots = range(len(step.requests))
            hoped = [Node(HOPED**depth, other, depth - 1) for depth in range(1, HOPED_DEPTH + 1) for other in slots]
            gain = self._best(hoped, fair=False).gain
            read_share = self.draft_cost.pending_s(step.pending[slot]) / self._expected_s(state)
            self.exploration.begin(read_share, pays=gain >= self._least_gain and self._ready(gain)[slot])
        return self.exploration.begun

    def _explored(self, ranked: Sequence[Node]) -> list[int]:
        """Return the nodes of an exploration: the best set, fair or not, without reading for other requests."""
        step = self._step
        step.is_probe = True
        drafts = [
            not pending or state.request == self.exploration.request
            for state, pending in zip(step.slot_states, step.pending, strict=True)
        ]
        counts = self._to_try([node for node in ranked if drafts[node.slot]])
        if not any(counts):
            self.exploration.end(len(counts))
        return [count if may else 0 for count, may in zip(counts, drafts, strict=True)]

    def _probed(self, ranked: Sequence[Node]) -> list[int]:
        """Return the nodes of a probe of a proposer that is not cheap: the best set, fair or not."""
        self._step.is_probe = True
        counts = self._to_try(ranked)
        read = self.draft_cost.pending_s(self._step.pending_where(counts)) / self._cost.plain_s
        if not any(counts):
            self.timer.postpone(0)
        elif self.timer.affords(read):
            return counts
        return [0] * len(counts)

    def _to_try(self, ranked: Sequence[Node]) -> list[int]:
        """Return the nodes of the best set, fair or not; where drafts are pruned, the largest number for all slots."""
        counts = [len(nodes) for nodes in self._best(ranked, fair=False).kept]
        return [max(counts)] * len(counts) if self._may_prune else counts

    def _ready(self, gain: float) -> list[bool]:
        """Return, by slot, whether reading its pending tokens costs little compared with what such a gain will save.

        All slots wait while one is read, and drafting for one saves it a slot of its further steps.
        """
        states = self._step.slot_states
        saved_share = self.config.prompt_share * (1 - 1 / gain) / len(states)
        return [
            self.draft_cost.pending_s(pending) <= saved_share * self._expected_s(state)
            for pending, state in zip(self._step.pending, states, strict=True)
        ]

    def _expected_s(self, state: SlotState) -> float:
        """Return the seconds that a request would still take without drafts."""
        return self.remaining.expected(state.request, state.num_remaining) * self._cost.plain_s

    def _worth_verifying(self, draft: Draft) -> list[list[int]]:
        """Return the nodes of a probe to verify, now that the time of drafting is spent."""
        if not any(draft.num_nodes):
            self.drafting &= not self._step.drafts_all
            return [[] for _ in draft.trees]
        best = self._best(self._ranked([shape_of(tuple(tree.parents)) for tree in draft.trees]), spent=True)
        pays = best.gain >= self._least_gain * best.nothing
        if self._step.drafts_all:
            self.drafting = pays and best.gain >= self.config.stop_gain
        return best.kept if pays else [[] for _ in best.kept]

    @property
    def _least_gain(self) -> float:
        return self.config.stop_gain if self.drafting else self.config.start_gain

    def _best(self, ranked: Sequence[Node], *, spent: bool = False, fair: bool = True) -> Selection:
        """Return the best set, with drafting still to be paid for or already `spent`."""
        step, slowdown, draft_cost = self._step, self.slowdown, self.draft_cost
        cost, slots = self._cost, len(step.slot_states)
        idle_s = draft_cost.idle_s(slots)
        plain_s = cost.plain_s + idle_s
        spent_s = idle_s + draft_cost.extra_s(slots, step.most_nodes)

        def steps_of(num_nodes: int, most: int, num_tokens: float) -> float:
            drafting_s = spent_s if spent else idle_s + draft_cost.extra_s(slots, most)
            return (drafting_s + cost.seconds(num_nodes, num_tokens)) / plain_s

        allowances = [
            self.config.allowance_share * max(0.0, slowdown.balance(owner)) if fair else float("inf")
            for owner in step.owners
        ]
        return choose(ranked, slots, Constraints(allowances, slowdown.burst(step.owners)), steps_of)

    def _book(self, commits: Sequence[Commit], propose_s: float) -> None:
        """Book what a step with a draft won or lost, in plain steps; after a probe in vain, set the wait for the next.

        Reading pending tokens is not booked: it serves the drafts to come.
        """
        step, slots = self._step, len(commits)
        idle_s = self.draft_cost.idle_s(slots)
        drafting_s = idle_s + self.draft_cost.extra_s(slots, step.most_nodes)
        pending_s = max(0.0, propose_s - drafting_s) if step.num_pending else 0.0
        if step.num_nodes:
            emitted = [float(len(commit.tokens)) for commit in commits]
            read_s = self._cost.seconds(step.num_nodes, sum(emitted))
            emitted = emitted if len(step.owners) == slots else [sum(emitted) / slots]
        else:
            emitted, read_s = [1.0] * len(step.owners), self._cost.plain_s
        steps = (drafting_s + read_s) / (idle_s + self._cost.plain_s)
        for owner, count in zip(step.owners, emitted, strict=True):
            self.slowdown.book(owner, count - steps)
        if step.is_probe and not self.drafting and not self._measuring:
            lost = steps - min(emitted)
            if self.exploration.begun:
                self.exploration.spend(lost, slots)
            else:
                self.timer.spend(lost, pending_s / self._cost.plain_s)

    def _drafts_all(self) -> bool:
        """Return whether the proposer is cheap and has no text to read before it drafts."""
        extra_s = self.draft_cost.extra_s(len(self._step.slot_states), self.num_nodes)
        is_cheap = extra_s <= self.config.cheap_share * self._cost.plain_s
        return self._may_prune and is_cheap and not any(self._step.pending)

    def _expected_shape(self, state: SlotState) -> Shape:
        """Return the shape of the draft to expect: the widest one seen, continued as a chain."""
        if state.num_forced:
            return shape_of(())
        most = max(0, min(self.num_nodes, 2 * max(1, self.draft_cost.most_nodes), state.num_remaining - 1))
        seen = self._widest[:most]
        return shape_of((*seen, *range(len(seen) - 1, most - 1)))

    def _ranked(self, shapes: Sequence[Shape]) -> list[Node]:
        """Rank all nodes by falling chance, parents before their children."""
        found = [
            Node(chance, slot, number)
            for slot, (state, shape) in enumerate(zip(self._step.slot_states, shapes, strict=True))
            for number, chance in enumerate(self.acceptance.chances(state.request, shape, LEAST_CHANCE))
            if chance >= LEAST_CHANCE
        ]
        return sorted(found, key=lambda node: (-node.chance, node.number))
