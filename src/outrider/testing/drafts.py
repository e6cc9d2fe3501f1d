"""Rules that compare drafts: what a method remembers (C11), and whose draft a slot gets (C12).

The text of a lossless method cannot show that it drafted from the wrong memory or for the wrong request; it is only
slower. So these checks run the same traffic twice and compare the drafts themselves, under a budget that does not
depend on time.

    C11: request 0, step 1: after reset() it drafted [5, 6] and in a fresh session [7]; reset() must forget ...
"""

from collections.abc import Sequence
from dataclasses import replace

from outrider.budget import FixedBudget
from outrider.draft import Tree
from outrider.proposer import DraftLimit, Proposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing.checked import ContractError, trees_of
from outrider.testing.play import Case, Player, only, play, steady_case

__all__ = ["check_memory", "check_prefixes", "check_slots"]

KEPT_BYTES = 2**24
Drafts = Sequence[Sequence[Tree]]


def check_memory(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C11: the same requests again, with others in between."""
    case = replace(case, budget=FixedBudget)
    others = replace(case, prompts=tuple(prompt[::-1] for prompt in case.prompts))
    first = play(target, proposer, case).drafts
    player = Player(target, proposer, case)
    player.run(others)
    _compare(
        first,
        play(target, proposer, case).drafts,
        "C11: {where}: two fresh sessions drafted {a} and {b} for the same requests; keep state in the session, and "
        "draw random numbers with outrider.sampling.choose",
    )
    player.engine.reset()
    again = player.run(case).drafts
    _compare(
        first,
        again,
        "C11: {where}: after reset() it drafted {b} and in a fresh session {a}; reset() must forget what earlier "
        "requests taught",
    )
    if not proposer.spec.learns:
        player.run(others)
        _compare(
            again,
            player.run(case).drafts,
            "C11: {where}: learns is False, but when the same requests came again it drafted {b} and not {a}; say "
            "learns = True, or keep nothing of a request that ended",
        )


def check_slots(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C12: a slot's draft is its own; one that does not learn drafts the same alone and in a batch."""
    for num_steps in (0, 2):
        _compare_orders(target, proposer, num_steps)
    if proposer.spec.learns:
        return
    case = replace(case, budget=FixedBudget, cancels=(None,) * len(case.cancels))
    _compare(
        play(target, proposer, case).drafts,
        [play(target, proposer, only(case, index)).drafts[0] for index in range(len(case.prompts))],
        "C12: {where}: it drafted {a} in company and {b} alone; a draft may not depend on the other slots",
    )


def check_prefixes(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C13: first turns, then second ones that begin with them, with and without kept texts."""
    # whole prompts in one chunk: requests start in the same steps, which matters to a method that learns
    case = replace(case, budget=FixedBudget, cancels=(None,) * len(case.cancels), prefill_chunk=None)
    most = target.spec.max_positions - 3
    outcomes = []
    for num_bytes in (0, KEPT_BYTES):
        player = Player(target, proposer, replace(case, prefix_cache_bytes=num_bytes))
        first = player.run(case)
        prompts = [(*prompt, *tokens, 1, 2) for prompt, tokens in zip(case.prompts, first.tokens, strict=True)]
        outcomes.append([first, player.run(replace(case, prompts=tuple(prompt[:most] for prompt in prompts)))])
    for whole, kept in zip(*outcomes, strict=True):
        if whole.tokens != kept.tokens:
            raise ContractError("C13: the text differs when the beginning of a prompt is known from an earlier request")
        _compare(
            whole.drafts,
            kept.drafts,
            "C13: {where}: it drafted {a} for a prompt that was read whole and {b} for one whose beginning was known; "
            "reuse() must leave a slot as admit() does",
        )


def _compare_orders(target: Target, proposer: Proposer, num_steps: int) -> None:
    """Compare three different requests in several orders of the slots.

    Each must get the same draft in every order, and not what another one gets when it alone has a limit.
    """
    case = replace(steady_case(target.spec.vocab_size), arrivals=(0,) * 3, max_batch=3)

    def drafted(order: Sequence[int], roomy: Sequence[int]) -> dict[int, Tree]:
        engine = Player(target, proposer, case).engine
        for index, prompt in enumerate(case.prompts):
            engine.add(prompt, SamplingParams(max_tokens=case.limits[index], ignore_eos=True))
        engine.admit()
        for _ in range(num_steps):
            engine.step()
        slots = [slot for slot in order if slot in engine.batch.running]
        limits = [DraftLimit(engine.memory.num_nodes, 4) if slot in roomy else DraftLimit(0, 0) for slot in slots]
        return dict(zip(slots, trees_of(engine.session.propose(slots, limits)), strict=True)) if slots else {}

    every = range(len(case.prompts))
    alone = {slot: tree for slot in every for tree in [drafted(every, [slot]).get(slot)] if tree and tree.tokens}
    first = drafted(every, every)
    for order in (every, every[::-1], (1, 2, 0)):
        for slot, tree in drafted(order, every).items():
            theirs = [other for other, draft in alone.items() if other != slot and draft == tree != alone.get(slot)]
            whose = f", the draft of slot {theirs[0]}," if theirs else ""
            if theirs or tree != first[slot]:
                raise ContractError(
                    f"C12: slot {slot} was given {_shown(tree)}{whose} when asked for slots {list(order)}, and "
                    f"{_shown(first[slot])} for {list(every)}; entries must be in the order of `slots`"
                )


def _compare(ours: Drafts, theirs: Drafts, sentence: str) -> None:
    for request, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for step in range(max(len(mine), len(other))):
            pair = [drafts[step] if step < len(drafts) else None for drafts in (mine, other)]
            if pair[0] != pair[1]:
                said = ["nothing" if tree is None else _shown(tree) for tree in pair]
                where = f"request {request}, step {step}"
                raise ContractError(sentence.format(where=where, a=said[0], b=said[1]))


def _shown(tree: Tree) -> str:
    is_chain = tree == Tree.chain(tree.tokens)
    return f"{tree.tokens}" if is_chain else f"{tree.tokens} under {tree.parents}"
