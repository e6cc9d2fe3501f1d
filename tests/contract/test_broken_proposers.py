"""Proposers that are wrong, each in one way: the contract names the rule, the slot and the value, and the remedy."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from outrider import (
    Commit,
    Draft,
    DraftLimit,
    Engine,
    Proposer,
    ProposerSpec,
    SamplingParams,
    Session,
    SessionPlan,
    Target,
    Tree,
)
from outrider.proposer import Reused
from outrider.testing import ContractError, check_contract, tiny_target

VOCAB = 31
LEARNS = ProposerSpec(max_nodes=3, learns=True)


class Follows(Session):
    """Remembers which token last followed each token, per slot, and drafts along that memory; right in every rule."""

    def __init__(self, plan: SessionPlan) -> None:
        self.device = plan.device
        self.texts: dict[int, list[int]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.texts[slot] = list(tokens)

    def chain(self, slot: int, length: int) -> list[Any]:
        text, chain = self.texts[slot], []
        memory = dict(itertools.pairwise(text))
        token = text[-1]
        while len(chain) < length and token in memory:
            token = memory[token]
            chain.append(token)
        return chain

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        chains = [self.chain(slot, min(limit)) for slot, limit in zip(slots, limits, strict=True)]
        return Draft.of_chains(chains, self.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.texts[commit.slot] += commit.tokens

    def release(self, slot: int) -> None:
        del self.texts[slot]


class Sound(Proposer):
    """The base of them all: only the session differs, or one property."""

    session: type[Session] = Follows
    spec = ProposerSpec(max_nodes=3)

    def open(self, plan: SessionPlan) -> Session:
        return self.session(plan)  # type: ignore[call-arg]


def proposing(change: Callable[[Follows, Sequence[int], Sequence[DraftLimit]], Any]) -> dict[str, Any]:
    """A session whose `propose` is replaced."""
    return {"session": type("Changed", (Follows,), {"propose": change})}


def chains_of(change: Callable[[list[int], DraftLimit], list[Any]]) -> dict[str, Any]:
    """A session whose chains are changed before they are drafted."""

    def propose(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        pairs = zip(slots, limits, strict=True)
        return Draft.of_chains([change(self.chain(slot, min(limit)), limit) for slot, limit in pairs], self.device)

    return proposing(propose)


def probs_of(fill: Callable[[Tensor, list[list[int]]], Tensor]) -> dict[str, Any]:
    """A session that gives probabilities with its drafts."""

    def propose(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        chains = [self.chain(slot, min(limit)) for slot, limit in zip(slots, limits, strict=True)]
        probs_BMV = torch.full((len(slots), 1 + max(map(len, chains)), VOCAB), 1 / VOCAB)
        return Draft.of_chains(chains, self.device, fill(probs_BMV, chains))

    return proposing(propose)


def without_the_token(probs_BMV: Tensor, chains: list[list[int]]) -> Tensor:
    for slot, chain in enumerate(chains):
        for row, token in enumerate(chain):
            probs_BMV[slot, row, token] = 0
    return probs_BMV / probs_BMV.sum(2, keepdim=True)


def on_the_device(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
    return Draft.on_device(torch.full((len(slots), 1), 99), [min(1, *limit) for limit in limits])


def a_fork(tokens: list[int], parents: list[int]) -> dict[str, Any]:
    """A session that drafts this tree wherever it has room."""

    def propose(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        fits = [len(tokens) <= limit.num_nodes and limit.max_depth >= 2 for limit in limits]
        return Draft.of_trees([Tree(tokens, parents) if fit else Tree([], []) for fit in fits], self.device)

    return proposing(propose)


class Forgetful(Follows):
    """Takes only the unknown part of a prompt for its text."""

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        self.admit(slot, tokens[reused.length :], sampling, features_TF)


class OwnDrafts(Follows):
    """Takes the accepted tokens for those of its last draft, and forgets what else was committed in front of them."""

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        draft = super().propose(slots, limits)
        self.known = dict(zip(slots, [len(tree.tokens) for tree in draft.trees], strict=True))
        return draft

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.texts[commit.slot] += commit.tokens[max(0, len(commit.tokens) - 1 - self.known[commit.slot]) :]


class Learner(Follows):
    """Keeps a memory over all requests; `reset` clears it."""

    def __init__(self, plan: SessionPlan) -> None:
        super().__init__(plan)
        self.memory: dict[int, int] = {}

    def chain(self, slot: int, length: int) -> list[int]:
        token, chain = self.texts[slot][-1], []
        while len(chain) < length and token in self.memory:
            token = self.memory[token]
            chain.append(token)
        return chain

    def release(self, slot: int) -> None:
        text = self.texts.pop(slot)
        self.memory.update(itertools.pairwise(text))

    def reset(self) -> None:
        self.memory.clear()


class Hoarder(Learner):
    """Its `reset` forgets nothing."""

    def reset(self) -> None:
        """As if there were nothing to forget."""


class Mixed(Follows):
    """Keeps the texts by their place in the step's batch, and not by slot."""

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            text = self.texts.setdefault(commit.place, [])
            text += commit.tokens


class Crashing(Follows):
    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        raise KeyError("commit 7")


def shared_memory() -> dict[str, Any]:
    """A session whose memory belongs to the proposer's class."""
    memory: dict[int, int] = {}

    def release(self: Follows, slot: int) -> None:
        text = self.texts.pop(slot)
        memory.update(itertools.pairwise(text))

    def chain(self: Follows, slot: int, length: int) -> list[int]:
        token = memory.get(self.texts[slot][-1])
        return [] if token is None else [token][:length]

    return {"session": type("Shared", (Follows,), {"release": release, "chain": chain})}


def dice() -> dict[str, Any]:
    draw = random.Random(0)
    return chains_of(lambda chain, limit: [draw.randrange(VOCAB - 1) for _ in range(min(limit))])


def fail(*_: Any) -> Any:
    raise NotImplementedError("no example yet")


def reversed_slots(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
    shortest = min(min(limit) for limit in limits)
    return Draft.of_chains([self.chain(slot, shortest) for slot in reversed(slots)], self.device)


def in_order_of_admission(self: Follows, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
    shortest = min(min(limit) for limit in limits)
    return Draft.of_chains([self.chain(slot, shortest) for slot in sorted(self.texts)][: len(slots)], self.device)


class Broken(NamedTuple):
    """What is changed in the sound proposer, and the words of the explanation."""

    change: dict[str, Any]
    words: tuple[str, ...]


BROKEN = {
    "ignores its limit of nodes": Broken(
        chains_of(lambda chain, limit: [1] * 5), ("C8", "slot 0", "5 nodes were drafted", "limit is 3", "num_nodes")
    ),
    "ignores its limit of depth": Broken(
        chains_of(lambda chain, limit: [1] * limit.num_nodes), ("C8", "slot", "depth 3", "limit is 2", "max_depth")
    ),
    "a negative token": Broken(
        chains_of(lambda chain, limit: [-1] * min(limit)), ("C8", "slot 0", "token -1 of node 0", "vocabulary of 31")
    ),
    "a token behind the vocabulary": Broken(
        chains_of(lambda chain, limit: [31] * min(limit)), ("C8", "slot 0", "token 31 of node 0", "vocabulary of 31")
    ),
    "a token behind the vocabulary, made on the device": Broken(
        proposing(on_the_device), ("C8", "token 99", "vocabulary of 31")
    ),
    "a token that is a float": Broken(
        chains_of(lambda chain, limit: [1.5] * min(limit)), ("C8", "slot 0", "1.5 is a float", "plain ints")
    ),
    "no draft": Broken(
        proposing(lambda self, slots, limits: None), ("C8", "returned None", "slots [0", "return a Draft")
    ),
    "a list and not a draft": Broken(
        proposing(lambda self, slots, limits: [[1]]), ("C8", "returned [[1]]", "return a Draft")
    ),
    "too few entries": Broken(
        proposing(lambda self, slots, limits: Draft.empty(1)), ("C8", "1 entries for 2 slots", "one entry per slot")
    ),
    "an entry that is None": Broken(
        proposing(lambda self, slots, limits: Draft.of_trees([None for _ in slots])),  # type: ignore[misc]
        ("C8", "propose(slots=[0", "AttributeError"),
    ),
    "a parent behind its child": Broken(a_fork([1, 2], [1, -1]), ("C8", "slot 0", "node 0 has parent 1")),
    "siblings that are equal": Broken(a_fork([1, 1], [-1, -1]), ("C8", "slot 0", "token 1 stands twice under node -1")),
    "a parent missing": Broken(a_fork([1, 2], [-1]), ("C8", "slot 0", "2 tokens have 1 parents")),
    "probabilities that do not sum to 1": Broken(
        probs_of(lambda probs_BMV, chains: probs_BMV * 0.5), ("C8", "slot 0", "row 0 sum to 0.5")
    ),
    "probabilities of another shape": Broken(
        probs_of(lambda probs_BMV, chains: probs_BMV[:, :, :7]), ("C8", "probs_BMV has the shape", "7)", "31)")
    ),
    "a drafted token of probability 0": Broken(
        probs_of(without_the_token), ("C8", "slot 0", "was drafted with probability 0")
    ),
    "example raises": Broken(
        {"example": classmethod(fail)}, ("example(target, seed=0)", "NotImplementedError: no example yet")
    ),
    "example returns nothing": Broken(
        {"example": classmethod(lambda cls, target, seed: None)},
        ("example(target, seed=0) returned None", "no Proposer"),
    ),
    "max_nodes is no number": Broken(
        {"spec": ProposerSpec(max_nodes="3")}, ("max_nodes is '3'", "must be an int of at least 0")
    ),
    "feature layers beyond the layers": Broken(
        {"spec": ProposerSpec(max_nodes=3, feature_layers=(7,))}, ("feature_layers is (7,)", "between 0 and 3")
    ),
    "learns is not said": Broken({"spec": ProposerSpec(max_nodes=3, learns=None)}, ("learns is None", "True or False")),
    "no spec": Broken({"spec": None}, ("spec is None", "a ProposerSpec")),
    "open returns nothing": Broken(
        {"open": lambda self, plan: None}, ("open() of Broken returned None", "return a Session")
    ),
    "learns, and says it does not": Broken({"session": Learner}, ("C11", "request 0, step 0", "learns is False")),
    "reset forgets nothing": Broken(
        {"session": Hoarder, "spec": LEARNS},
        ("C11", "request 0, step 0", "after reset() it drafted [", "in a fresh session []", "must forget"),
    ),
    "state outside the session": Broken(shared_memory(), ("C11", "two fresh sessions drafted", "state in the session")),
    "random numbers of its own": Broken(dice(), ("C11", "two fresh sessions drafted", "outrider.sampling.choose")),
    "slots the wrong way round": Broken(
        proposing(reversed_slots), ("C12", "slot 1 was given [1, 2, 3]", "for slots [1, 2, 0]", "order of `slots`")
    ),
    "slots in the order of admission": Broken(
        proposing(in_order_of_admission),
        ("C12", "slot 2 was given [1, 2, 3]", "asked for slots [2, 1, 0]", "order of `slots`"),
    ),
    "a learner's slots the wrong way round": Broken(
        {
            "session": type("Turned", (Learner,), {"propose": reversed_slots, "chain": Follows.chain}),
            "spec": LEARNS,
        },
        ("C12", "slot 1 was given [1, 2, 3]", "order of `slots`"),
    ),
    "tokens read only where a draft was made": Broken({"session": OwnDrafts}, ("C14", "plain steps", "`observe`")),
    "places taken for slots": Broken({"session": Mixed}, ("C12", "request", "in company", "alone")),
    "forgets a known beginning": Broken(
        {"session": Forgetful}, ("C13", "request", "whose beginning was known", "as admit() does")
    ),
    "never drafts": Broken(
        chains_of(lambda chain, limit: []), ("never drafted", "0 nodes in", "max_nodes is 3", "says max_nodes = 0")
    ),
    "observe raises": Broken({"session": Crashing}, ("observe(commits of slots [0", "KeyError: 'commit 7'", ".py:")),
}


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(vocab_size=VOCAB, max_positions=64)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_proposer_is_explained(name: str, target: Target) -> None:
    broken = BROKEN[name]
    with pytest.raises(ContractError) as raised:
        check_contract(type("Broken", (Sound,), broken.change), num_cases=1, target=target)
    said = str(raised.value)
    assert "Broken" in said
    assert "\n" not in said
    for word in broken.words:
        assert word in said


def test_the_sound_one_passes_and_its_counts_are_told(target: Target) -> None:
    report = check_contract(Sound, num_cases=1, target=target)
    steady = report.cases[0]
    assert (report.proposer, steady.case, steady.num_requests) == ("Sound", "steady", 3)
    assert steady.num_drafted > 0
    lines = str(report).splitlines()
    assert lines[1].split() == ["case", "requests", "steps", "drafted", "accepted"]
    assert lines[2].split()[-2:] == [str(steady.num_drafted), str(steady.num_accepted)]


def test_a_learner_that_says_so_and_one_that_drafts_nothing_by_design_pass(target: Target) -> None:
    check_contract(type("Learns", (Sound,), {"session": Learner, "spec": LEARNS}), 0, target)
    silent = type("Silent", (Sound,), {"spec": ProposerSpec(max_nodes=0)})
    assert check_contract(silent, 0, target).cases[0].num_drafted == 0


def test_the_sound_one_in_an_engine(target: Target) -> None:
    assert Engine(target, Sound.example(target, 0)).generate([[1, 2, 1, 2]], SamplingParams(max_tokens=4))[0].tokens
