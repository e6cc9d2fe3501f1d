"""A proposer's session with every call checked: whatever is wrong becomes one sentence, before the target reads it.

`CheckedSession` stands between the engine and a session. It holds the rules for drafts (C8) and keeps what was drafted
for each request, for the rules that compare drafts. `checked_example` does the same for what `Proposer.example` gives.

    C8: slot 1: 5 nodes were drafted and its limit is 3 (DraftLimit.num_nodes)
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from torch import Tensor

from outrider.batch import Batch
from outrider.draft import Draft, Tree
from outrider.errors import ProposerError
from outrider.loop.draft_check import check_draft, check_siblings
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session
from outrider.sampling import SamplingParams
from outrider.target import Target, TargetSpec

__all__ = ["CheckedSession", "ContractError", "checked_example", "explained", "trees_of"]


class ContractError(AssertionError):
    """A proposer breaks a rule of the contract; the message names the rule and what was seen."""


@contextmanager
def explained(call: str) -> Iterator[None]:
    """Name the call in any exception that the proposer's own code raised."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ContractError(f"{call} raised {said} (at {Path(place.filename).name}:{place.lineno})") from error


def trees_of(draft: Draft) -> list[Tree]:
    """Return a draft's trees on the host; one made on the device stays unknown to the host."""
    if draft.on_host:
        return draft.trees
    return Draft.of_tensors(draft.tokens_BN, draft.parents_BN, draft.num_nodes, is_chain=draft.is_chain).trees


@final
class CheckedSession(Session):
    """Passes everything on; `drafts` holds the trees of each request, by id, one per step."""

    def __init__(self, inner: Session, batch: Batch, spec: TargetSpec) -> None:
        self.inner = inner
        self.batch = batch
        self.spec = spec
        self.drafts: dict[int, list[Tree]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        with explained(f"admit(slot={slot}, {len(tokens)} tokens)"):
            self.inner.admit(slot, tokens, sampling, features_TF)

    def keep(self, slot: int) -> Kept | None:
        with explained(f"keep(slot={slot})"):
            return self.inner.keep(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        with explained(f"reuse(slot={slot}, {len(tokens)} tokens, length={reused.length})"):
            self.inner.reuse(slot, tokens, sampling, features_TF, reused)

    def num_pending(self, slot: int) -> int:
        with explained(f"num_pending(slot={slot})"):
            behind = self.inner.num_pending(slot)
        if type(behind) is not int or behind < 0:
            raise ContractError(f"num_pending(slot={slot}) is {behind!r} and must be an int of at least 0")
        return behind

    def catch_up(self, slots: Sequence[int]) -> None:
        with explained(f"catch_up({list(slots)})"):
            self.inner.catch_up(slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        with explained(f"C8: propose(slots={list(slots)}, limits={[tuple(limit) for limit in limits]})"):
            draft = self.inner.propose(slots, limits)
        check_whole_draft(draft, slots, limits, self.spec)
        for slot, tree in zip(slots, trees_of(draft), strict=True):
            self.drafts.setdefault(self.batch.running[slot].request.id, []).append(tree)
        return draft

    def part(self, slot: int) -> str:
        with explained(f"part(slot={slot})"):
            return self.inner.part(slot)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        with explained(f"observe(commits of slots {[commit.slot for commit in commits]})"):
            self.inner.observe(commits, features_BMF)

    def release(self, slot: int) -> None:
        with explained(f"release(slot={slot})"):
            self.inner.release(slot)

    def reset(self) -> None:
        with explained("reset()"):
            self.inner.reset()

    @property
    def num_bytes(self) -> int:
        return self.inner.num_bytes


def check_whole_draft(draft: object, slots: Sequence[int], limits: Sequence[DraftLimit], spec: TargetSpec) -> None:
    """Check C8 for the draft of one step, made on host or device: form, limits, tokens, device, probabilities.

    Raises:
        ContractError: naming the slot, the limit and the value.
    """
    try:
        draft = check_draft(draft, slots, limits, spec.vocab_size)
        if not draft.on_host:
            check_draft(Draft.of_trees(trees_of(draft)), slots, limits, spec.vocab_size)
        for slot, tree in zip(slots, trees_of(draft), strict=True):
            check_siblings(slot, tree)
    except ProposerError as error:
        raise ContractError(f"C8: {error}") from error
    if draft.device.type != spec.device.type:
        raise ContractError(f"C8: the draft is on {draft.device} and the engine on {spec.device}; pass plan.device on")
    for slot, tree, place in zip(slots, trees_of(draft), range(len(slots)), strict=True):
        if draft.is_chain and tree.parents != list(range(-1, len(tree.parents) - 1)):
            raise ContractError(f"C8: slot {slot}: is_chain is set and the parents are {tree.parents}")
        if draft.probs_BMV is not None:
            _check_probs(slot, tree, draft.probs_BMV[place])


def _check_probs(slot: int, tree: Tree, probs_MV: Tensor) -> None:
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        q_V = probs_MV[parent + 1]
        total, least = q_V.sum().item(), q_V.min().item()
        if not abs(total - 1) < 1e-6 or least < 0:
            raise ContractError(
                f"C8: slot {slot}: the probabilities of row {parent + 1} sum to {total:g} and the least is {least:g}; "
                "they must be a distribution"
            )
        if not q_V[token] > 0:
            raise ContractError(f"C8: slot {slot}: token {token} of node {node} was drafted with probability 0")


def checked_example(proposer_class: type[Proposer], target: Target, seed: int) -> Proposer:
    """Return the class's small instance, if it is one that an engine can open.

    Raises:
        ContractError: naming the property and its value.
    """
    call = f"{proposer_class.__name__}.example(target, seed={seed})"
    with explained(call):
        proposer: object = proposer_class.example(target, seed)
    if not isinstance(proposer, Proposer):
        raise ContractError(f"{call} returned {proposer!r:.80}, which is no Proposer")
    with explained(f"{proposer_class.__name__}.spec"):
        spec: object = proposer.spec
    if not isinstance(spec, ProposerSpec):
        raise ContractError(f"{proposer_class.__name__}.spec is {spec!r:.80} and must be a ProposerSpec")
    last = target.spec.num_layers + 1
    layers = spec.feature_layers
    are_layers = isinstance(layers, tuple) and all(_is_count(layer) and layer <= last for layer in layers)
    for name, fits, wanted in (
        ("max_nodes", _is_count(spec.max_nodes), "an int of at least 0"),
        ("feature_layers", are_layers, f"a tuple of ints between 0 and {last}"),
        ("learns", isinstance(spec.learns, bool), "True or False"),
        ("num_bytes", _is_count(spec.num_bytes), "an int of at least 0"),
    ):
        if not fits:
            value = getattr(spec, name)
            raise ContractError(f"{proposer_class.__name__}.spec.{name} is {value!r:.80} and must be {wanted}")
    return proposer


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
