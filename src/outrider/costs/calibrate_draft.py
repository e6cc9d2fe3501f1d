"""Measures one method's time per step, proposing and observing.

A drafter's work depends on its state: what it has read, what was accepted, how its last draft ended. So the real
proposer runs in engines with fixed limits, which write an answer to a prompt that repeats itself (otherwise lookups
would find nothing), and `propose_s` of their steps is recorded. Engines with different numbers of nodes take turns step
by step; the median counts.

    counted    steps in which every slot drafted up to its limit; where there are none, steps with any draft; where the
               method never drafted, all steps
    skipped    the first steps of each engine

A limit of 0 nodes is measured too: the cost of observing alone, when a budget turns drafting off. A method with a cache
of its own reads every prompt before it drafts: the seconds per token of that are noted beside.

Worked example: with `nodes=(1, 4)` and 2 slots, two engines of 2 slots each; a recurrent head takes about four times as
long for four nodes in a chain as for one, a lookup about the same.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final, final

import torch

from outrider.costs.calibrate import Progress
from outrider.costs.grid import Grid
from outrider.costs.tables import MeasuredDraftCosts, joined_draft_costs
from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Proposer
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["measure_draft", "node_counts"]

PROMPT, PERIOD, SKIPPED, LONGEST = 64, 16, 3, 1024
NODES: Final = (0, 1, 2, 4, 8, 16, 32, 64)


def node_counts(proposer: Proposer) -> tuple[int, ...]:
    """Return 0, 1, 2, 4, ... and the most nodes that the proposer drafts."""
    most = proposer.spec.max_nodes
    return (*(count for count in NODES if count < most), most)


def measure_draft(
    target: Target,
    proposer: Proposer,
    *,
    slots: Sequence[int],
    nodes: Sequence[int],
    repeats: int,
    progress: Progress = lambda done, total: None,
) -> MeasuredDraftCosts:
    """Time a method's steps.

    Args:
        slots: batch sizes.
        nodes: limits of nodes per slot.
        repeats: steps of each engine that may count.

    Raises:
        ConfigError: if a number is out of range.
        CapacityError: if the engines do not fit in memory.
    """
    slots, nodes = tuple(sorted(set(slots))), tuple(sorted(set(nodes)))
    if not slots or not nodes or slots[0] < 1 or nodes[0] < 0 or repeats < 1:
        raise ConfigError(f"batches={slots}, nodes={nodes} and repeats={repeats} must be at least 1, 0 and 1")
    num_rounds = SKIPPED + repeats
    parts = []
    for index, batch in enumerate(slots):
        done = index * num_rounds
        runs = [_Run(target, proposer, batch, count, num_rounds) for count in nodes]
        for turn in range(num_rounds):
            for run in runs if turn % 2 else reversed(runs):
                run.step()
            progress(done + turn + 1, len(slots) * num_rounds)
        grid = Grid({"slots": (batch,), "nodes_per_slot": nodes}, [[run.propose_s() for run in runs]])
        read_s = median(seconds for run in runs for seconds in run.read_s or (0.0,))
        parts.append(MeasuredDraftCosts(propose=grid, read_s=read_s))
    return joined_draft_costs(parts)


@final
class _Run:
    """An engine that generates one step at a time, with space for that many steps if they are not too many."""

    def __init__(self, target: Target, proposer: Proposer, batch: int, num_nodes: int, num_steps: int) -> None:
        max_len = min(LONGEST, target.spec.max_positions, PROMPT + (num_steps + 1) * (num_nodes + 1))
        self._batch, self._num_nodes, self._max_len = batch, num_nodes, max_len
        self._steps: list[StepRecord] = []
        self.read_s: list[float] = []
        """Seconds per token of reading prompts."""
        self._engine = Engine(
            target,
            proposer,
            max_batch=batch,
            max_len=max_len,
            num_nodes=num_nodes,
            prefix_cache_bytes=0,
            prefill_chunk=batch * PROMPT,  # all slots start in the same step
            record=self._record,
        )
        random = torch.Generator().manual_seed(0)
        period = torch.randint(target.spec.vocab_size, (batch, PERIOD), generator=random).tolist()
        length = min(PROMPT, max_len // 2)
        self._prompts = [(tokens * (PROMPT // PERIOD))[:length] for tokens in period]

    def _record(self, record: StepRecord | PrefillRecord) -> None:
        if isinstance(record, StepRecord):
            self._steps.append(record)
        elif any(self._engine.session.num_pending(slot) for slot in self._engine.batch.slots):
            self.read_s.append(record.proposer_s / record.num_tokens)

    def step(self) -> None:
        """Run one step with all slots in use; answers that reach their end begin anew."""
        engine = self._engine
        lengths = [len(running.tokens) for running in engine.batch.running.values()]
        if len(lengths) < self._batch or max(lengths) + self._num_nodes + 1 >= self._max_len:
            engine.reset()
            for prompt in self._prompts:
                engine.add(prompt, SamplingParams(max_tokens=self._max_len, ignore_eos=True))
        with engine.decoding_threads():
            engine.admit()
            engine.step()

    def propose_s(self) -> float:
        """Return the median of the steps that count."""
        steps = self._steps[SKIPPED:]
        full = [step for step in steps if all(slot.num_nodes == self._num_nodes for slot in step.slots)]
        drafted = [step for step in steps if any(slot.num_nodes for slot in step.slots)]
        return median(step.propose_s for step in full or drafted or steps)
