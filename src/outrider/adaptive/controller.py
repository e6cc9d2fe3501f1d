"""The adaptive budget: drafts as much as pays off, at a bounded cost to every request.

With B slots, the probabilities m of `adaptive/acceptance.py` and the costs of this machine, verifying a set K of nodes
gives, in tokens per second,

    rate(K) = (B + M) / (propose(K) + forward(B, B + |K|) + accept(B, B + M) + rest(B)),   M = sum of m over K

`adaptive/selection.py` finds the best set. Drafting starts where its rate beats plain decoding by `start_gain` and
stops where it falls below `stop_gain`. Balances in plain steps (`adaptive/credit.py`) bound what any request can lose.

**Probes.** While drafting is off, a probe drafts now and then. After one that cost x plain steps in vain, the next one
waits x / probe_share steps. A probe is pruned to what pays off now and judged in hindsight. A sampled draft under a
ratio test is never pruned (see `budget.py`). `docs/budget.md` explains the policy.

Worked example: one slot, plain step 15 ms, one more row 0.3 ms, drafting 0.1 ms; m = 0.2, 0.04. One node: 1.2 tokens in
15.4 ms, 1.17 times plain decoding; two nodes: 1.24 in 15.7 ms, 1.18 times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, final

from outrider.adaptive.acceptance import Acceptance, Shape, shape_of
from outrider.adaptive.credit import TOGETHER, Owner, SlowdownBudget
from outrider.adaptive.draft_cost import OnlineDraftCost
from outrider.adaptive.remaining import Remaining
from outrider.adaptive.selection import Constraints, Node, Selection, choose
from outrider.adaptive.step_cost import StepCosts
from outrider.budget import Budget, SlotState
from outrider.costs.calibrate import costs_for
from outrider.costs.tables import TargetCosts
from outrider.draft import Draft
from outrider.proposer import NOTHING, Commit, DraftLimit
from outrider.target import Target

__all__ = ["AdaptiveBudget", "AdaptiveConfig"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of the adaptive budget; shares are of a plain step.

    start_gain       rate over plain decoding at which drafting starts
    stop_gain        rate over plain decoding below which it stops
    cheap_share      largest cost of a proposer that drafts all it can and is pruned afterwards
    probe_share      share of the time that probes in vain may cost
    refill           plain steps added to every balance per step, beside `probe_share`
    overdraft        plain steps by which a balance may be overdrawn
    max_balance      plain steps that a balance can hold
    allowance_share  share of its balance that an owner may be expected to lose in a step
    prompt_share     share of what drafting should save a request that reading its prompt may cost all requests
    free_probe       plain steps that a probe may cost at once
    """

    start_gain: float = 1.03
    stop_gain: float = 1.0
    cheap_share: float = 0.06
    probe_share: float = 0.007
    refill: float = 0.005
    overdraft: float = 1.0
    max_balance: float = 12.0
    allowance_share: float = 0.1
    prompt_share: float = 0.5
    free_probe: float = 0.5


NUM_PLAIN, NUM_FIRST = 2, 2
"""Steps at the start of an engine that measure: without a draft, then with one node in the slot with least to read."""
LEAST_CHANCE = 0.01
"""Smallest chance of a node that is considered."""
FEW = 8
"""Pending tokens beyond a full draft that cost next to nothing to read."""
MAX_WAIT = 512
"""Most steps between probes."""
NOT_NOW = 16
"""Steps after which a probe that no owner could afford is considered again."""


@dataclass(slots=True)
class _Step:
    """The current step.

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
        self.steps_to_probe = 0.0
        self._num_undrafted = 0
        self._may_prune = True
        self._measuring = True
        self._has_news = True
        self._widest: tuple[int, ...] = ()
        self._step = _Step()
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
        if not (self.drafting or self.steps_to_probe < 1 or self._has_news or self._measuring):
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
        self.steps_to_probe = max(0.0, self.steps_to_probe - 1)
        self.slowdown.pass_step()
        if step.most_nodes:
            self._book(commits, propose_s)
            self._has_news = not step.drafts_all
        self._num_undrafted = 0 if step.most_nodes else self._num_undrafted + 1
        if self._measuring:
            seen = self.draft_cost.num_seen
            self._measuring = seen(0) < NUM_PLAIN or seen(1) < NUM_FIRST

    def reset(self) -> None:
        self.acceptance.reset()
        self.remaining.reset()
        self.slowdown.reset()
        self._step = _Step()

    def _begin(self, slot_states: Sequence[SlotState], num_waiting: int) -> _Step:
        requests = [state.request for state in slot_states]
        if requests != self._step.requests:
            self._has_news = self._has_news or not set(requests) <= set(self._step.requests)
            self.acceptance.admit({state.request: state.greedy for state in slot_states})
            self.remaining.admit(requests)
            self.slowdown.admit(requests)
        num_forced = sum(state.num_forced for state in slot_states)
        self._step = _Step(slot_states, requests, [TOGETHER] if num_waiting else requests, num_nodes=num_forced)
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
            return [self.num_nodes] * slots
        ranked = self._ranked([self._expected_shape(state) for state in step.slot_states])
        best = self._best(ranked)
        if best.gain >= self._least_gain and any(step.pending):
            ready = self._ready(best.gain)
            best = self._best([node for node in ranked if ready[node.slot]])
        self.drafting = best.gain >= self._least_gain
        if self.drafting or self.steps_to_probe >= 1:
            return [len(nodes) if self.drafting else 0 for nodes in best.kept]
        return self._probed(ranked)

    def _probed(self, ranked: Sequence[Node]) -> list[int]:
        """Return the nodes for a probe of a proposer that is not cheap: the best set, fair or not."""
        self._step.is_probe = True
        counts = [len(nodes) for nodes in self._best(ranked, fair=False).kept]
        if self._may_prune:
            counts = [max(counts)] * len(counts)
        unpaid = (
            self.draft_cost.pending_s(self._step.pending_where(counts)) / self._cost.plain_s - self.config.free_probe
        )
        unpaid_steps = unpaid / self.config.probe_share - self._num_undrafted
        if any(counts) and unpaid_steps <= 0:
            return counts
        self.steps_to_probe = max(NOT_NOW, min(MAX_WAIT, unpaid_steps))
        return [0] * len(counts)

    def _ready(self, gain: float) -> list[bool]:
        """Return, by slot, whether reading its pending tokens costs little compared with what such a gain will save.

        All slots wait while one is read, and drafting for one saves it a slot of its further steps.
        """
        states = self._step.slot_states
        saved_share = self.config.prompt_share * (1 - 1 / gain) / len(states)
        saved_s = [
            saved_share * self.remaining.expected(state.request, state.num_remaining) * self._cost.plain_s
            for state in states
        ]
        return [
            self.draft_cost.pending_s(pending) <= most_s
            for pending, most_s in zip(self._step.pending, saved_s, strict=True)
        ]

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
            lost = pending_s / self._cost.plain_s + steps - min(emitted)
            self.steps_to_probe = min(MAX_WAIT, max(0.0, lost) / self.config.probe_share)

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
