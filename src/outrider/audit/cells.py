"""The cells of an audit: one method under one setting, and the answers that it gives there.

A cell runs through the production engine, with every draft checked on its way (`outrider.testing.checked`) and a limit
on its time. A fault may be planted into the engine first (`faults.py`).

Example: `Cell("ngram", "coupled", 4, 0.7, "penalties").name` is "ngram, coupled, batch 4, T=0.7, penalties".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from outrider.audit.config import AuditConfig, Processing
from outrider.audit.limits import time_limit
from outrider.audit.requests import Requests, can_structure
from outrider.engine import Engine
from outrider.errors import OutriderError, ProposerError
from outrider.metrics import PrefillRecord, StepRecord
from outrider.params import SamplingParams
from outrider.proposer import Proposer, Session
from outrider.requests.events import Completion
from outrider.target import Target
from outrider.testing.checked import CheckedSession, ContractError

__all__ = ["Answers", "Bench", "Cell", "Plant", "cells_of"]

Plant = Callable[[Engine], None]
"""Changes an engine before it decodes."""


class Cell(NamedTuple):
    """One setting of a method."""

    method: str
    rule: str
    batch: int
    temperature: float
    processing: Processing

    @property
    def name(self) -> str:
        parts = (self.method, self.rule, f"batch {self.batch}", f"T={self.temperature:g}")
        return ", ".join((*parts, *(() if self.processing == "none" else (self.processing,))))

    @property
    def is_exact(self) -> bool:
        """True if the text is a function of the seed: an equality; else only its law is the target's."""
        return self.rule == "coupled" or self.temperature == 0


def cells_of(config: AuditConfig, target: Target, method: str) -> list[Cell]:
    """Return the cells of a method: every setting without a processor, and each processor at the largest batch size."""
    found = []
    for rule, temperature, processing, batch in product(
        config.verification, config.temperatures, config.processors, sorted(config.batches)
    ):
        cell = Cell(method, rule, batch, temperature, processing)
        if not cell.is_exact and batch != max(config.batches) and not config.thorough:
            continue  # a law takes many tokens
        if processing == "structured" and not (can_structure(target) and cell.is_exact):
            continue
        if processing == "none" or config.thorough or batch == max(config.batches) or "none" not in config.processors:
            found.append(cell)
    return found


class Answers(NamedTuple):
    """The answers of one run, and what was drafted for them."""

    completions: list[Completion]
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True)
class Bench:
    """A target and its requests, on which cells run."""

    config: AuditConfig
    target: Target
    requests: Requests

    def params(self, cell: Cell) -> list[SamplingParams]:
        """Return the settings of a cell's answers, one for each prompt."""
        return [
            self.requests.params(index, cell.temperature, cell.processing)
            for index in range(len(self.requests.prompts))
        ]

    def answers(
        self, proposer: Proposer, cell: Cell, params: Sequence[SamplingParams], plant: Plant = lambda engine: None
    ) -> Answers:
        """Decode the prompts in turn with the given settings, and check every draft on its way.

        Raises:
            ContractError: if the proposer raises, does not return in time, or drafts what is no draft.
        """
        records: list[StepRecord | PrefillRecord] = []
        prompts = self.requests.prompts
        with time_limit(self.config.time_limit), _contract():
            engine = Engine(
                self.target,
                proposer,
                max_batch=cell.batch,
                max_len=max(map(len, prompts)) + self.requests.max_tokens,
                verification=cell.rule,
                budget=self.config.budget,
                record=records.append,
            )
            session: object = engine.session
            if not isinstance(session, Session):
                raise ContractError(f"{cell.method}: open(plan) returned {session!r:.80}, which is no Session")
            engine.session = CheckedSession(session, engine.batch, self.target.spec)
            plant(engine)
            asked = [prompts[index % len(prompts)] for index in range(len(params))]
            completions = engine.generate(asked, list(params))
        drafts = [slot for one in records if isinstance(one, StepRecord) for slot in one.slots if not slot.num_forced]
        return Answers(completions, sum(one.num_nodes for one in drafts), sum(one.num_accepted for one in drafts))


@contextmanager
def _contract() -> Iterator[None]:
    """Turn what a proposer breaks outside a checked call into a `ContractError`."""
    try:
        yield
    except ProposerError as error:
        raise ContractError(f"C8: {error}") from error
    except (OutriderError, ContractError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ContractError(f"the engine cannot go on with it: {said}") from error
