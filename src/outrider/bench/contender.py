"""The interface of a contender: it answers a group of conversations and records what it did.

The runner knows its contenders only through it:

    engine_contender      our engine with a proposer; plain decoding is ours with the empty draft
    external              baselines from other libraries
    serving.contender     engines behind a server
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from outrider.bench.cells import Cell, Group
from outrider.data.dialogue import Rules
from outrider.results.unit import Answer, UnitResult, unit_id

__all__ = ["Contender", "Name"]


class Name(NamedTuple):
    """Name of a row of the result."""

    engine: str
    method: str
    state: Literal["cold", "warm"] = "cold"

    def unit(self, cell: Cell, group: Group) -> str:
        """Return the name of the unit in which this contender answers a group."""
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

    def result(
        self, cell: Cell, group: Group, rules: Rules, answers: Sequence[Answer], wall_s: float, **more: Any
    ) -> UnitResult:
        """Return the record of a measured group; `more` are the fields that only some contenders know."""
        return UnitResult(
            unit=self.unit(cell, group),
            engine=self.engine,
            method=self.method,
            state=self.state,
            category=cell.category,
            batch=cell.batch,
            temperature=cell.temperature,
            repeat=cell.repeat,
            conversations=tuple(conversation.id for conversation in group),
            answers=tuple(answers),
            wall_s=wall_s,
            forced_length=rules.ignore_eos,
            **more,
        )


class Contender(ABC):
    """One thing to measure."""

    @property
    @abstractmethod
    def name(self) -> Name:
        """Its name, unique in a run."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """True if earlier groups of a cell change how fast later ones are."""

    @abstractmethod
    def takes(self, cell: Cell, index: int) -> bool:
        """Return whether it takes part in the cell's group `index`."""

    @abstractmethod
    def open(self, batch: int) -> None:
        """Get ready for batches of this size: load, allocate, warm up."""

    @abstractmethod
    def close(self) -> None:
        """Release what one batch size needs."""

    @abstractmethod
    def leave(self) -> None:
        """Release what outlives a batch size, such as a server: the run has ended or failed."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was learnt."""

    @abstractmethod
    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        """Answer a group and record it."""
