"""Faults that an audit plants into its own engine: each must be caught, or a pass would mean nothing.

They are planted behind the checks of drafts, at the seams of one engine object; the code itself is left as it is.

    one token too many    the first rejected node is accepted as well
    the bonus by argmax   in place of a drawn token
    the runner-up         every 16th bonus is the target's second choice
    a cache one short     the last accepted token is missing from it
    false probabilities   every draft says that its tokens were unlikely, and so is always accepted
    drafts by argmax      the first token of a draft that was drawn is the most probable one instead

A fault may find no occasion: nothing is rejected, say, or a draft is always empty. Its occasions are counted.

Example: `tally = Tally(); plant = FAULTS["a cache one short"].plant(tally)`; after a run with it, `tally.occasions` is
the number of steps that it changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from outrider.audit.cells import Cell, Plant
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.proposer import DraftLimit
from outrider.testing.checked import trees_of
from outrider.verify import AcceptedPath, Verifier, VerifyInput

__all__ = ["FAULTS", "Fault", "Tally", "faults_of"]

RARE: Final = 16
UNLIKELY: Final = 1e-9


@dataclass
class Tally:
    """The number of times that a fault changed something, and of bonuses that were seen for it."""

    occasions: int = 0
    bonuses: int = 0


@dataclass(frozen=True)
class Fault:
    """A fault: how it is planted, and for which cells it is one."""

    plant: Callable[[Tally], Plant]
    applies: Callable[[Cell], bool]


Change = Callable[[Draft, VerifyInput, int, AcceptedPath, Tally], AcceptedPath]
"""Changes the accepted path of one slot."""


def _verifying(change: Change) -> Callable[[Tally], Plant]:
    """Return a fault of the verifier."""

    def planted(tally: Tally) -> Plant:
        def plant(engine: Engine) -> None:
            inner: Verifier = engine.verifier

            def faulty(draft: Draft, given: VerifyInput) -> list[AcceptedPath]:
                paths = inner(draft, given)
                return [change(draft, given, slot, path, tally) for slot, path in enumerate(paths)]

            engine.verifier = faulty

        return plant

    return planted


def _one_too_many(draft: Draft, given: VerifyInput, slot: int, path: AcceptedPath, tally: Tally) -> AcceptedPath:
    tree = draft.trees[slot]
    below = tree.children()[path.rows[-1] if path.rows else 0]
    if not below:
        return path
    tally.occasions += 1
    row = below[0]
    bonus = int(given.logits_BMV[slot][row].argmax())
    return AcceptedPath([*path.rows, row], [*path.tokens, tree.tokens[row - 1]], bonus)


def _argmax_bonus(draft: Draft, given: VerifyInput, slot: int, path: AcceptedPath, tally: Tally) -> AcceptedPath:
    best = int(given.logits_BMV[slot][path.rows[-1] if path.rows else 0].argmax())
    tally.occasions += best != path.bonus
    return path._replace(bonus=best)


def _runner_up(draft: Draft, given: VerifyInput, slot: int, path: AcceptedPath, tally: Tally) -> AcceptedPath:
    tally.bonuses += 1
    if tally.bonuses % RARE:
        return path
    tally.occasions += 1
    second = given.logits_BMV[slot][path.rows[-1] if path.rows else 0].topk(2).indices[1]
    return path._replace(bonus=int(second))


def _cache_short(tally: Tally) -> Plant:
    def plant(engine: Engine) -> None:
        cache = engine.target.cache
        commit = cache.commit

        def faulty(slots: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
            tally.occasions += sum(bool(path) for path in paths)
            commit(slots, [path[:-1] for path in paths])

        vars(cache)["commit"] = faulty

    return plant


def _false_probabilities(tally: Tally) -> Plant:
    def plant(engine: Engine) -> None:
        session = engine.session
        propose, vocab_size = session.propose, engine.spec.vocab_size

        def faulty(slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
            draft = propose(slots, limits)
            tally.occasions += sum(draft.num_nodes)
            probs_BMV = torch.full((len(slots), draft.num_rows, vocab_size), 1 / vocab_size)
            trees = trees_of(draft)
            for place, tree in enumerate(trees):
                probs_BMV[place, [parent + 1 for parent in tree.parents], tree.tokens] = UNLIKELY
            return Draft.of_trees(trees, draft.device, probs_BMV.to(draft.device))

        vars(session)["propose"] = faulty

    return plant


def _argmax_drafts(tally: Tally) -> Plant:
    def plant(engine: Engine) -> None:
        session = engine.session
        propose = session.propose

        def faulty(slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
            draft = propose(slots, limits)
            if draft.probs_BMV is None:
                return draft
            trees = []
            for place, tree in enumerate(trees_of(draft)):
                best, tokens = int(draft.probs_BMV[place, 0].argmax()), list(tree.tokens)
                if tokens and best not in [tokens[row - 1] for row in tree.children()[0]]:
                    tokens[0] = best
                    tally.occasions += 1
                trees.append(tree._replace(tokens=tokens))
            return Draft.of_trees(trees, draft.device, draft.probs_BMV)

        vars(session)["propose"] = faulty

    return plant


FAULTS: Final[dict[str, Fault]] = {
    "one token too many": Fault(_verifying(_one_too_many), lambda cell: True),
    "the bonus by argmax": Fault(_verifying(_argmax_bonus), lambda cell: cell.temperature > 0),
    "the runner-up": Fault(_verifying(_runner_up), lambda cell: cell.temperature == 0),
    "a cache one short": Fault(_cache_short, lambda cell: True),
    "false probabilities": Fault(_false_probabilities, lambda cell: not cell.is_exact),
    "drafts by argmax": Fault(_argmax_drafts, lambda cell: not cell.is_exact),
}


def faults_of(cell: Cell) -> dict[str, Fault]:
    """Return the faults that are planted into a cell."""
    return {name: fault for name, fault in FAULTS.items() if fault.applies(cell)}
