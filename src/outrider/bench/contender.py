"""What takes part in a benchmark: something that answers a group of conversations and says what it did.

The runner knows contenders only through this interface. Ours is an engine with a proposer; plain decoding is ours with
the empty draft; `outrider.bench.external` has baselines from other libraries.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Literal, NamedTuple, final

from outrider.bench.footprint import session_bytes_per_token
from outrider.bench.plan import Cell, Group
from outrider.bench.play import play
from outrider.budget import BudgetChoice
from outrider.data.dialogue import Rules
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Proposer, Session
from outrider.results.unit import Answer, UnitResult, unit_id
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["Contender", "EngineContender", "Name"]

WARM_UP_TOKENS = 16


class Name(NamedTuple):
    """What a row of the result is called."""

    engine: str
    method: str
    state: Literal["cold", "warm"] = "cold"

    def unit(self, cell: Cell, group: Group) -> str:
        ids = [conversation.id for conversation in group]
        return unit_id(
            self.method,
            cell.category,
            cell.batch,
            cell.temperature,
            cell.repeat,
            ids,
            engine=self.engine,
            state=self.state,
        )


class Contender(ABC):
    """One thing to measure."""

    @property
    @abstractmethod
    def name(self) -> Name:
        """Unique in a run."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether earlier groups of a cell change how fast later ones are."""

    @abstractmethod
    def takes(self, cell: Cell, index: int) -> bool:
        """Whether it takes part in the cell's group `index`."""

    @abstractmethod
    def open(self, batch: int) -> None:
        """Get ready for batches of this size: load, allocate, warm up."""

    @abstractmethod
    def close(self) -> None:
        """Give back what one batch size needs."""

    @abstractmethod
    def leave(self) -> None:
        """The run needs it no more, or has failed: give back what outlives a batch size, such as a server."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was learnt."""

    @abstractmethod
    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        """Answer a group and record it."""


@dataclass
class _StepLog:
    """What a unit recorded, and the most memory that the session held at the end of a step."""

    steps: list[StepRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    session: Session | None = None
    most_bytes: int = 0

    def __call__(self, record: StepRecord | PrefillRecord) -> None:
        self.most_bytes = max(self.most_bytes, 0 if self.session is None else self.session.num_bytes)
        match record:
            case StepRecord():
                self.steps.append(record)
            case PrefillRecord():
                self.prefills.append(record)


@final
class EngineContender(Contender):
    """A proposer in our engine.

    Args:
        label: what the method is called in this run.
        budget: as `Engine` takes it.
        warm_up: token ids to warm up with.
    """

    def __init__(
        self,
        target: Target,
        proposer: Proposer,
        label: str,
        *,
        state: Literal["cold", "warm"],
        budget: BudgetChoice = "fixed",
        verification: str,
        max_len: int,
        warm_up: Sequence[int],
        temperatures: Sequence[float],
    ) -> None:
        self.target = target
        self.proposer = proposer
        self.budget = budget
        self.verification = verification
        self.max_len = max_len
        self.warm_up = list(warm_up)
        self.temperatures = tuple(temperatures)
        self._name = Name("outrider", label, state)
        self._log = _StepLog()
        self._engine: Engine | None = None

    @property
    def name(self) -> Name:
        return self._name

    @property
    def learns(self) -> bool:
        return self.proposer.spec.learns or self.budget != "fixed"

    @cached_property
    def _bytes_per_token(self) -> int:
        return round(session_bytes_per_token(self.target, self.proposer))

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "open it first"
        return self._engine

    def takes(self, cell: Cell, index: int) -> bool:
        return True

    def open(self, batch: int) -> None:
        self._engine = Engine(
            self.target,
            self.proposer,
            max_batch=batch,
            max_len=self.max_len,
            verification=self.verification,
            budget=self.budget,
            record=self._log,
        )
        for temperature in self.temperatures:
            self._engine.generate(
                [self.warm_up] * batch,
                SamplingParams(temperature=temperature, max_tokens=WARM_UP_TOKENS, ignore_eos=True),
            )
        self._log.session = self._engine.session
        self.reset()

    def close(self) -> None:
        self._engine = self._log.session = None
        gc.collect()

    def leave(self) -> None:
        """Nothing outlives a batch size."""

    def reset(self) -> None:
        self.engine.reset()

    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        if self.proposer.scripted:
            play(self.engine, group, rules)  # what it must know beforehand is part of no measurement
        self._log.steps, self._log.prefills, self._log.most_bytes = [], [], 0
        gc.collect()
        start = perf_counter()
        answers = play(self.engine, group, rules)
        wall_s = perf_counter() - start
        return self._result(cell, group, rules, answers, wall_s)

    def _result(self, cell: Cell, group: Group, rules: Rules, answers: Sequence[Answer], wall_s: float) -> UnitResult:
        return UnitResult(
            unit=self.name.unit(cell, group),
            method=self.name.method,
            category=cell.category,
            batch=cell.batch,
            temperature=cell.temperature,
            repeat=cell.repeat,
            conversations=tuple(conversation.id for conversation in group),
            answers=tuple(answers),
            steps=tuple(self._log.steps),
            prefills=tuple(self._log.prefills),
            wall_s=wall_s,
            state=self.name.state,
            forced_length=rules.ignore_eos,
            scripted=self.proposer.scripted,
            memory_bytes={
                "proposer_weights": self.proposer.spec.num_bytes,
                "proposer_cache": self._log.most_bytes,
                "proposer_cache_per_token": self._bytes_per_token,
                "target_cache_per_token": self.engine.memory.cache.bytes_per_token,
            },
        )
