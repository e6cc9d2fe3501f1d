"""Medusa training: what is scored is what is served, and it learns what the target will say."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider import ConfigError, Engine, SamplingParams, SessionPlan, load_proposer
from outrider.data.texts import Corpus, Example
from outrider.metrics import PrefillRecord, StepRecord
from outrider.noise import Stream
from outrider.proposer import DraftLimit
from outrider.proposers.medusa import MedusaProposer
from outrider.proposers.none import NoProposer
from outrider.records.json_fields import read_json
from outrider.target import Target
from outrider.testing import tiny_target
from outrider.train.batch import Batch, collate
from outrider.train.objective import Outcome, Teacher
from outrider.train.objectives import scoring
from outrider.train.objectives.losses import loss_R, overlap_R
from outrider.train.objectives.medusa import MedusaObjective, MedusaObjectiveConfig

RANDOM = torch.Generator()
VARIANTS: list[dict[str, Any]] = [
    {"num_heads": 3},
    {"num_heads": 2, "num_layers": 2, "layout": "fasterdecoding"},
    {"num_heads": 3, "output": "shared"},
    {"num_heads": 3, "output": "shared", "layout": "fasterdecoding"},
    {"num_heads": 4, "draft_vocab": 12},
    {"num_heads": 2, "draft_vocab": 12, "output": "shared"},
]


def features_of(target: Target, tokens: list[int]) -> Tensor:
    """The state after the final norm at every token [T, E]."""
    session = target.open(target.plan(1, target.spec.max_positions, 1), (target.spec.num_layers,))
    features = session.prefill([0], [tokens])[0]
    assert features is not None
    return features.clone()


def example_of(target: Target, prompt: list[int], answer: list[int]) -> Example:
    tokens = prompt + answer
    learn = [False] * len(prompt) + [True] * len(answer)
    return Example(torch.tensor(tokens), torch.tensor(learn), features_of(target, tokens))


def answers_of(target: Target, prompts: list[list[int]], length: int) -> list[list[int]]:
    done = Engine(target, NoProposer()).generate(prompts, SamplingParams(max_tokens=length, ignore_eos=True))
    return [list(one.tokens) for one in done]


def objective_of(target: Target, **settings: Any) -> MedusaObjective:
    """In float64, like the tiny target."""
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE.double(), shared.head_VE.double())
    counts_V = torch.arange(target.spec.vocab_size) % 7
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    objective = MedusaObjective.create(teacher, MedusaObjectiveConfig(**settings), corpus, 0)
    objective.module.double()
    return objective


def shake(objective: MedusaObjective, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)


@contextmanager
def at_most(max_logits: int) -> Iterator[None]:
    """Score no more logits of the 31 tokens at a time."""
    with pytest.MonkeyPatch.context() as patch:
        limits = scoring.ChunkLimits(max_logits, max(1, max_logits // 31))
        patch.setitem(scoring.CHUNK_LIMITS, "cpu", limits)
        yield


def evaluate(objective: MedusaObjective, batch: Batch) -> Outcome:
    with torch.no_grad():
        return objective(batch, RANDOM)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_what_is_scored_is_what_is_served(
    settings: dict[str, Any], dtype: torch.dtype, near: float, tmp_path: Path
) -> None:
    target = tiny_target(1, dtype=dtype)
    objective = objective_of(target, **settings)
    shake(objective)
    objective.module.to(dtype)
    objective.save(tmp_path, dtype)
    proposer = load_proposer(MedusaObjective.method, target, checkpoint=str(tmp_path), width=1)
    assert isinstance(proposer, MedusaProposer)
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    features_TE = features_of(target, text)
    heads = range(objective.num_depths)
    head_KE = None if objective.head_KE is None else objective.head_KE.to(dtype)
    trained = [objective.network(head, features_TE, head_KE).detach() for head in heads]
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device)
    for root in range(1, len(text)):
        session = proposer.open(plan)
        session.admit(0, text[: root + 1], SamplingParams(), features_TE[:root])
        tokens = session.propose([0], [DraftLimit(8, 8)]).trees[0].tokens
        served = proposer.heads.predict(features_TE[root - 1][None], [objective.num_depths])
        for head in heads:
            wanted_K = trained[head][root - 1]
            assert (served[head][0] - wanted_K).abs().max() < near * wanted_K.abs().max().clamp(min=1)
            column = int(trained[head][root - 1].argmax())
            assert tokens[head] == (column if objective.columns.ids_K is None else int(objective.columns.ids_K[column]))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_engine_accepts_what_evaluation_says(settings: dict[str, Any], tmp_path: Path) -> None:
    target = tiny_target(1)
    objective = objective_of(target, **settings)
    prompt = [3, 1, 4]
    answer = answers_of(target, [prompt], 40)[0]
    batch = collate([[example_of(target, prompt, answer)]], 64)
    fit(objective, batch, steps=25)
    objective.save(tmp_path, torch.float64)
    proposer = load_proposer(MedusaObjective.method, target, checkpoint=str(tmp_path), width=1)
    records: list[StepRecord | PrefillRecord] = []
    Engine(target, proposer, record=records.append).generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True))
    steps = [step.slots[0] for step in records if isinstance(step, StepRecord)]
    outcome = evaluate(objective, batch)
    agreed_KR = outcome.agreed_KR[:, outcome.valid_KR[0]]
    seen = set()
    for step in steps[1:]:  # the first root is the prompt's
        anchor = step.context_length - len(prompt) - 1  # anchors are the answer's tokens, in order
        if anchor < agreed_KR.shape[1]:
            wanted = int(agreed_KR[:, anchor].long().cumprod(0).sum())
            assert step.num_accepted == min(wanted, step.draft_depth), f"root at {step.context_length - 1}"
            seen.add(wanted)
    assert len(seen) > 1


def fit(objective: MedusaObjective, batch: Batch, steps: int, rate: float = 0.02) -> None:
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        outcome = objective(batch, RANDOM)
        (outcome.loss / outcome.num_texts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def tau_of(target: Target, checkpoint: Path, prompts: list[list[int]], **settings: Any) -> float:
    """Emitted tokens per step, the first step of each request (whose root is the prompt's) included."""
    records: list[StepRecord | PrefillRecord] = []
    proposer = load_proposer(MedusaObjective.method, target, checkpoint=str(checkpoint), **settings)
    Engine(target, proposer, record=records.append).generate(prompts, SamplingParams(max_tokens=36, ignore_eos=True))
    slots = [slot for step in records if isinstance(step, StepRecord) for slot in step.slots]
    return sum(slot.num_emitted for slot in slots) / len(slots)


@pytest.mark.parametrize("output", ["own", "shared"])
def test_it_learns_what_the_target_says(output: str, tmp_path: Path) -> None:
    target = tiny_target(2, vocab_size=40, hidden_size=32, num_heads=8)
    prompts = [[5, 6, 7], [20, 3], [11, 30, 2, 9]]
    answers = answers_of(target, prompts, 36)
    examples = [example_of(target, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    wrong = [replace(one, tokens_T=one.tokens_T.roll(1)) for one in examples]
    taus = {}
    for name, texts in (("right", examples), ("shifted", wrong)):
        batch = collate([texts], 200)
        objective = objective_of(target, num_heads=3, output=output)
        fit(objective, batch, steps=40, rate=0.04)
        evaluate(objective, batch)
        directory = tmp_path / name
        directory.mkdir()
        objective.save(directory, torch.float64)
        taus[name] = tau_of(target, directory, prompts, num_nodes=3, width=1)
    assert taus["right"] > 3.5
    assert taus["shifted"] < 2


def multi_turn(target: Target, draw: torch.Generator, lengths: list[int]) -> list[Example]:
    """Texts of random tokens, of which the target wrote some stretches."""
    examples = []
    for length in lengths:
        tokens_T = torch.randint(target.spec.vocab_size, (length,), generator=draw)
        learn_T = torch.randint(2, (length // 3 + 1,), generator=draw).bool().repeat_interleave(3)[:length]
        examples.append(Example(tokens_T, learn_T, features_of(target, tokens_T.tolist())))
    return examples


def by_hand(objective: MedusaObjective, examples: list[Example]) -> tuple[Tensor, list[list[bool]], list[list[float]]]:
    """Loss, flags and overlaps of texts one by one, position by position, with logits of whole texts."""
    config, total = objective.config, torch.zeros(())
    agreed: list[list[bool]] = [[] for _ in range(config.num_heads)]
    overlap: list[list[float]] = [[] for _ in range(config.num_heads)]
    for one in examples:
        assert one.features_TF is not None
        tokens, learn = one.tokens_T.tolist(), one.learn_T.tolist()
        log_p_TK = objective.teacher.log_probs(one.features_TF, objective.columns.ids_K)
        ids = list(range(log_p_TK.shape[1])) if objective.columns.ids_K is None else objective.columns.ids_K.tolist()
        for head in range(config.num_heads):
            logits_TK = objective.network(head, one.features_TF, objective.head_KE)
            losses = []
            for t in range(len(tokens)):
                if not (t + 2 < len(tokens) and learn[t + 2]):
                    continue
                place = t + head + 2
                asked = place < len(tokens) and all(learn[t + 2 : place + 1])
                if learn[t + 1]:
                    agreed[head].append(asked and ids[int(logits_TK[t].argmax())] == tokens[place])
                    q_K, p_K = logits_TK[t : t + 1], log_p_TK[place - 1 : place] if asked else log_p_TK[:1]
                    overlap[head].append(overlap_R(q_K, p_K).item() if asked else 0.0)
                if asked and (config.loss not in ("ce", "kl") or tokens[place] in ids):
                    column = torch.tensor([ids.index(tokens[place]) if tokens[place] in ids else 0])
                    losses.append(loss_R(config.loss, logits_TK[t : t + 1], column, log_p_TK[place - 1 : place])[0])
            if losses:
                total = total + config.decay ** (head + 1) * torch.stack(losses).mean()
    return total, agreed, overlap


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=5),
    loss=st.sampled_from(["ce", "kl", "tv", "log_alpha"]),
    variant=st.sampled_from(VARIANTS),
    max_logits=st.sampled_from([1, 100, 10**6]),
)
def test_a_packed_batch_is_scored_as_its_texts_one_by_one(
    seed: int, lengths: list[int], loss: str, variant: dict[str, Any], max_logits: int
) -> None:
    target = tiny_target(1)
    draw = torch.Generator().manual_seed(seed)
    objective = objective_of(target, loss=loss, **variant)
    shake(objective, seed)
    examples = multi_turn(target, draw, lengths)
    rows = [examples[:2], examples[2:]] if len(examples) > 2 else [examples]
    batch = collate(rows, 40)
    want, agreed, overlap = by_hand(objective, examples)
    with at_most(max_logits):
        outcome = objective(batch, RANDOM)
        held_out = evaluate(objective, batch)
    assert outcome.loss.item() == pytest.approx(want.item(), rel=1e-6, abs=1e-6)
    asked_R = outcome.valid_KR[0]
    assert outcome.agreed_KR[:, asked_R].tolist() == agreed
    assert not outcome.agreed_KR[:, ~asked_R].any()
    assert outcome.num_texts == sum(bool(one.learn_T[2:].any()) for one in examples)
    assert torch.equal(held_out.valid_KR, outcome.valid_KR)
    assert held_out.overlap_KR is not None
    assert held_out.overlap_KR[:, asked_R].flatten().tolist() == pytest.approx(
        [share for row in overlap for share in row]
    )


def test_slices_give_the_same_gradients() -> None:
    target = tiny_target(1)
    examples = multi_turn(target, torch.Generator().manual_seed(3), [14, 9])
    gradients = []
    for max_logits in (31 * 3, 10**6):
        objective = objective_of(target, num_heads=3, loss="kl")
        shake(objective)
        with at_most(max_logits):
            objective(collate([examples], 40), RANDOM).loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in objective.module.parameters()])
    for sliced, whole in zip(*gradients, strict=True):
        assert sliced is not None
        assert whole is not None
        assert (sliced - whole).abs().max() < 1e-12


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_head_begins_as_the_output_head(variant: dict[str, Any]) -> None:
    target = tiny_target(1)
    objective = objective_of(target, **variant)
    features_TE = features_of(target, [3, 1, 4, 1])
    logits_TV = target.project(features_TE)
    for head in range(objective.num_depths):
        got_TK = objective.network(head, features_TE, objective.head_KE)
        want_TK = logits_TV if objective.columns.ids_K is None else logits_TV[:, objective.columns.ids_K]
        assert (got_TK - want_TK).abs().max() < 1e-6  # the network is made in fp32


def test_ranks_are_counted_on_held_out_text_and_saved(tmp_path: Path) -> None:
    target = tiny_target(1)
    objective = objective_of(target, num_heads=2)
    shake(objective)
    examples = multi_turn(target, torch.Generator().manual_seed(5), [20, 20, 20])
    evaluate(objective, collate([examples[:1]], 64))
    objective(collate([examples[:1]], 64), RANDOM)  # a training step: what was counted before is old
    for one in examples[1:]:
        evaluate(objective, collate([[one]], 64))
    ranks: list[list[int]] = [[], []]
    for one in examples[1:]:
        tokens, learn = one.tokens_T.tolist(), one.learn_T.tolist()
        assert one.features_TF is not None
        for head in range(2):
            order_TK = objective.network(head, one.features_TF, objective.head_KE).argsort(-1, descending=True)
            for t in range(len(tokens) - head - 2):
                if all(learn[t + 1 : t + head + 3]):
                    ranks[head].append(order_TK[t].tolist().index(tokens[t + head + 2]))
    want = [[row.count(rank) / len(row) for rank in range(32)] for row in ranks]
    assert objective.rank_accuracies() == [[round(share, 6) for share in row] for row in want]
    objective.save(tmp_path, torch.float32)
    measured = read_json(tmp_path / "config.json")["outrider"]
    assert measured["rank_accuracies"] == objective.rank_accuracies()
    best = max(range(32), key=lambda rank: want[0][rank])
    assert measured["tree"][0] == [best]
    proposer = load_proposer(MedusaObjective.method, target, checkpoint=str(tmp_path), num_nodes=5, width=32)
    assert isinstance(proposer, MedusaProposer)
    assert [list(path) for path in proposer.tree.cut(DraftLimit(5, 9)).paths] == measured["tree"][:5]


def test_without_an_evaluation_nothing_is_claimed(tmp_path: Path) -> None:
    objective_of(tiny_target(1)).save(tmp_path, torch.float32)
    assert set(read_json(tmp_path / "config.json")["outrider"]) == {"target", "target_fingerprint"}


def test_the_reduced_vocabulary_is_what_the_target_writes_most() -> None:
    target = tiny_target(1)
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE, shared.head_VE)
    counts_V = torch.zeros(31, dtype=torch.int64)
    counts_V[[4, 9, 30]] = torch.tensor([5, 1, 7])
    corpus = Corpus(counts_V=counts_V, num_tokens=13)
    made = MedusaObjective.create(teacher, MedusaObjectiveConfig(draft_vocab=4), corpus, 0)
    assert made.columns.ids_K is not None
    assert made.columns.ids_K.tolist() == [0, 4, 9, 30]
    with pytest.raises(ConfigError, match="draft_vocab=32 exceeds the target's 31 tokens"):
        MedusaObjective.create(teacher, MedusaObjectiveConfig(draft_vocab=32), corpus, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 must be between 1 and 16"),
        ({"num_layers": 9}, "num_layers=9 must be between 1 and 8"),
        ({"output": "share"}, "output=share is unknown; did you mean 'shared'"),
        ({"loss": "mse"}, "loss=mse is unknown"),
        ({"layout": "vlm"}, "layout=vlm is unknown; did you mean 'vllm'"),
        ({"decay": 0.0}, "decay=0.0 must be above 0"),
        ({"draft_vocab": -1}, "draft_vocab=-1 must be 0"),
        ({"draft_vocab": 9, "layout": "fasterdecoding"}, "draft_vocab=9 has no place in layout=fasterdecoding"),
    ],
)
def test_bad_settings_get_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MedusaObjectiveConfig(**given)
