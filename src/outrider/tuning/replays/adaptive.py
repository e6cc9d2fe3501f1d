"""The adaptive budget along known texts, on a clock of cost tables: what it would draft, and how long that would take.

The real engine, session and budget run, without the target (`outrider.tuning.replays.known`). Every step is priced by
the tables, and the budget observes those prices instead of measured times. So its probes, its waits and the reading of
prompts before a first draft are part of the prediction.

A chain is not drafted anew: `KnownChains` repeats the drafts that `chain_reach` found, cut to the limits of the budget.

Example: with prices of 5 ms for any forward and 0.1 ms for drafting, a budget drafts wherever anything is right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median
from time import perf_counter
from typing import Any, Final, final

from torch import Tensor

from outrider.adaptive.controller import FEW, AdaptiveBudget
from outrider.bench.cells import Cell, Group
from outrider.bench.contender import Name
from outrider.bench.engine_contender import WARM_UP_TOKENS
from outrider.budget import Budget, SlotState
from outrider.data.dialogue import Rules
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord, context_per_row
from outrider.planning.check import CostTables
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.results.unit import UnitResult
from outrider.sampling import SamplingParams
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.replay import Key, Reach
from outrider.tuning.replays.texts import Text
from outrider.tuning.replays.units import ONE_S, answer_of

__all__ = ["KnownChains", "adaptive_units"]

NOT_A_TOKEN: Final = 0


def adaptive_units(
    label: str,
    target: ReplayTarget,
    proposer: Proposer,
    cells: Sequence[Cell],
    texts: Mapping[Key, Text],
    tables: CostTables,
    rules: Rules,
    *,
    method: str,
    max_len: int,
    counts_itself: bool = True,
) -> list[UnitResult]:
    """Return the units of a method with the adaptive budget in all cells, timed by the tables.

    Args:
        label: name in tables.
        method: the method's name in the cost tables.
        counts_itself: add the time that the budget itself takes, measured while it runs.
    """
    found: list[UnitResult] = []
    for batch, members in groupby(cells, key=lambda cell: cell.batch):
        run = _Run(target, proposer, batch, tables, method, max_len)
        run.warm_up(next(iter(texts.values())))
        for cell in members:
            run.engine.reset()
            for group in cell.groups:
                found.append(run.unit(Name("outrider", label), cell, group, texts, rules))
        if counts_itself:
            own_s = run.budget.own_s()
            found = [_slowed(unit, own_s) if unit.batch == batch else unit for unit in found]
    return found


def _slowed(unit: UnitResult, own_s: Mapping[bool, float]) -> UnitResult:
    """Add the seconds of steps without and with a draft."""
    steps = [replace(one, host_s=one.host_s + own_s[any(slot.num_nodes for slot in one.slots)]) for one in unit.steps]
    return replace(unit, steps=tuple(steps))


class _Run:
    """An engine of one batch size."""

    def __init__(
        self, target: ReplayTarget, proposer: Proposer, batch: int, tables: CostTables, method: str, max_len: int
    ) -> None:
        self.batch = batch
        self.budget = _PricedBudget(tables, method, proposer.spec.max_nodes)
        self.steps: list[StepRecord] = []
        self.engine = Engine(
            target, proposer, max_batch=batch, max_len=max_len, budget=self.budget, record=self._record
        )

    def warm_up(self, text: Text) -> None:
        """Write the beginning of an answer in every slot, as the benchmark does."""
        for _ in range(self.batch):
            self.engine.add(list(text.known.prompt), replace(text.sampling, max_tokens=WARM_UP_TOKENS))
        self._drain()

    def unit(self, name: Name, cell: Cell, group: Group, texts: Mapping[Key, Text], rules: Rules) -> UnitResult:
        """Write all answers of a group, turn by turn."""
        self.steps.clear()
        answers = []
        for turn in range(max(len(conversation.turns) for conversation in group)):
            for text in (texts.get((conversation.id, turn)) for conversation in group):
                if text is not None:
                    answers.append(answer_of(text, self.engine.add(list(text.known.prompt), text.sampling)))
            self._drain()
        return name.result(cell, group, rules, answers, ONE_S, steps=tuple(self.steps))

    def _drain(self) -> None:
        for event in self.engine.run():
            event.raise_for_error()

    def _record(self, record: StepRecord | PrefillRecord) -> None:
        if isinstance(record, StepRecord):
            priced: dict[str, Any] = {"commit_s": 0.0, **self.budget.seconds}
            self.steps.append(replace(record, **priced))


@final
class _PricedBudget(Budget):
    """The adaptive budget, which observes the prices of steps instead of their times.

    seconds    prices of the last step's parts
    """

    reads_ahead = False

    def __init__(self, tables: CostTables, method: str, num_nodes: int) -> None:
        drafts = tables.of(method)
        assert drafts is not None, "the method was timed"
        self._target, self._drafts = tables.target, drafts
        self._budget = AdaptiveBudget(tables.target, num_nodes)
        self._states: Sequence[SlotState] = ()
        self._limits: Sequence[DraftLimit] = ()
        self._propose_s = 0.0
        self._own_s: dict[bool, list[float]] = {False: [0.0], True: [0.0]}
        self._num_nodes: Sequence[int] = ()
        self._limits_s = 0.0
        self.seconds: Mapping[str, float] = {}

    def own_s(self) -> Mapping[bool, float]:
        """Return the median seconds of the budget itself in steps without and with a draft."""
        return {drafted: median(seconds) for drafted, seconds in self._own_s.items()}

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        self._states = slot_states
        start = perf_counter()
        self._limits = limits = self._budget.limits(slot_states, num_waiting)
        self._limits_s = perf_counter() - start
        return limits

    def prune(self, draft: Draft) -> Draft:
        depth = max((max(tree.depths(), default=0) for tree in draft.trees), default=0)
        self._propose_s = self._drafts.propose_s(len(self._states), sum(draft.num_nodes), depth)
        most = self._budget.num_nodes + FEW  # the price of a draft includes the tokens of the step before
        pending = zip(self._states, self._limits, strict=True)
        read = [one.num_pending for one, limit in pending if limit.num_nodes and one.num_pending > most]
        self._propose_s += self._drafts.pending_s(sum(read))
        start = perf_counter()
        pruned = self._budget.prune(draft)
        self._limits_s += perf_counter() - start
        self._num_nodes = pruned.num_nodes
        return pruned

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        states, slots, nodes = self._states, len(self._states), sum(self._num_nodes)
        context = context_per_row(zip((state.context_length for state in states), self._num_nodes, strict=True))
        accepted = sum(len(commit.rows) - 1 for commit in commits)
        greedy = all(state.greedy for state in states)
        self.seconds = {
            "propose_s": self._propose_s,
            "verify_s": self._target.forward_s(slots, slots + nodes, context),
            "accept_s": self._target.accept_s(slots, slots + accepted, greedy),
            "host_s": self._target.rest_s(slots),
        }
        start = perf_counter()
        self._budget.observe(commits, self.seconds)
        self._own_s[nodes > 0].append(self._limits_s + perf_counter() - start)

    def reset(self) -> None:
        self._budget.reset()


@final
class KnownChains(Proposer):
    """Chains that were drafted before at every position of known answers.

    Args:
        reaches: lengths and right tokens of the drafts, by answer.
        num_nodes: the most tokens of a draft.
        reads: the drafter has a cache of its own, and reads a text before it drafts.
    """

    def __init__(self, texts: Mapping[Key, Text], reaches: Mapping[Key, Reach], num_nodes: int, reads: bool) -> None:
        self.known = {text.known.prompt: (text.known.answer, reaches[key]) for key, text in texts.items()}
        self.num_nodes = num_nodes
        self.reads = reads

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.num_nodes)

    def open(self, plan: SessionPlan) -> Session:
        return _KnownSession(self, plan)


@dataclass
class _Known:
    """The answer in a slot: what was drafted, tokens emitted, and tokens that are pending."""

    answer: Sequence[int]
    reach: Reach
    num_emitted: int = 0
    num_pending: int = 0

    def chain(self, limit: int) -> list[int]:
        """Return the draft at this position: right tokens, then wrong ones."""
        if self.num_emitted >= len(self.reach.lengths):
            return []
        most = min(limit, self.reach.lengths[self.num_emitted])
        right = min(most, self.reach.right[self.num_emitted])
        chain = list(self.answer[self.num_emitted : self.num_emitted + right])
        after = self.answer[self.num_emitted + right : self.num_emitted + right + 1]
        wrong = 1 if after and after[0] == NOT_A_TOKEN else NOT_A_TOKEN
        return [*chain, *[wrong] * (most - right)]


@final
class _KnownSession(Session):
    """Answers by slot."""

    def __init__(self, proposer: KnownChains, plan: SessionPlan) -> None:
        self._proposer = proposer
        self._device = plan.device
        self._slots: dict[int, _Known] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        answer, reach = self._proposer.known[tuple(tokens)]
        self._slots[slot] = _Known(answer, reach, num_pending=len(tokens) - 1 if self._proposer.reads else 0)

    def num_pending(self, slot: int) -> int:
        return self._slots[slot].num_pending

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        chains = []
        for slot, limit in zip(slots, limits, strict=True):
            known, most = self._slots[slot], min(limit.num_nodes, limit.max_depth, self._proposer.num_nodes)
            chains.append(known.chain(most))
            if most:
                known.num_pending = 0
        return Draft.of_chains(chains, self._device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            known = self._slots[commit.slot]
            known.num_emitted += len(commit.tokens)
            known.num_pending += len(commit.tokens) if self._proposer.reads else 0

    def release(self, slot: int) -> None:
        del self._slots[slot]
