"""The contract: what must hold for every proposer, however good or bad its guesses.

    C1   one target forward per step after prefill
    C2   a slot's cache length is its committed tokens less the root; what lies behind it is never read
    C3   logits at every node equal a sequential forward of the node's path
    C4   text equals plain decoding, greedy and sampled (coupled); at T = 0 under every acceptance rule
    C5   after a commit the cache equals a fresh prefill of the committed tokens
    C8   the probabilities given with a draft are distributions, and every drafted token has some
    C9   a request's text does not depend on its neighbours, its admission, or what ran before it
    C10  what is emitted ends at the first stop, and the counts are of emitted tokens
    C11  `reset` forgets, a method without `learns` learns nothing, and state belongs to the session
    C12  each slot gets the draft of its own request
    C13  a beginning known from an earlier request changes neither text nor drafts
    C14  tokens that a form forced are read

`check_contract` draws cases of traffic (`play.py`) and runs every check on each. `checked.py` holds C8, `drafts.py`
C11 to C13, `forced.py` C14.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from outrider.budget import FixedBudget
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.errors import LosslessnessError, RequestError
from outrider.metrics import summarize
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.requests.events import Completion
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing.checked import ContractError, checked_example
from outrider.testing.drafts import check_memory, check_prefixes, check_slots
from outrider.testing.forced import check_forced
from outrider.testing.play import Case, Outcome, Player, WatchedSession, draw_case, only, play, steady_case
from outrider.testing.tiny import tiny_target

__all__ = ["CHECKS", "CaseCounts", "ContractReport", "assert_lossless", "check_contract"]


def check_forwards(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C1."""
    outcome = play(target, proposer, case)
    assert outcome.num_forwards == len(outcome.steps), "a step made more or fewer than one target forward"


def check_cache_length(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C2: lengths, and a cache whose stale positions are overwritten with large numbers after every step."""
    poison = 67  # four bytes of it are a large scale too

    def look(engine: Engine, watched: WatchedSession) -> None:
        cache = watched.cache.tensors
        for slot in range(cache.plan.num_slots):
            running, reading = engine.batch.running.get(slot), engine.batch.reading.get(slot)
            want = len(running.tokens) - 1 if running else reading.num_read if reading else 0
            assert cache.lengths[slot] == want, f"slot {slot} has {cache.lengths[slot]} positions and not {want}"
            for side_LCHSD in (cache.keys_LCHSD, cache.values_LCHSD):
                side_LCHSD[:, slot, :, cache.lengths[slot] :] = poison

    poisoned, clean = play(target, proposer, case, look).tokens, play(target, proposer, case).tokens
    assert poisoned == clean, "what lies behind a slot's length changes the text"


def check_node_logits(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C3, in float64 to 1e-9."""

    def look(engine: Engine, watched: WatchedSession) -> None:
        for text, tree, logits_MV in zip(watched.texts, watched.draft.trees, watched.logits_BMV, strict=True):
            _compare_paths(target, text, tree.tokens, tree.parents, logits_MV)
        watched.texts, watched.draft, watched.logits_BMV = [], Draft.empty(0), torch.zeros(0)

    play(target, proposer, case, look)


def _compare_paths(target: Target, text: list[int], tokens: list[int], parents: list[int], logits_MV: Tensor) -> None:
    for row in range(len(tokens) + 1):
        path: list[int] = []
        node = row - 1
        while node >= 0:
            path.insert(0, tokens[node])
            node = parents[node]
        want_V = sequential_logits(target, [*text, *path])
        difference = (want_V - logits_MV[row]).abs().max().item()
        assert difference < 1e-9, f"row {row} differs from a sequential forward of its path by {difference}"


def sequential_logits(target: Target, tokens: list[int]) -> Tensor:
    """Return the logits after `tokens`, from a fresh prefill and one plain step: [V]."""
    session = target.open(target.plan(1, target.spec.max_positions, 1))
    session.prefill([0], [tokens[:-1]])
    return session.forward([0], [tokens[-1]], Draft.empty(1)).logits_BMV[0][0]  # a reference, not the loop


def check_text(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C4."""
    plain = play(target, NoProposer(), case)
    drafted = play(target, proposer, replace(case, cancels=(None,) * len(case.cancels)))
    for index, cancel in enumerate(case.cancels):
        if cancel is None:
            assert drafted.tokens[index] == plain.tokens[index], f"request {index} differs from plain decoding"
            ends = drafted.finished[index], plain.finished[index]
            assert ends[0] == ends[1], f"request {index} ends by {ends[0]} and in plain decoding by {ends[1]}"
    greedy = replace(case, samplings=(SamplingParams(),) * len(case.samplings), cancels=(None,) * len(case.cancels))
    want = play(target, NoProposer(), greedy).tokens
    got = play(target, proposer, replace(greedy, verification="rejection")).tokens
    assert got == want, "under the rejection rule greedy text differs from plain decoding"


def check_cache_content(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C5, in float64 to 1e-9."""

    def look(engine: Engine, watched: WatchedSession) -> None:
        cache = watched.cache.tensors
        for slot, running in engine.batch.running.items():
            fresh = target.open(target.plan(1, target.spec.max_positions, 1))
            fresh.prefill([0], [running.tokens[:-1]])
            length = cache.lengths[slot]
            for ours, theirs in (
                (cache.keys_LCHSD, fresh.cache.tensors.keys_LCHSD),
                (cache.values_LCHSD, fresh.cache.tensors.values_LCHSD),
            ):
                difference = (ours[:, slot, :, :length].double() - theirs[:, 0, :, :length].double()).abs()
                assert length == 0 or difference.max().item() < 1e-9, "the cache differs from a fresh prefill"

    play(target, proposer, case, look)


def check_draft(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C8, which `play` holds in every step, under the rejection rule too, which needs probabilities."""
    play(target, proposer, case)
    play(target, proposer, replace(case, verification="rejection"))


def check_independence(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C9: alone, with other requests, and again with a proposer that has seen it all before."""
    together = play(target, proposer, case)
    player = Player(target, proposer, replace(case, max_batch=1, budget=FixedBudget))
    for index, cancel in enumerate(case.cancels):
        for _ in range(2 if cancel is None else 0):
            alone = player.run(only(case, index)).tokens[0]
            assert alone == together.tokens[index], f"request {index} depends on its surroundings"


def check_stops(target: Target, proposer: Proposer, case: Case) -> None:
    """Check C10."""
    outcome = play(target, proposer, case)
    eos = set(target.spec.eos_ids)
    for index, tokens in enumerate(outcome.tokens):
        reason, limit = outcome.finished[index], case.limits[index]
        assert len(tokens) <= limit, f"request {index} has {len(tokens)} tokens and its limit is {limit}"
        if not case.ignore_eos:
            assert not eos & set(tokens[:-1]), "text goes on behind an end-of-text token"
        if reason == "eos":
            assert tokens[-1] in eos
        if reason == "length":
            assert len(tokens) == limit
        if reason == "context":
            assert len(case.prompts[index]) + len(tokens) == target.spec.max_positions
    summary = summarize(outcome.steps, outcome.prefills)
    assert summary.num_emitted_tokens == sum(len(tokens) for tokens in outcome.tokens)
    for step in outcome.steps:
        for slot in step.slots:
            assert 1 <= slot.num_emitted <= slot.num_accepted + 1
            assert slot.num_accepted <= min(slot.draft_depth, slot.num_emitted)


Check = Callable[[Target, Proposer, Case], None]
CHECKS: dict[str, Check] = {
    "C1-forwards": check_forwards,
    "C2-cache-length": check_cache_length,
    "C3-node-logits": check_node_logits,
    "C4-text": check_text,
    "C5-cache-content": check_cache_content,
    "C8-draft": check_draft,
    "C9-independence": check_independence,
    "C10-stops": check_stops,
    "C11-memory": check_memory,
    "C12-slots": check_slots,
    "C13-prefixes": check_prefixes,
    "C14-forced": check_forced,
}


@dataclass(frozen=True, kw_only=True)
class CaseCounts:
    """The counts of one case of traffic: nodes that the proposer drafted, and how many of them were accepted."""

    case: str
    num_requests: int
    num_steps: int
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """A kept contract; its text is a table of what was drafted in each case."""

    proposer: str
    cases: tuple[CaseCounts, ...]

    def __str__(self) -> str:
        head = f"{self.proposer} keeps the contract: {len(CHECKS)} rules, {len(self.cases)} cases"
        names = ("case", "requests", "steps", "drafted", "accepted")
        rows = [
            (case.case, case.num_requests, case.num_steps, case.num_drafted, case.num_accepted) for case in self.cases
        ]
        return "\n".join(
            [head, *(f"  {name:<8}" + "".join(f"{value:>10}" for value in row) for name, *row in [names, *rows])]
        )

    __repr__ = __str__


def check_contract(proposer_class: type[Proposer], num_cases: int = 3, target: Target | None = None) -> ContractReport:
    """Run every check on steady traffic and on `num_cases` random cases.

    Returns:
        What was drafted and accepted in each case: print it.

    Raises:
        ContractError: an AssertionError with the rule, the case, and what was seen, at the first that fails.
    """
    target = target or tiny_target()
    spec, name = target.spec, proposer_class.__name__
    drawn = {f"seed {seed}": draw_case(seed, spec.vocab_size, spec.max_positions) for seed in range(num_cases)}
    counts: list[CaseCounts] = []
    silent = False
    for seed, (label, case) in enumerate({"steady": steady_case(spec.vocab_size), **drawn}.items()):
        proposer = checked_example(proposer_class, target, max(0, seed - 1))
        silent = silent or proposer.spec.max_nodes == 0
        for rule, check in CHECKS.items():
            with _named(f"{name} fails {rule} in case '{label}'"):
                check(target, proposer, case)
        counts.append(_counted(label, play(target, proposer, case)))
    if not (silent or any(case.num_drafted for case in counts)):
        steps = sum(case.num_steps for case in counts)
        raise ContractError(
            f"{name} never drafted: 0 nodes in {steps} steps of {len(counts)} cases, although max_nodes is "
            f"{proposer.spec.max_nodes}; a method that drafts nothing says max_nodes = 0"
        )
    return ContractReport(proposer=name, cases=tuple(counts))


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Put the rule and the case in front of whatever went wrong."""
    try:
        yield
    except AssertionError as error:
        raise ContractError(f"{label}: {error}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(place.filename).name}:{place.lineno}"
        raise ContractError(f"{label}: {type(error).__name__}: {error} (at {at})") from error


def _counted(label: str, outcome: Outcome) -> CaseCounts:
    slots = [slot for step in outcome.steps for slot in step.slots]
    return CaseCounts(
        case=label,
        num_requests=len(outcome.tokens),
        num_steps=len(outcome.steps),
        num_drafted=sum(slot.num_nodes for slot in slots),
        num_accepted=sum(slot.num_accepted for slot in slots),
    )


def assert_lossless(
    target: Target,
    proposer: Proposer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | None = None,
    *,
    max_batch: int = 1,
) -> list[Completion]:
    """Decode with and without the proposer, and compare token by token.

    Raises:
        LosslessnessError: naming the first difference.
        RequestError: if the target's logits are not finite.
    """
    plain = Engine(target, NoProposer()).generate(prompts, params)
    drafted = Engine(target, proposer, max_batch=max_batch).generate(prompts, params)
    for index, (want, got) in enumerate(zip(plain, drafted, strict=True)):
        if want.error is not None:
            raise RequestError(f"prompt {index}: {want.error}")
        if want.tokens != got.tokens or want.finished != got.finished:
            at = next((i for i, (a, b) in enumerate(zip(want.tokens, got.tokens, strict=False)) if a != b), "the end")
            raise LosslessnessError(f"prompt {index} differs from plain decoding at answer token {at}")
    return drafted
