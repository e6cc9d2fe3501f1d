"""The checks that the planted bugs must fail: exact laws, texts through the engine, and counts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from transformers.generation.logits_process import TopPLogitsWarper

import processor_cases
from outrider import verify
from outrider.adaptive.controller import AdaptiveBudget
from outrider.audit.enumerate import (
    Drafter,
    EnumeratingChance,
    Guess,
    Model,
    Text,
    draw_tree,
    fixed_tree,
    law_error,
    mean_accepted,
    random_model,
)
from outrider.budget import FixedBudget, SlotState
from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.noise import Stream, pick, position_keys
from outrider.proposer import Commit, DraftLimit
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams, transform
from outrider.testing import Scripted, Simulation, TableCosts, tiny_target
from outrider.testing.simulation import one_copies

EXACT = 1e-12
VOCAB = 11
SAMPLED = SamplingParams(temperature=1.0, seed=3)
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 9))
LENGTH = 24


# Laws, enumerated


def chain_law(rule: str) -> None:
    """The law of a sampled chain."""
    _exact(random_model(1, 3), draw_tree(random_model(2, 3), (1, 1)), rule, 3)


def tree_law() -> None:
    """The law of a tree drawn without replacement."""
    _exact(random_model(1, 4), draw_tree(random_model(2, 4), (3,)), "rejection", 2)


def steps_law() -> None:
    """The law of the block rule over two steps, whose decisions must not share numbers."""
    _exact(random_model(3, 2), draw_tree(random_model(53, 2), (1, 1)), "block", 3, num_steps=2)


def impossible_token_law() -> None:
    """The law when a drafted token has no probability in q."""
    q_MV = torch.tensor([[0.0, 0.5, 0.5]] * 2, dtype=torch.float64)
    _exact(random_model(1, 3), lambda text, chance: Guess(Tree.chain([0]), q_MV), "rejection", 2)


def request_law() -> None:
    """The law of logits under temperature and top-k, through the code that prepares p and q for the rules."""
    assert request_error() < EXACT


def request_error() -> float:
    logits_V = torch.tensor([0.3, 1.1, -0.4, 0.8], dtype=torch.float64)
    sampling = SamplingParams(temperature=0.6, top_k=3)
    p_V = (logits_V / 0.6).exp() * torch.tensor([1, 1, 0, 1])
    p_V /= p_V.sum()
    q = random_model(2, 4)

    def rule(guess: Guess, p_MV: torch.Tensor, position: int, chance: verify.Chance) -> verify.AcceptedPath:
        assert guess.q_MV is not None
        draft = Draft.of_trees([guess.tree], probs_BMV=guess.q_MV[None])
        given = verify.VerifyInput(logits_V.expand(1, *p_MV.shape), [position - 1], [sampling])
        p_MV, q_MV = verify._distributions(draft, given, 0)
        return verify.reject_tree(guess.tree, p_MV, q_MV, position, chance)

    return law_error(lambda text: p_V, draw_tree(q, (1, 1)), rule, vocab_size=4, length=3, num_steps=1)


def request_acceptance() -> None:
    """The same code accepts a sampled token as often as p and q overlap."""
    logits_V, q_V = torch.tensor([0.3, 1.1, -0.4], dtype=torch.float64), random_model(2, 3)(())
    draft = Draft.of_chains([[0]], probs_BMV=q_V.expand(1, 2, 3))
    given = verify.VerifyInput(logits_V.expand(1, 2, 3), [0], [SamplingParams(temperature=1.0)])

    def rule(guess: Guess, p_MV: torch.Tensor, position: int, chance: verify.Chance) -> verify.AcceptedPath:
        return verify.reject_tree(guess.tree, *verify._distributions(draft, given, 0), position, chance)

    accepted = mean_accepted(lambda text: q_V, draw_tree(lambda text: q_V, (1,)), rule)
    overlap = torch.minimum(logits_V.softmax(-1), q_V).sum().item()
    assert abs(accepted - overlap) < EXACT


def processor_law(rule: str) -> None:
    """The law of penalties, over several steps with trees (chains under the block rule)."""
    tree = Tree.chain([0, 1]) if rule == "block" else Tree([0, 1, 1, 2, 0], [-1, -1, 1, 1, 2])
    case = processor_cases.CASES[2]
    assert processor_cases.law_error(case, 2, fixed_tree(tree), rule) < EXACT


def _exact(model: Model, drafter: Drafter, rule: str, length: int, num_steps: int = 1) -> None:
    vocab_size = len(model(()))
    assert law_error(model, drafter, rule, vocab_size=vocab_size, length=length, num_steps=num_steps) < EXACT


def chain_by_key(q: Model, depth: int, fresh: bool) -> Drafter:
    """Draws by inverting q with one number for each token, keyed by the step as well (`fresh`) or by position alone."""

    def draft(text: Text, chance: EnumeratingChance) -> Guess:
        tokens: list[int] = []
        for place in range(depth):
            q_V = q((*text, *tokens))
            key = (len(text), 100 + place) if fresh else (len(text) + place, 100)
            ends = q_V.cumsum(0).tolist()
            below = (token for token, end in enumerate(ends[:-1]) if chance.accept(end, *key))
            tokens.append(next(below, len(ends) - 1))
        return Guess(Tree.chain(tokens), torch.stack([q((*text, *tokens[:n])) for n in range(depth + 1)]))

    return draft


# Laws, drawn


def drawn_law() -> None:
    """The law of the ratio test with production noise: 4000 seeds, chi-square at one in a thousand."""
    assert drawn_p_value() > 0.001


def drawn_p_value() -> float:
    p_V, q_V = torch.tensor([0.2, 0.4, 0.4]), torch.tensor([0.6, 0.3, 0.1])
    num_seeds = 4000
    keys_R2 = position_keys(torch.arange(num_seeds), torch.full((num_seeds,), 1), Stream.DRAFT)
    drafted = pick(q_V.log().expand(num_seeds, 3), keys_R2).tolist()
    counts_V = torch.zeros(3, dtype=torch.float64)
    for seed, token in enumerate(drafted):
        path = verify.reject_tree(Tree.chain([token]), p_V.expand(2, 3), q_V.expand(2, 3), 1, verify.NoiseChance(seed))
        counts_V[[*path.tokens, path.bonus][0]] += 1
    statistic = ((counts_V - num_seeds * p_V) ** 2 / (num_seeds * p_V.double())).sum()
    return float(torch.special.gammaincc(torch.tensor(1.0, dtype=torch.float64), statistic / 2))


def top_p_like_transformers() -> None:
    """Top-p keeps what the processor of `transformers` keeps."""
    logits_RV = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want_RV = TopPLogitsWarper(0.8)(torch.zeros(20, 1, dtype=torch.int64), logits_RV)
    assert torch.equal(transform(logits_RV, SamplingParams(temperature=1.0, top_p=0.8)), want_RV)


# Texts and counts, through the engine


@cache
def target(eos: int = VOCAB - 1) -> object:
    """The tiny target, ending texts at `eos`; its weights do not depend on that."""
    return tiny_target(24, vocab_size=VOCAB, max_positions=64, eos_ids=(eos,))


@cache
def truth(prompt: tuple[int, ...], sampling: SamplingParams) -> tuple[int, ...]:
    """Plain decoding's answer; first asked for before anything is planted."""
    engine = Engine(target(), NoProposer())
    return engine.generate([prompt], replace(sampling, ignore_eos=True, max_tokens=LENGTH + 8))[0].tokens


def _coming(tokens: Sequence[int], sampling: SamplingParams) -> tuple[int, ...]:
    """What follows `tokens` in the transcript they belong to; nothing if the text has gone astray."""
    for prompt in PROMPTS:
        text = prompt + truth(prompt, sampling)
        if text[: len(tokens)] == tuple(tokens):
            return text[len(tokens) :]
    return ()


def right_chain(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
    """Three tokens, all as the target will say."""
    return Tree.chain(_coming(tokens, sampling)[: min(3, limit.max_depth)])


def second_sibling(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
    """At both levels the right token is the second child; the nodes are a, b, b's a, b's b."""
    coming = _coming(tokens, sampling)
    if len(coming) < 2 or limit.max_depth < 2:
        return Tree([], [])
    wrong = [(token + 1) % VOCAB for token in coming]
    return Tree([wrong[0], coming[0], wrong[1], coming[1]], [-1, -1, 1, 1])


def lopsided(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
    """Only the first prompt is drafted for; the other slots' rows are padding."""
    is_first = tuple(tokens[:3]) == PROMPTS[0]
    return right_chain(tokens, sampling, limit) if is_first else Tree([], [])


SHAPES = {"chain": right_chain, "tree": second_sibling, "lopsided": lopsided}


def engine_text(shape: str, max_batch: int = 1) -> None:
    """C4, C9: the text is plain decoding's, greedy and sampled, whoever else is in the batch."""
    for sampling in (SamplingParams(), SAMPLED):
        engine = Engine(target(), Scripted(SHAPES[shape], 4), max_batch=max_batch)
        limits = [LENGTH, LENGTH // 3, LENGTH]
        for prompt, limit in zip(PROMPTS, limits, strict=True):
            engine.add(prompt, replace(sampling, max_tokens=limit, ignore_eos=True))
        answers: dict[int, tuple[int, ...]] = {1: (), 2: (), 3: ()}
        for event in engine.run():
            answers[event.request] += event.tokens
        for prompt, limit, answer in zip(PROMPTS, limits, answers.values(), strict=True):
            assert answer == truth(prompt, sampling)[:limit]


def cache_lengths() -> None:
    """C2: between steps the cache holds every committed token but the root."""
    engine = Engine(target(), Scripted(right_chain, 4))
    engine.add(PROMPTS[0], SamplingParams(max_tokens=LENGTH, ignore_eos=True))
    for _ in engine.run():
        for running in engine.batch.running.values():
            assert engine.target.cache.lengths[running.slot] == len(running.tokens) - 1


def stop_counts() -> None:
    """C10: nothing is emitted or counted behind an end-of-text token inside an accepted path."""
    text = truth(PROMPTS[0], SamplingParams())
    assert text[1] != text[0]
    events = list(Engine(target(text[1]), Scripted(right_chain, 4)).stream([PROMPTS[0]]))
    assert [event.tokens for event in events] == [text[:2]]
    assert [event.num_accepted for event in events] == [2]


def padding_counts() -> None:
    """A slot without a draft accepts nothing, although its padding holds the token that it says next."""
    prompt = PROMPTS[1]
    assert 0 in truth(prompt, SAMPLED)[:LENGTH], "the transcript must contain the padding token"
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target(), Scripted(lopsided, 4), max_batch=2, record=records.append)
    engine.generate([PROMPTS[0], prompt], replace(SAMPLED, ignore_eos=True, max_tokens=LENGTH))
    slots = [slot for record in records if isinstance(record, StepRecord) for slot in record.slots]
    assert sum(slot.num_accepted for slot in slots if slot.request == 1) > 0
    assert sum(slot.num_accepted for slot in slots if slot.request == 2) == 0
    assert sum(slot.num_emitted for slot in slots if slot.request == 2) == LENGTH


def sampled_drafts_stay_whole() -> None:
    """A budget that would rather verify nothing: a draft with probabilities comes back as it was drawn."""
    budget = AdaptiveBudget(TableCosts({1: 1.0, 2: 9.0}), 4)
    for _ in range(8):
        limits = budget.limits([SlotState(1, 100, 50, greedy=False)])
        draft = Draft.of_chains([[0] * min(limits[0])], probs_BMV=torch.full((1, 5, 2), 0.5))
        assert budget.prune(draft) is draft
        budget.observe([Commit(0, [0], [1], 0)], {"propose_s": 0.0, "verify_s": 1.0})


def nobody_pays_for_another() -> None:
    """Of four requests that start together one copies; the group ends with the slowest, and not late."""
    costs = TableCosts({1: 1.0, 4: 1.04, 8: 1.57, 16: 2.7})
    case = Simulation(
        process=one_copies(), costs=costs, draft_s=0.01, num_slots=4, length=64, closed=True, num_tokens=1024
    )
    plain_s = case.run(FixedBudget(0)).seconds
    assert case.run(AdaptiveBudget(costs, 8)).seconds <= plain_s / 0.97
