"""Observation and limits of each step of an engine, from outside of it.

An engine asks its budget for limits, drafts, lets the budget prune, verifies, and hands a record to its callback. A
`Watch` stands at these three places. It caps the nodes of a request that wants fewer, and it keeps the drafts of the
requests that want to see them, with the target's probability of each node.

    request 7: limit 0                     plain decoding, in the batch of the others
    request 8: draft [cat, dog], [-1, -1]  event "dog runs", 1 accepted     trace: nodes 1 accepted, probs (0.2, 0.7)

Shapes: M rows, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from outrider.budget import Budget, SlotState
from outrider.draft import Draft, Tree
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Commit, DraftLimit
from outrider.requests.events import Event
from outrider.sampling import SamplingParams
from outrider.verify import AcceptedPath, VerifyInput

__all__ = ["CappedBudget", "StepTrace", "Watch"]

Verifier = Callable[[Draft, VerifyInput], list[AcceptedPath]]
Recorder = Callable[[StepRecord | PrefillRecord], None]


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """A step of one request.

    step       number of the step at the engine
    tree       the draft that was verified
    accepted   indices of its accepted nodes whose token was emitted, from the root down
    probs      the target's probability of each node after its parent; None where its logits are not finite
    seconds    parts of the whole batch's step, by name, and their total
    """

    step: int
    tree: Tree
    accepted: tuple[int, ...]
    probs: tuple[float | None, ...]
    seconds: Mapping[str, float]


@final
class CappedBudget(Budget):
    """A budget with an upper limit of nodes for some requests; `watch` learns which requests a step has."""

    def __init__(self, inner: Budget, watch: "Watch") -> None:
        self.inner = inner
        self.watch = watch
        self.reads_ahead = inner.reads_ahead

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        caps = self.watch.caps
        self.watch.requests = [state.request for state in slot_states]
        return [
            limit._replace(num_nodes=min(limit.num_nodes, caps.get(state.request, limit.num_nodes)))
            for state, limit in zip(slot_states, self.inner.limits(slot_states, num_waiting), strict=True)
        ]

    def prune(self, draft: Draft) -> Draft:
        return self.inner.prune(draft)

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        self.inner.observe(commits, seconds)

    def reset(self) -> None:
        self.inner.reset()


@final
class Watch:
    """The traces of one engine's current step.

    caps       most nodes per step, by request; others have none
    traced     requests whose drafts are kept
    requests   those in the current step, in the order of their slots
    """

    def __init__(self, record: Recorder) -> None:
        self.caps: dict[int, int] = {}
        self.traced: set[int] = set()
        self.requests: list[int] = []
        self.last: StepRecord | None = None
        self._record = record
        self._trees: dict[int, Tree] = {}
        self._probs: dict[int, tuple[float | None, ...]] = {}

    def forget(self, request: int) -> None:
        """Drop what is known of a request that ended."""
        self.caps.pop(request, None)
        self.traced.discard(request)

    def begin(self) -> None:
        """Start a step."""
        self.last = None
        self._trees.clear()
        self._probs.clear()

    def record(self, record: StepRecord | PrefillRecord) -> None:
        """Keep a step's record, and hand it on."""
        self._record(record)
        if isinstance(record, StepRecord):
            self.last = record

    def _keep(self, draft: Draft) -> None:
        """Keep the draft of every traced request."""
        if self.traced:
            self._trees = {
                request: tree
                for request, tree in zip(self.requests, draft.trees, strict=True)
                if request in self.traced
            }

    def verifying(self, verify: Verifier) -> Verifier:
        """Return the rule, which also keeps traced drafts and the target's probabilities of their nodes."""

        def watched(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
            self._keep(draft)  # what is verified, forced tokens included
            for index, (request, sampling) in enumerate(zip(self.requests, given.samplings, strict=True)):
                tree = self._trees.get(request)
                if tree is not None:
                    self._probs[request] = node_probs(given.logits_BMV[index], tree, sampling)
            return verify(draft, given)

        return watched

    def trace(self, event: Event) -> StepTrace | None:
        """Return the trace of the step that an event comes from; None for a request that is not traced."""
        tree = self._trees.get(event.request)
        if tree is None or self.last is None:
            return None
        record = self.last
        names = ("propose", "verify", "accept", "commit", "host")
        seconds = {name: float(getattr(record, f"{name}_s")) for name in names} | {"total": record.total_s}
        probs = self._probs.get(event.request, (None,) * len(tree.tokens))
        accepted = path_of(tree, event.tokens[: event.num_accepted])
        return StepTrace(step=record.step, tree=tree, accepted=accepted, probs=probs, seconds=seconds)


def node_probs(logits_MV: Tensor, tree: Tree, sampling: SamplingParams) -> tuple[float | None, ...]:
    """Return the target's probability of each node after its parent, at the request's temperature (1 if greedy)."""
    if not tree.tokens:
        return ()
    rows = [parent + 1 for parent in tree.parents]
    logits_NV = logits_MV[rows].float() / (sampling.temperature or 1.0)
    probs = logits_NV.softmax(-1)[range(len(rows)), tree.tokens].tolist()
    return tuple(round(prob, 6) if prob == prob else None for prob in probs)


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
