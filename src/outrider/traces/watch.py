"""Observation of each step of an engine, from outside of it.

An engine verifies a draft and hands a record to its callback. A `Watch` stands at these two places and keeps, for the
requests that are traced, the draft and the target's probabilities. These are computed after the step, when its times
are taken already: logits hold until the next forward.

    request 8: draft [cat, dog], [-1, -1]  event "dog runs", 1 accepted     nodes 1 accepted, probs (0.2, 0.7)

Shapes: M rows, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.requests.events import Event
from outrider.sampling import SamplingParams
from outrider.verify import AcceptedPath, VerifyInput

__all__ = ["Chosen", "Watch", "WatchedStep", "watching"]

PARTS = ("propose", "verify", "accept", "commit", "host")
NUM_TOP = 3
"""The most probable tokens that are kept of each row behind which a token was emitted."""


class Chosen(NamedTuple):
    """The target's probability of an emitted token, and its most probable ones there; None where not finite."""

    prob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class WatchedStep:
    """A step of one request.

    step       number of the step at the engine
    tree       the draft that was verified
    is_forced  True if the form of the answer forced the draft
    part       the part of the method that drafted, as `outrider.proposer.Session.part` names it
    accepted   indices of its accepted nodes whose token was emitted, from the root down
    probs      the target's probability of each node after its parent; None where its logits are not finite
    chosen     the target's probabilities at each emitted token
    seconds    parts of the whole batch's step, by name, and their total
    """

    step: int
    tree: Tree
    is_forced: bool
    part: str
    accepted: tuple[int, ...]
    probs: tuple[float | None, ...]
    chosen: tuple[Chosen, ...]
    seconds: Mapping[str, float]


class _Verified(NamedTuple):
    """A verified draft, forced tokens included, its input, and the part that drafted for each slot."""

    draft: Draft
    given: VerifyInput
    parts: list[str]


@final
class Watch:
    """The last step of one engine, with the drafts of traced requests, from now until `leave`."""

    def __init__(self, engine: Engine) -> None:
        self.traced: set[int] = set()
        self._engine = engine
        self._verifier, self._recorder = engine.verifier, engine.record
        self._last: StepRecord | None = None
        self._verified: _Verified | None = None
        engine.verifier, engine.record = self._verify, self._record

    def leave(self) -> None:
        """Let the engine be as it was."""
        self._engine.verifier, self._engine.record = self._verifier, self._recorder

    def begin(self) -> None:
        """Start a step: nothing is known of it."""
        self._last = self._verified = None

    def _record(self, record: StepRecord | PrefillRecord) -> None:
        self._recorder(record)
        if isinstance(record, StepRecord):
            self._last = record

    def _verify(self, draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
        self._verified = None
        if self.traced:
            session = self._engine.session
            self._verified = _Verified(draft, given, [session.part(slot) for slot in self._engine.batch.slots])
        return self._verifier(draft, given)

    def step_of(self, event: Event, request: int | None = None) -> WatchedStep | None:
        """Return the step that an event comes from; None for a request that is not traced or was in no step.

        Args:
            request: the request's id, where the event counts prompts instead.
        """
        request = event.request if request is None else request
        if request not in self.traced or self._last is None or self._verified is None:
            return None
        slots = [slot.request for slot in self._last.slots]
        if request not in slots:
            return None
        place, (draft, given, parts) = slots.index(request), self._verified
        tree, record = draft.trees[place], self._last
        accepted = path_of(tree, event.tokens[: event.num_accepted])
        probs_MV = probabilities(given.logits_BMV[place][: 1 + len(tree.tokens)], given.samplings[place])
        seconds = {name: float(getattr(record, f"{name}_s")) for name in PARTS}
        return WatchedStep(
            step=record.step,
            tree=tree,
            is_forced=record.slots[place].num_forced > 0,
            part=parts[place],
            accepted=accepted,
            probs=node_probs(probs_MV, tree),
            chosen=chosen(probs_MV, [0, *(node + 1 for node in accepted)], event.tokens),
            seconds=seconds | {"total": record.total_s},
        )


@contextmanager
def watching(engine: Engine) -> Iterator[Watch]:
    """Observe an engine's steps within the block."""
    watch = Watch(engine)
    try:
        yield watch
    finally:
        watch.leave()


def probabilities(logits_MV: Tensor, sampling: SamplingParams) -> Tensor:
    """Return the target's distributions [M, V] at the request's temperature, 1 if it is greedy."""
    return (logits_MV.float() / (sampling.temperature or 1.0)).softmax(-1)


def node_probs(probs_MV: Tensor, tree: Tree) -> tuple[float | None, ...]:
    """Return the target's probability of each node after its parent."""
    rows = [parent + 1 for parent in tree.parents]
    return tuple(map(_finite, probs_MV[rows, tree.tokens].tolist())) if rows else ()


def chosen(probs_MV: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Chosen, ...]:
    """Return the probabilities of emitted tokens, each behind its row."""
    if not tokens:
        return ()
    probs_RV = probs_MV[list(rows[: len(tokens)])]
    own_R = probs_RV.gather(1, torch.tensor(tokens, device=probs_MV.device)[:, None])[:, 0].tolist()
    best = probs_RV.topk(min(NUM_TOP, probs_RV.shape[1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(
        Chosen(_finite(own), tuple((id, round(prob, 4)) for id, prob in zip(ids, values, strict=True) if prob == prob))
        for own, (ids, values) in zip(own_R, tops, strict=True)
    )


def path_of(tree: Tree, tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the nodes of the path with these tokens, from the root down.

    >>> path_of(Tree([5, 6, 7], [-1, 0, 0]), [5, 7])
    (0, 2)
    """
    below, row, path = tree.children(), 0, list[int]()
    for token in tokens:
        row = next(child for child in below[row] if tree.tokens[child - 1] == token)
        path.append(row - 1)
    return tuple(path)


def _finite(prob: float) -> float | None:
    return round(prob, 6) if prob == prob else None
