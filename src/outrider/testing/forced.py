"""Forced tokens without a grammar, and the rule for sessions that meet tokens they did not draft (C14).

`ForcedText` is a fake form: it knows an answer and forces some stretches of it, now and then wrongly. Such tokens reach
a session as commits of rows that it did not draft. It must read them like any others:

    C14: request 1, behind 12 tokens: it drafted [5, 6], and after plain steps to the same text [7, 8]
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from torch import Tensor

from outrider.budget import FixedBudget
from outrider.draft import Tree
from outrider.engine import Engine
from outrider.processors.base import Processor
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.target import Target
from outrider.testing.checked import ContractError, trees_of
from outrider.testing.play import Case, Outcome, play

__all__ = ["ForcedText", "check_forced"]

MOST_COMPARED = 2


@final
class ForcedText(Processor):
    """A form that changes no logits and forces parts of an answer that it knows.

    Args:
        answer: the tokens of the answer.
        at: the number of them that were written.
    """

    def __init__(self, answer: Sequence[int], at: int = 0) -> None:
        self.answer = answer
        self.at = at

    def advance(self, token: int) -> None:
        self.at += 1

    def fork(self) -> "ForcedText":
        return ForcedText(self.answer, self.at)

    def transform(self, logits_V: Tensor) -> Tensor:
        return logits_V

    def forced(self, most: int) -> list[int]:
        if self.at % 7 > 2:
            return []
        known = list(self.answer[self.at : self.at + min(most, 1 + self.at % 4)])
        # some forced tokens are spelled in another way than the target's
        return [*known[:-1], known[-1] - 1 if known[-1] else 1] if known and self.at % 5 == 1 else known


def check_forced(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C14: text stays, steps stay one forward each, and drafts are those after plain steps to the same text."""
    case = replace(case, cancels=(None,) * len(case.cancels), budget=FixedBudget)
    texts = play(target, NoProposer(), case).tokens
    outcome = play(target, proposer, replace(case, forced=tuple(map(ForcedText, texts))))
    assert outcome.num_forwards == len(outcome.steps), "C14: a step made more or fewer than one target forward"
    for index, text in enumerate(texts):
        assert outcome.tokens[index] == text, f"C14: request {index} differs from plain decoding"
    slots = [slot for step in outcome.steps for slot in step.slots]
    assert all(slot.num_forced in (0, slot.num_nodes) for slot in slots), "C14: a draft stands beside forced tokens"
    assert max(map(len, texts)) < 4 or any(slot.num_forced for slot in slots), "C14: no token was forced"
    if not proposer.spec.learns:
        _compare_drafts(target, proposer, case, outcome)


def _compare_drafts(target: Target, proposer: Proposer, case: Case, outcome: Outcome) -> None:
    """Compare drafts that follow accepted forced tokens with those after plain steps, a few of each request."""
    arrived = sorted(range(len(case.prompts)), key=lambda index: (case.arrivals[index], index))
    for id, index in enumerate(arrived, start=1):
        steps = [slot for step in outcome.steps for slot in step.slots if slot.request == id]
        after = [
            (slot.context_length - len(case.prompts[index]), tree)
            for before, slot, tree in zip(steps, steps[1:], outcome.drafts[index][1:], strict=False)
            if before.num_forced and before.num_accepted and not slot.num_forced
        ]
        for num_emitted, ours in after[:MOST_COMPARED]:
            theirs = _plain_draft(target, proposer, case, index, num_emitted)
            if ours != theirs:
                raise ContractError(
                    f"C14: request {index}, behind {num_emitted} tokens: it drafted {ours.tokens}, and after plain "
                    f"steps to the same text {theirs.tokens}; read committed tokens from `observe`, also those that "
                    "were not drafted here"
                )


def _plain_draft(target: Target, proposer: Proposer, case: Case, index: int, num_emitted: int) -> Tree:
    """Return the draft of a new session that came to the same text by steps without a draft."""
    engine = Engine(target, proposer, num_nodes=0)
    params = replace(case.samplings[index], max_tokens=case.limits[index], ignore_eos=case.ignore_eos)
    engine.add(case.prompts[index], params)
    engine.admit()
    for _ in range(num_emitted):
        engine.step()
    [state] = engine.batch.slot_states(engine.session, {})
    num_nodes = proposer.spec.max_nodes if case.num_nodes is None else case.num_nodes
    return trees_of(engine.session.propose([0], FixedBudget(num_nodes).limits([state])))[0]
