"""Draft as much as pays, which may be nothing, and let nobody pay for it.

Each step asks: of all nodes that could be verified, which make the most tokens per second? With B slots, the chances
m of `adaptive/acceptance.py` and the costs of this machine, verifying a set K of nodes gives

    rate(K) = (B + M) / (propose(K) + forward(B, B + |K|) + accept(B, B + M) + rest(B)),   M = sum of m over K

`adaptive/selection.py` finds the set. Drafting starts where its rate beats plain decoding by `enter` and stops where it
falls below `leave`.

**Whose time counts.** While requests wait for a slot, throughput: one that ends early makes room, and all that run
have one balance. While none waits, every request's own time: rows for a slot that copies make each step longer for all,
and a group that started together ends with its slowest. Then every request has a balance of its own
(`adaptive/credit.py`), in plain steps ahead of plain decoding. A set is taken only if every request expects to win by
it, or to give no more than a tenth (`allowance`) of what it has won before, and if every request could bear that
nothing of it is right. So a request of n tokens ends after n + credit + (interest + probing) * n plain steps at the
latest, to which come the drafts of `NUM_FIRST` steps that measure the proposer of a new engine, and one probe.

**Probes.** While drafting is off, nothing is drafted and nothing is ranked, but for a *probe* now and then. One that
cost x plain steps in vain is followed by x / probing plain steps, so all of them cost at most a share `probing` of the
time; one that pays is followed by the next at once. New requests are looked at in their first step. *Cheap* proposers
(lookups) are probed for all they can draft, and while drafting is on, so is every step. Others are asked for exactly
what pays, and probed for what comes nearest. A probe is cut to what pays now that it is drafted, and judged in
hindsight, so nothing is verified just to learn. What proposing costs is learnt on the way (`adaptive/draft_cost.py`),
and where forwards have moved from their table (`adaptive/drift.py`).

**Prompts.** A proposer with a cache of its own has to read a prompt before it drafts. For a request that must cost no
more than a part `reading` of what drafting is expected to save until its end. A probe that costs more than `free` plain
steps, mostly because of this, is saved up for: it takes place after as many steps without a draft as would pay for it.

The decisions are a function of the costs given, the seconds observed and the texts. A sampled draft under a ratio test
is never cut (see `budget.py`).

Worked example: one slot, plain step 15 ms, one more row 0.3 ms, drafting 0.1 ms; m = 0.2, 0.04. One node: 1.2 tokens
in 15.4 ms, 1.17 times plain decoding; two nodes: 1.24 in 15.7 ms, 1.18 times. With a drafter of 4 ms per node: 1.2 in
19.3 ms, 0.93 times, so it stays off. A probe costs 4 ms, 0.27 plain steps, and the next one comes after 38.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, final

from outrider.adaptive.acceptance import Acceptance, Shape, shape_of
from outrider.adaptive.credit import TOGETHER, Owner, SlowdownBudget
from outrider.adaptive.draft_cost import OnlineDraftCost
from outrider.adaptive.selection import Constraints, Node, Selection, choose
from outrider.adaptive.step_cost import StepCosts
from outrider.budget import Budget, SlotState
from outrider.costs.calibrate import costs_for
from outrider.costs.tables import TargetCosts
from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit
from outrider.target import Target

__all__ = ["AdaptiveBudget", "AdaptiveConfig"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of the choice; shares are of a plain step.

    enter       rate over plain decoding at which drafting starts
    leave       rate over plain decoding below which it stops
    cheap       a proposer that costs no more than this share drafts all it can, and is cut
    probing     share of the time that probes in vain may cost
    interest    what each step adds to a balance, beside `probing`
    credit      plain steps by which a balance may be overdrawn
    most        plain steps that a balance can hold
    allowance   share of its balance that a request may be expected to give in a step
    reading     share of what drafting should save a request that reading its prompt may cost
    free        plain steps that a probe may cost at once
    """

    enter: float = 1.03
    leave: float = 1.0
    cheap: float = 0.06
    probing: float = 0.007
    interest: float = 0.005
    credit: float = 1.0
    most: float = 12.0
    allowance: float = 0.1
    reading: float = 0.15
    free: float = 0.5


NUM_PLAIN, NUM_FIRST = 2, 2
"""Steps without a draft, then with one node (where least has to be read), that begin an engine: they measure."""
LEAST_CHANCE = 0.01
"""Nodes less likely than this are not considered."""
FEW = 8
"""So many tokens behind a draft of all nodes are read with the next one at no cost to speak of."""
MAX_WAIT = 512
NOT_NOW = 16
"""Steps after which a probe that nobody could afford is considered again."""
NOTHING = DraftLimit(0, 0)


@dataclass(slots=True)
class _Step:
    """The step in hand.

    owners        the requests, or all together
    cheap         the proposer drafts all it can
    probe         it drafts before it is decided what to verify
    most_nodes    of the largest limit
    num_nodes     verified, of all slots
    pending       tokens that the proposer has to read for each slot, where they are more than those of a few steps
    num_pending   of the slots that draft
    """

    slot_states: Sequence[SlotState] = ()
    requests: list[int] = field(default_factory=list)
    owners: Sequence[Owner] = ()
    cheap: bool = False
    probe: bool = False
    most_nodes: int = 0
    num_nodes: int = 0
    pending: Sequence[int] = ()
    num_pending: int = 0

    def pending_where(self, counts: Sequence[int]) -> int:
        """Of the slots with a count above 0."""
        return sum(pending for pending, count in zip(self.pending, counts, strict=True) if count)


@final
class AdaptiveBudget(Budget):
    """Chooses by measured cost and estimated acceptance.

    Args:
        costs: of the target on this machine.
        num_nodes: the most nodes that a slot may draft.
    """

    reads_ahead = False

    def __init__(self, costs: TargetCosts, num_nodes: int, config: AdaptiveConfig | None = None) -> None:
        self.costs = costs
        self.num_nodes = num_nodes
        self.config = config = config or AdaptiveConfig()
        self.acceptance = Acceptance()
        self.draft_cost = OnlineDraftCost()
        self.slowdown = SlowdownBudget(refill=config.interest + config.probing, credit=config.credit, most=config.most)
        self.drafts = False
        self.wait = 0.0
        self._num_idle = 0
        self._may_prune = True
        self._measuring = True
        self._news = True
        self._widest: tuple[int, ...] = ()
        self._step = _Step()
        self._costs = StepCosts(costs)
        self._cost = self._costs.of([])

    @classmethod
    def for_target(cls, target: Target, num_nodes: int) -> Self:
        """Return a budget with the measured costs of a target, which may be measured now."""
        return cls(costs_for(target), num_nodes)

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        step = self._begun(slot_states, num_waiting)
        self._cost = self._costs.of(slot_states)
        if not (self.drafts or self.wait < 1 or self._news or self._measuring):
            return [NOTHING] * len(slot_states)
        self._news = False
        step.pending = [state.num_pending if state.num_pending > self.num_nodes + FEW else 0 for state in slot_states]
        limits = [
            DraftLimit(count, state.num_remaining - 1) if state.num_remaining > 1 else NOTHING
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
        if step.probe and self._may_prune:
            draft = draft.keep(self._worth_verifying(draft))
        step.num_nodes = sum(draft.num_nodes)
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        step, propose_s = self._step, seconds["propose_s"]
        for request, commit in zip(step.requests, commits, strict=True):
            self.acceptance.emitted(request, commit.tokens)
        if step.num_pending:
            self.draft_cost.add_pending(len(step.requests), step.most_nodes, step.num_pending, propose_s)
        else:
            self.draft_cost.add(len(step.requests), step.most_nodes, propose_s)
        self._cost.learn(step.num_nodes, seconds["verify_s"])
        self.wait = max(0.0, self.wait - 1)
        self.slowdown.pass_step()
        if step.most_nodes:
            self._book(commits, propose_s)
            self._news = not step.cheap
        self._num_idle = 0 if step.most_nodes else self._num_idle + 1
        if self._measuring:
            seen = self.draft_cost.num_seen
            self._measuring = seen(0) < NUM_PLAIN or seen(1) < NUM_FIRST

    def reset(self) -> None:
        self.acceptance.reset()
        self.slowdown.reset()
        self._step = _Step()

    def _begun(self, slot_states: Sequence[SlotState], num_waiting: int) -> _Step:
        requests = [state.request for state in slot_states]
        if requests != self._step.requests:
            self._news = self._news or not set(requests) <= set(self._step.requests)
            self.acceptance.admit({state.request: state.greedy for state in slot_states})
            self.slowdown.admit(requests)
        self._step = _Step(slot_states, requests, [TOGETHER] if num_waiting else requests)
        return self._step

    def _counts(self) -> list[int]:
        """Nodes to ask for, by slot."""
        step, slots = self._step, len(self._step.slot_states)
        step.probe = step.cheap = self._is_cheap()
        if self._measuring:
            step.probe, step.cheap = True, False
            first = step.pending.index(min(step.pending)) if any(step.pending) else None
            drafts = self.draft_cost.num_seen(0) >= NUM_PLAIN
            return [int(drafts and first in (None, slot)) for slot in range(slots)]
        if step.cheap:
            return [self.num_nodes] * slots
        ranked = self._ranked([self._expected_shape(state) for state in step.slot_states])
        best = self._best(ranked)
        if best.gain >= self._least_gain and any(step.pending):
            ready = self._ready(best.gain)
            best = self._best([node for node in ranked if ready[node.slot]])
        self.drafts = best.gain >= self._least_gain
        if self.drafts or self.wait >= 1:
            return [len(nodes) if self.drafts else 0 for nodes in best.kept]
        return self._probed(ranked)

    def _probed(self, ranked: Sequence[Node]) -> list[int]:
        """Nodes to probe a proposer for that is not cheap: the best rate, whoever pays for it."""
        self._step.probe = True
        counts = [len(nodes) for nodes in self._best(ranked, fair=False).kept]
        if self._may_prune:
            counts = [max(counts)] * len(counts)
        unpaid = self.draft_cost.pending_s(self._step.pending_where(counts)) / self._cost.plain_s - self.config.free
        unpaid_steps = unpaid / self.config.probing - self._num_idle
        if any(counts) and unpaid_steps <= 0:
            return counts
        self.wait = max(NOT_NOW, min(MAX_WAIT, unpaid_steps))
        return [0] * len(counts)

    def _ready(self, gain: float) -> list[bool]:
        """Slots for which the proposer has little to read, compared with what such a gain will save them."""
        share = self.config.reading * (1 - 1 / gain)
        saved_s = [share * state.num_remaining * self._cost.plain_s for state in self._step.slot_states]
        return [
            self.draft_cost.pending_s(pending) <= most_s
            for pending, most_s in zip(self._step.pending, saved_s, strict=True)
        ]

    def _worth_verifying(self, draft: Draft) -> list[list[int]]:
        """What of a probe is verified, now that drafting it is paid for."""
        best = self._best(self._ranked([shape_of(tuple(tree.parents)) for tree in draft.trees]), spent=True)
        pays = best.gain >= self._least_gain * best.nothing
        if self._step.cheap:
            self.drafts = pays and best.gain >= self.config.leave
        return best.kept if pays else [[] for _ in best.kept]

    @property
    def _least_gain(self) -> float:
        return self.config.leave if self.drafts else self.config.enter

    def _best(self, ranked: Sequence[Node], *, spent: bool = False, fair: bool = True) -> Selection:
        """The best set, with drafting still to be paid or `spent`."""
        step, slowdown, draft_cost = self._step, self.slowdown, self.draft_cost
        cost, slots = self._cost, len(step.slot_states)
        idle_s = draft_cost.idle_s(slots)
        plain_s = cost.plain_s + idle_s
        spent_s = idle_s + draft_cost.extra_s(slots, step.most_nodes)

        def steps_of(num_nodes: int, most: int, num_tokens: float) -> float:
            drafting_s = spent_s if spent else idle_s + draft_cost.extra_s(slots, most)
            return (drafting_s + cost.seconds(num_nodes, num_tokens)) / plain_s

        allowances = [
            self.config.allowance * max(0.0, slowdown.balance(owner)) if fair else float("inf") for owner in step.owners
        ]
        return choose(ranked, slots, Constraints(allowances, slowdown.burst(step.owners)), steps_of)

    def _book(self, commits: Sequence[Commit], propose_s: float) -> None:
        """What a step that drafted won or lost, in plain steps; after a probe in vain, how long there is none.

        What was read for it is not booked: it will serve the drafts to come.
        """
        step, slots = self._step, len(commits)
        num_tokens = [len(commit.tokens) for commit in commits]
        idle_s = self.draft_cost.idle_s(slots)
        drafting_s = idle_s + self.draft_cost.extra_s(slots, step.most_nodes)
        pending_s = max(0.0, propose_s - drafting_s) if step.num_pending else 0.0
        steps = (drafting_s + self._cost.seconds(step.num_nodes, sum(num_tokens))) / (idle_s + self._cost.plain_s)
        emitted = [float(count) for count in num_tokens]
        if len(step.owners) < slots:
            emitted = [sum(num_tokens) / slots]
        for owner, count in zip(step.owners, emitted, strict=True):
            self.slowdown.book(owner, count - steps)
        if step.probe and not self.drafts and not self._measuring:
            lost = pending_s / self._cost.plain_s + steps - min(emitted)
            self.wait = min(MAX_WAIT, max(0.0, lost) / self.config.probing)

    def _is_cheap(self) -> bool:
        extra_s = self.draft_cost.extra_s(len(self._step.slot_states), self.num_nodes)
        return self._may_prune and extra_s <= self.config.cheap * self._cost.plain_s

    def _expected_shape(self, state: SlotState) -> Shape:
        """Of a draft with one node more than was ever tried: the largest shape seen, and on as a chain."""
        most = max(0, min(self.num_nodes, 2 * max(1, self.draft_cost.most_nodes), state.num_remaining - 1))
        seen = self._widest[:most]
        return shape_of((*seen, *range(len(seen) - 1, most - 1)))

    def _ranked(self, shapes: Sequence[Shape]) -> list[Node]:
        """All nodes, the likeliest first, parents before their children."""
        found = [
            Node(chance, slot, number)
            for slot, (state, shape) in enumerate(zip(self._step.slot_states, shapes, strict=True))
            for number, chance in enumerate(self.acceptance.chances(state.request, shape, LEAST_CHANCE))
            if chance >= LEAST_CHANCE
        ]
        return sorted(found, key=lambda node: (-node.chance, node.number))
