"""Draft as much as pays, which may be nothing.

Each step asks: of all nodes that could be verified, which make the most tokens per second? With B slots, the chances
m of `acceptance.py` and the costs of this machine, verifying a set K of nodes gives

    rate(K) = (B + sum of m over K) / (propose(K) + forward(B, B + |K|) + accept(B, B + |K|) + rest(B))

The best set of a given size is the one with the largest m, and it is closed under parents, since m(node) <= m(parent).
So the nodes of all slots are ranked once and the best size is found by walking down the ranking. Drafting starts where
the best rate beats plain decoding by `enter` and stops where it falls below `leave`.

**Cheap proposers** (a lookup: below `cheap` of a plain step) always draft as much as they can; the choice is made
afterwards, by cutting. What was cut is judged in hindsight, so nothing is verified just to learn.

**Other proposers** are asked for exactly what pays. While that is nothing, a *probe* drafts now and then. It may cost
`probing` of the time: after a probe that lost x plain steps, the next one waits x / probing steps; a probe that won is
repeated at once. What proposing costs is learnt on the way (`proposing.py`).

**Do no harm.** Estimates lag behind, so there is an account, in plain steps: drafting adds what it wins and takes what
it loses, every step adds `interest`, and a step may risk no more than what is there. Over n steps drafting that does
not pay can lose no more than account + (interest + probing) * n steps, whatever the texts do.

The decisions are a function of the costs given, the seconds observed and the texts. A sampled draft under a ratio test
is never cut (see `budget.py`).

Worked example: one slot, plain step 15 ms, one more row 0.3 ms, drafting 0.1 ms; m = 0.2, 0.04. One node: 1.2 tokens
in 15.4 ms, 1.17 times plain decoding; two nodes: 1.24 in 15.7 ms, 1.18 times. With a drafter of 4 ms per node: 1.2 in
19.3 ms, 0.93 times, so it stays off, and a probe that lost 0.29 steps is followed by 41 plain ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final, get_args

from outrider.acceptance import Acceptance, Shape, shape_of
from outrider.budget import Ask, Budget, FixedBudget
from outrider.calibrate import costs_for
from outrider.costs import TargetCosts
from outrider.draft import Draft
from outrider.errors import ConfigError, nearest
from outrider.proposer import Commit, Room
from outrider.proposing import LearntDraftCosts
from outrider.target import Target

__all__ = ["AdaptiveBudget", "AdaptiveConfig", "BudgetChoice", "budget_named"]

BudgetChoice = Literal["fixed", "auto"]


def budget_named(name: str, target: Target, num_nodes: int) -> Budget:
    """The budget of that name, for at most `num_nodes` nodes per slot.

    Raises:
        ConfigError: if there is none.
    """
    if name not in get_args(BudgetChoice):
        raise ConfigError(f"unknown budget '{name}'{nearest(name, get_args(BudgetChoice))}")
    if name == "fixed" or num_nodes == 0:
        return FixedBudget(num_nodes)
    return AdaptiveBudget(costs_for(target), num_nodes)


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of the choice; shares are of a plain step.

    enter      rate over plain decoding at which drafting starts
    leave      rate over plain decoding below which it stops
    cheap      a proposer that costs no more than this share drafts always
    probing    share of the time that probes may lose
    interest   what each step adds to the account
    account    plain steps on the account at the start
    most       plain steps that the account can hold
    """

    enter: float = 1.03
    leave: float = 1.0
    cheap: float = 0.02
    probing: float = 0.007
    interest: float = 0.005
    account: float = 4.0
    most: float = 12.0


NUM_PLAIN, NUM_FIRST = 2, 2
"""Steps without a draft, then with one node, that begin an engine: they measure the proposer."""
LEAST_CHANCE = 0.01
"""Nodes less likely than this are not considered."""
MAX_WAIT = 512
CONTEXT = 128
"""Contexts are told apart in steps of this many tokens."""
BACKLOG = 4
"""After this many steps without a draft, a proposer has more to catch up with than it usually has."""


class _Choice(NamedTuple):
    """Nodes to verify.

    kept      of each slot, rising
    gain      its rate over that of verifying nothing
    risk      plain steps that it loses if nothing is accepted
    """

    kept: list[list[int]]
    gain: float
    risk: float


@dataclass
class _Step:
    """The step in hand.

    most_nodes   of the largest room
    num_nodes    verified, of all slots
    probe        it drafts in order to learn
    """

    asks: Sequence[Ask]
    most_nodes: int = 0
    num_nodes: int = 0
    probe: bool = False

    def __post_init__(self) -> None:
        self.slots = len(self.asks)
        self.requests = [ask.request for ask in self.asks]
        self.context = sum(ask.context_length for ask in self.asks) // (CONTEXT * max(1, self.slots))
        self.greedy = all(ask.greedy for ask in self.asks)


@final
class AdaptiveBudget(Budget):
    """Chooses by measured cost and estimated acceptance.

    Args:
        costs: of the target on this machine.
        num_nodes: the most nodes that a slot may draft.
    """

    def __init__(self, costs: TargetCosts, num_nodes: int, config: AdaptiveConfig | None = None) -> None:
        self.costs = costs
        self.num_nodes = num_nodes
        self.config = config or AdaptiveConfig()
        self.acceptance = Acceptance()
        self.proposing = LearntDraftCosts()
        self.drafts = False
        self.account = self.config.account
        self.wait = 0.0
        self._num_idle = 0
        self._may_cut = True
        self._measuring = True
        self._widest: tuple[int, ...] = ()
        self._step = _Step(())
        self._known_s: dict[tuple[int, int, bool], dict[int, float]] = {}

    def rooms(self, asks: Sequence[Ask]) -> list[Room]:
        before, self._step = self._step, _Step(asks)
        step = self._step
        self.acceptance.admit(ask.request for ask in asks)
        if self._measuring:
            first = self.proposing.num_seen(0) >= NUM_PLAIN
            counts = [int(first)] * len(asks)
        elif self._cheap:
            counts = [self.num_nodes] * len(asks)
        elif not self.drafts and self.wait >= 1 and step.requests == before.requests:
            counts = [0] * len(asks)  # nothing was learnt since the last choice
        else:
            counts = [len(nodes) for nodes in self._chosen([self._expected_shape(ask) for ask in asks])]
        rooms = [
            Room(count if ask.num_remaining > 1 else 0, ask.num_remaining - 1)
            for ask, count in zip(asks, counts, strict=True)
        ]
        step.most_nodes = max((room.num_nodes for room in rooms), default=0)
        return rooms

    def cut(self, draft: Draft) -> Draft:
        step = self._step
        if draft.probs_BMV is not None:
            self._may_cut = False
        for ask, tree in zip(step.asks, draft.trees, strict=True):
            self.acceptance.drafted(ask.request, tree)
            if len(tree.parents) >= len(self._widest):
                self._widest = tuple(tree.parents)
        if self._may_cut and not self._measuring and any(draft.num_nodes) and self._cheap:
            draft = draft.keep(self._chosen([shape_of(tuple(tree.parents)) for tree in draft.trees], spent=True))
        step.num_nodes = sum(draft.num_nodes)
        return draft

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        step = self._step
        for ask, commit in zip(step.asks, commits, strict=True):
            self.acceptance.emitted(ask.request, commit.tokens)
        if step.most_nodes == 0 or self._num_idle < BACKLOG:
            self.proposing.add(len(step.asks), step.most_nodes, seconds["propose_s"])
        if self._measuring:
            seen = self.proposing.num_seen
            self._measuring = seen(0) < NUM_PLAIN or seen(1) < NUM_FIRST
        self._num_idle = 0 if step.most_nodes else self._num_idle + 1
        self._settle(sum(len(commit.tokens) for commit in commits), seconds["propose_s"])

    def reset(self) -> None:
        self.acceptance.reset()

    def _settle(self, num_tokens: int, propose_s: float) -> None:
        """Book what the step won or lost, in plain steps."""
        step, config = self._step, self.config
        self.wait = max(0.0, self.wait - 1)
        self.account += config.interest
        if step.most_nodes:
            plain_s, spent_s = self._target_s(0), self._target_s(step.num_nodes) + propose_s
            won = num_tokens / len(step.asks) - spent_s / (plain_s + self.proposing.idle_s(len(step.asks)))
            if step.probe:
                self.wait = min(MAX_WAIT, max(0.0, -won) / config.probing)
            elif step.num_nodes:
                self.account += won
        self.account = min(self.account, config.most)

    @property
    def _cheap(self) -> bool:
        slots = len(self._step.asks)
        extra_s = self.proposing.extra_s(slots, self.num_nodes)
        return self._may_cut and extra_s <= self.config.cheap * self._target_s(0)

    def _expected_shape(self, ask: Ask) -> Shape:
        """Of a draft with one node more than was ever tried: the largest shape seen, and on as a chain."""
        most = max(0, min(self.num_nodes, 2 * max(1, self.proposing.most_nodes), ask.num_remaining - 1))
        seen = self._widest[:most]
        return shape_of((*seen, *range(len(seen) - 1, most - 1)))

    def _chosen(self, shapes: Sequence[Shape], spent: bool = False) -> list[list[int]]:
        """The nodes to draft or, with drafting `spent`, to verify."""
        step, config = self._step, self.config
        best = self._best(shapes, spent)
        step.probe = not spent and not self.drafts and self.wait < 1 and best.gain < config.enter
        if not any(best.kept):
            return best.kept
        self.drafts = best.gain >= (config.leave if self.drafts else config.enter)
        if step.probe or (self.drafts and best.risk <= self.account):
            return best.kept
        return [[] for _ in shapes]

    def _best(self, shapes: Sequence[Shape], spent: bool) -> _Choice:
        """The set of nodes with the highest rate, of all that are not empty."""
        ranked, slots, proposing = self._ranked(shapes), len(shapes), self.proposing
        target_s = self._target_s(0)
        plain_s = target_s + proposing.idle_s(slots)
        base_s = plain_s + (proposing.extra_s(slots, self._step.most_nodes) if spent else 0.0)
        counts, most, extra_s = [0] * slots, 0, 0.0
        num_tokens, best_rate, best_size, best_s = float(slots), 0.0, 0, base_s
        for size, (chance, slot, _) in enumerate(ranked, start=1):
            num_tokens += chance
            counts[slot] += 1
            if counts[slot] > most and not spent:
                most = counts[slot]
                extra_s = proposing.extra_s(slots, most)
            step_s = base_s + extra_s + self._target_s(size) - target_s
            if num_tokens > best_rate * step_s:
                best_rate, best_size, best_s = num_tokens / step_s, size, step_s
        kept: list[list[int]] = [[] for _ in shapes]
        for _, slot, node in ranked[:best_size]:
            kept[slot].append(node)
        return _Choice([sorted(nodes) for nodes in kept], best_rate * base_s / slots, best_s / plain_s - 1)

    def _ranked(self, shapes: Sequence[Shape]) -> list[tuple[float, int, int]]:
        """(m, slot, node) of all nodes, the likeliest first, parents before their children."""
        found = [
            (chance, slot, node)
            for slot, (ask, shape) in enumerate(zip(self._step.asks, shapes, strict=True))
            for node, chance in enumerate(self.acceptance.chances(ask.request, shape))
            if chance >= LEAST_CHANCE
        ]
        return sorted(found, key=lambda entry: (-entry[0], entry[2]))

    def _target_s(self, num_nodes: int) -> float:
        """A step without the proposer, with that many nodes in all slots together."""
        step = self._step
        known = self._known_s.setdefault((step.slots, step.context, step.greedy), {})
        seconds = known.get(num_nodes)
        if seconds is None:
            costs, slots, rows = self.costs, step.slots, step.slots + num_nodes
            seconds = known[num_nodes] = (
                costs.forward_s(slots, rows, (step.context + 0.5) * CONTEXT)
                + costs.accept_s(slots, rows, step.greedy)
                + costs.rest_s(slots)
            )
        return seconds
