"""A budget on a simulated machine: no model, simulated time, the same every time.

The costs of a forward are a table, those of the proposer a share of a plain step, and a *process* says how likely the
next drafted token is right. Text is a row of ones; a drafted 1 is right and a 0 wrong. So a budget meets exactly what
it meets in an engine (slot states, drafts, commits, seconds), and its time can be compared with that of any other.

Worked example: with `constant(0.8)` and drafts that cost 1 % of a step, `run(FixedBudget(4))` emits 3.4 tokens a step
on average, and `run(FixedBudget(0))` one.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from outrider.budget import Budget, SlotState
from outrider.costs.tables import TargetCosts
from outrider.draft import Draft
from outrider.proposer import Commit, DraftLimit

__all__ = [
    "Simulated",
    "Simulation",
    "TableCosts",
    "bursts",
    "constant",
    "contrary",
    "drifting",
    "mixed",
    "one_copies",
    "switching",
]

HICCUP = 29
PROMPT = 100

Process = Callable[["Moment"], float]
"""The chance that the next drafted token is right, if those before it were; negative where nothing is drafted."""


@dataclass(frozen=True)
class Moment:
    """The circumstances of a draft.

    slot, request   its slot and its request, numbered from 0
    position        tokens emitted before the drafted one, in this request
    num_steps       steps of the whole run before this one
    num_verified    nodes of the request that were verified in the last step
    """

    slot: int
    request: int
    position: int
    num_steps: int
    num_verified: int


def constant(chance: float) -> Process:
    """Return the same chance everywhere."""
    return lambda moment: chance


def mixed(low: float, high: float) -> Process:
    """Make every other request easy."""
    return lambda moment: high if moment.request % 2 else low


def one_copies(low: float = 0.1, high: float = 0.97) -> Process:
    """Make the first slot's requests copy, and no others."""
    return lambda moment: low if moment.slot else high


def switching(low: float = 0.1, high: float = 0.95, at: int = 32) -> Process:
    """Make every request copy up to there and not from then on, every other one the other way round."""
    return lambda moment: high if (moment.position < at) == (moment.slot % 2 == 0) else low


def bursts(length: int = 40, gap: int = 80, chance: float = 0.97, elsewhere: float = 0.05) -> Process:
    """Alternate copied passages of about `length` tokens with about `gap` other tokens."""

    def process(moment: Moment) -> float:
        period = length + gap
        phase = (moment.position + 37 * moment.slot + 11 * moment.request) % period
        return chance if phase < length else elsewhere

    return process


def drifting(low: float = 0.05, high: float = 0.9, period: int = 400) -> Process:
    """Go from hard to easy and back, linearly, by steps."""

    def process(moment: Moment) -> float:
        phase = moment.num_steps % period / period
        return low + (high - low) * (1 - abs(2 * phase - 1))

    return process


def contrary(moment: Moment) -> float:
    """Be right only after a step that verified nothing."""
    return 0.0 if moment.num_verified else 0.95


@final
@dataclass(frozen=True)
class TableCosts(TargetCosts):
    """Seconds by rows of all slots together, piecewise linear, and on like the last piece; and for each row judged."""

    forward: Mapping[int, float]
    judge: float = 0.0

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        points = sorted(self.forward.items())
        place = min(max(bisect_right([rows for rows, _ in points], num_rows), 1), len(points) - 1)
        (low, below), (high, above) = points[place - 1], points[place]
        return below + (above - below) * (num_rows - low) / (high - low)

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        return self.judge * num_rows

    def rest_s(self, num_slots: int) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The result of a run, in simulated seconds. `ended_s`: time from admission to end of each finished request."""

    seconds: float
    num_tokens: int
    num_steps: int
    num_verified: int
    ended_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


@final
@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Requests in slots, a proposer, and a machine.

    process        see `Process`
    costs          costs of the target
    draft_s        seconds of one drafted node; each further one of a slot costs `further` of that
    num_nodes      the most that the proposer drafts
    length         tokens of each request
    closed         the requests come in groups, one for every slot, and a group waits for the slowest of the one before;
                   otherwise a request always waits, and takes the slot of one that ends
    num_tokens     tokens of the whole run
    read_s         seconds per pending token that the proposer reads before it drafts, a prompt of `PROMPT` tokens
                   included; 0 for one without a cache of its own
    hiccup_s       extra seconds of proposing in every 29th step, drafting or not
    """

    process: Process
    costs: TargetCosts
    draft_s: float
    further: float = 0.25
    num_slots: int = 1
    num_nodes: int = 8
    length: int = 160
    closed: bool = False
    num_tokens: int = 480
    read_s: float = 0.0
    hiccup_s: float = 0.01
    seed: int = 0

    def run(self, budget: Budget) -> Simulated:
        """Play with this budget."""
        return _Run(self, budget).play()


@dataclass
class _Slot:
    index: int
    request: int = 0
    position: int = 0
    num_read: int = 0
    num_verified: int = 0
    start_s: float = 0.0


@final
class _Run:
    """One run; `Engine.step`, on simulated parts. `slots`: those that have a request."""

    def __init__(self, simulation: Simulation, budget: Budget) -> None:
        self.simulation = simulation
        self.budget = budget
        self.all_slots = [_Slot(index) for index in range(simulation.num_slots)]
        self.slots = list(self.all_slots)
        self.draw = random.Random(simulation.seed)
        self.num_steps = 0
        self.seconds = 0.0
        self.ended_s: list[float] = []

    def play(self) -> Simulated:
        num_tokens = num_verified = 0
        while num_tokens < self.simulation.num_tokens:
            draft, step_s = self._draft()
            commits = self._verify(draft)
            step_s |= self._target_s(draft, commits)
            self.budget.observe(commits, step_s)
            self.num_steps += 1
            self.seconds += sum(step_s.values())
            self._advance(draft, commits)
            num_tokens += sum(len(commit.tokens) for commit in commits)
            num_verified += sum(draft.num_nodes)
        return Simulated(
            seconds=self.seconds,
            num_tokens=num_tokens,
            num_steps=self.num_steps,
            num_verified=num_verified,
            ended_s=tuple(self.ended_s),
        )

    def _draft(self) -> tuple[Draft, dict[str, float]]:
        num_waiting = 0 if self.simulation.closed else 1
        limits = self.budget.limits([self._slot_state(slot) for slot in self.slots], num_waiting)
        chains = [self._chain(slot, limit) for slot, limit in zip(self.slots, limits, strict=True)]
        most = max(len(chain) for chain in chains)
        seconds = self.simulation.draft_s * (1 + self.simulation.further * (most - 1)) if most else 0.0
        for slot, chain in zip(self.slots, chains, strict=True):
            if chain:
                seconds += self.simulation.read_s * (PROMPT + slot.position - slot.num_read)
                slot.num_read = PROMPT + slot.position
        hiccup_s = self.simulation.hiccup_s if self.num_steps % HICCUP == 0 else 0.0
        return self.budget.prune(Draft.of_chains(chains)), {"propose_s": seconds + hiccup_s}

    def _slot_state(self, slot: _Slot) -> SlotState:
        number = slot.index + slot.request * self.simulation.num_slots
        return SlotState(
            number,
            self.simulation.length - slot.position,
            PROMPT + slot.position,
            greedy=True,
            num_pending=PROMPT + slot.position - slot.num_read if self.simulation.read_s else 0,
        )

    def _chain(self, slot: _Slot, limit: DraftLimit) -> list[int]:
        chain: list[int] = []
        for ahead in range(min(limit.num_nodes, limit.max_depth, self.simulation.num_nodes)):
            moment = Moment(slot.index, slot.request, slot.position + ahead, self.num_steps, slot.num_verified)
            chance = self.simulation.process(moment)
            if chance < 0:
                break
            chain.append(int(self.draw.random() < chance))
        return chain

    def _verify(self, draft: Draft) -> list[Commit]:
        commits = []
        for place, (slot, tree) in enumerate(zip(self.slots, draft.trees, strict=True)):
            right = [*tree.tokens, 0].index(0)
            commits.append(Commit(slot.index, list(range(right + 1)), [1] * (right + 1), place))
        return commits

    def _target_s(self, draft: Draft, commits: Sequence[Commit]) -> dict[str, float]:
        slots, rows = len(self.slots), len(draft.real_rows)
        judged = sum(len(commit.tokens) for commit in commits)
        context = sum(PROMPT + slot.position for slot in self.slots) / slots
        costs = self.simulation.costs
        return {
            "verify_s": costs.forward_s(slots, rows, context),
            "accept_s": costs.accept_s(slots, judged, True),
            "host_s": costs.rest_s(slots),
        }

    def _advance(self, draft: Draft, commits: Sequence[Commit]) -> None:
        for slot, num_nodes, commit in zip(self.slots, draft.num_nodes, commits, strict=True):
            slot.num_verified = num_nodes
            slot.position += len(commit.tokens)
        ended = [slot for slot in self.slots if slot.position >= self.simulation.length]
        self.ended_s += [self.seconds - slot.start_s for slot in ended]
        if self.simulation.closed:
            self.slots = [slot for slot in self.slots if slot not in ended]
            ended = [] if self.slots else self.all_slots
            self.slots = self.slots or list(self.all_slots)
        for slot in ended:
            slot.request, slot.position, slot.num_read = slot.request + 1, 0, 0
            slot.num_verified, slot.start_s = 0, self.seconds
