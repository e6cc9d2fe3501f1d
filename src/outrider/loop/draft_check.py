"""Checks of a draft before the target reads it, so that a faulty proposer is named and no wrong text is written.

`check_draft` looks at the number of entries, and at each one's limits, tokens and parents. All of this is on the host,
where a chain of four tokens costs about 3 microseconds. A draft made on a GPU is not copied back: its shapes and counts
are checked, and the contract (`outrider.testing`), which runs on the CPU too, checks the rest.

    slot 1: 5 nodes were drafted and its limit is 3 (DraftLimit.num_nodes)
"""

import operator
from collections.abc import Sequence

import torch

from outrider.draft import Draft, Tree
from outrider.errors import ProposerError
from outrider.proposer import DraftLimit

__all__ = ["check_draft", "check_pruned", "check_siblings"]


def check_draft(
    draft: object,
    slots: Sequence[int],
    limits: Sequence[DraftLimit],
    vocab_size: int,
    *,
    check_depth: bool = True,
    by: str = "propose()",
) -> Draft:
    """Return the draft if the target can read it.

    Args:
        draft: the answer for these slots.
        limits: the limit of each slot.
        check_depth: refuse nodes deeper than the limit too; the engine does not, since they only cost time.
        by: the call that answered.

    Raises:
        ProposerError: naming the slot, the limit and the value.
    """
    names = ", ".join(map(str, slots))
    if not isinstance(draft, Draft):
        raise ProposerError(f"{by} returned {draft!r:.80} for slots [{names}]; return a Draft, an empty one at least")
    if draft.num_slots != len(slots):
        raise ProposerError(
            f"the draft has {draft.num_slots} entries for {len(slots)} slots [{names}]; "
            "give one entry per slot, in this order; an entry may be empty"
        )
    if not draft.on_host:
        _check_tensors(draft, vocab_size)
    trees = draft.trees if draft.on_host else []
    for place, (slot, count, (num_nodes, max_depth)) in enumerate(zip(slots, draft.num_nodes, limits, strict=True)):
        if count > num_nodes:
            raise ProposerError(
                f"slot {slot}: {count} nodes were drafted and its limit is {num_nodes} (DraftLimit.num_nodes)"
            )
        if trees:
            _check_tree(slot, trees[place], vocab_size)
        if check_depth and count > max_depth and (draft.is_chain or trees):
            depth = max(trees[place].depths()) if trees else count
            if depth > max_depth:
                raise ProposerError(
                    f"slot {slot}: a node has depth {depth} and the limit is {max_depth} (DraftLimit.max_depth)"
                )
    shape = None if draft.probs_BMV is None else tuple(draft.probs_BMV.shape)
    if shape not in (None, want := (draft.num_slots, draft.num_rows, vocab_size)):
        raise ProposerError(f"probs_BMV has the shape {shape} and must have {want}: slots, rows, vocabulary")
    return draft


def check_pruned(
    pruned: object, draft: Draft, slots: Sequence[int], limits: Sequence[DraftLimit], vocab_size: int
) -> Draft:
    """Return what a budget left of a checked draft.

    Raises:
        ProposerError: if the target cannot read it.
    """
    if pruned is draft:
        return draft
    return check_draft(pruned, slots, limits, vocab_size, check_depth=False, by="prune() of the budget")


def _check_tree(slot: int, tree: Tree, vocab_size: int) -> None:
    tokens, parents = tree
    if len(tokens) != len(parents):
        raise ProposerError(f"slot {slot}: {len(tokens)} tokens have {len(parents)} parents; give one per token")
    if not {*map(type, tokens), *map(type, parents)} <= {int}:
        wrong = next(value for value in (*tokens, *parents) if type(value) is not int)
        raise ProposerError(
            f"slot {slot}: {wrong!r} is a {type(wrong).__name__}; tokens and parents must be plain ints"
        )
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        node, token = next((node, token) for node, token in enumerate(tokens) if not 0 <= token < vocab_size)
        raise ProposerError(f"slot {slot}: token {token} of node {node} is outside the vocabulary of {vocab_size}")
    if tokens and (min(parents) < -1 or not all(map(operator.lt, parents, range(len(parents))))):
        node, parent = next((node, parent) for node, parent in enumerate(parents) if not -1 <= parent < node)
        raise ProposerError(f"slot {slot}: node {node} has parent {parent}; a parent comes before its child, or is -1")


def check_siblings(slot: int, tree: Tree) -> None:
    """Refuse a token that stands twice under one parent: the target can read it, but the second only costs time.

    Raises:
        ProposerError: naming the slot, the token and the parent.
    """
    tokens, parents = tree
    if len(set(zip(parents, tokens, strict=True))) < len(tokens):
        pairs = list(zip(parents, tokens, strict=True))
        parent, token = next(pair for node, pair in enumerate(pairs) if pair in pairs[:node])
        raise ProposerError(f"slot {slot}: token {token} stands twice under node {parent}; siblings must differ")


def _check_tensors(draft: Draft, vocab_size: int) -> None:
    """Check the shapes and, on the CPU, where reading does not wait for a device, the tokens too."""
    tokens_BN, parents_BN, shape = draft.tokens_BN, draft.parents_BN, (draft.num_slots, draft.num_rows - 1)
    for name, tensor in (("tokens_BN", tokens_BN), ("parents_BN", parents_BN)):
        if tuple(tensor.shape) != shape or tensor.dtype != torch.int64:
            raise ProposerError(
                f"{name} has shape {tuple(tensor.shape)} and {tensor.dtype} and must have {shape} and torch.int64"
            )
    if not all(0 <= count < draft.num_rows for count in draft.num_nodes):
        raise ProposerError(f"num_nodes={draft.num_nodes} must be between 0 and the {shape[1]} columns of tokens_BN")
    if draft.device.type == "cpu" and tokens_BN.numel():
        if not draft.is_chain and bool(((parents_BN < -1) | (parents_BN >= torch.arange(shape[1]))).any()):
            raise ProposerError("parents_BN holds a parent that does not come before its child and is not -1")
        tokens = tokens_BN.numpy()  # shares the memory, without a PyTorch operation
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ProposerError(f"token {wrong} in tokens_BN is outside the vocabulary of {vocab_size}")
