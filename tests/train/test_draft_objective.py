"""Distillation: parity with inference, depth statistics, learning, and where a draft model may begin."""

from pathlib import Path

import pytest
import torch
from drafts import batch_of, corpus_of, files_of, stored_target, tau, teacher_of, texts_of, train
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider import ConfigError, load_proposer, load_target
from outrider.data.texts import Corpus, Example
from outrider.draft import Draft
from outrider.target import Target
from outrider.targets.draft import load_draft
from outrider.targets.hf import HFTarget
from outrider.targets.native import NativeTarget
from outrider.testing.directory import write_tiny_model
from outrider.testing.tiny import tiny_spec, tiny_weights
from outrider.train.batch import collate
from outrider.train.objectives import OBJECTIVES
from outrider.train.objectives.draft_model import DraftObjective, DraftObjectiveConfig, further_on
from outrider.train.objectives.scoring import Scorer

STARTS: dict[str, dict[str, object]] = {
    "fresh": {"num_layers": 1},
    "narrow": {"num_layers": 1, "hidden_size": 8},
    "layers": {"layers": "1"},
    "own head": {"layers": "0", "share": False},
    "complete": {"num_layers": 2, "complete": True},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return stored_target(tmp_path_factory.mktemp("distil") / "target")


def objective_of(target: Target, dtype: torch.dtype = torch.float32, **options: object) -> DraftObjective:
    config = DraftObjectiveConfig(**options)  # type: ignore[arg-type]
    return DraftObjective.create(teacher_of(target, dtype), config, corpus_of(target), 0)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_training_scores_what_drafting_predicts(
    tmp_path: Path, start: dict[str, object], dtype: torch.dtype, near: float
) -> None:
    target = stored_target(tmp_path / "target", dtype=str(dtype).removeprefix("torch."))
    objective = objective_of(target, dtype, **start)
    objective.module.to(dtype)
    (tmp_path / "draft").mkdir()
    objective.save(tmp_path / "draft", dtype)
    model = load_draft(str(tmp_path / "draft"), target).model
    example = texts_of(target)[1]
    batch = collate([[texts_of(target)[0], example]], 128)
    states_BLE = objective.network(batch.tokens_BL, batch.positions_BL, batch.causal_BLL())
    ours_LV = (states_BLE @ objective.network.head_VE.T)[0, -len(example.tokens_T) :]
    text = example.tokens_T.tolist()
    session = model.open(model.plan(1, 64, 64))
    theirs_LV = session.forward([0], text[:1], Draft.of_chains([text[1:]])).logits_BMV[0]
    assert ((ours_LV - theirs_LV).abs().max() / theirs_LV.abs().max()) < near


def test_a_target_of_another_family_gets_a_llama(tiny_gpt2_target: HFTarget, tmp_path: Path) -> None:
    corpus = Corpus(counts_V=torch.zeros(31, dtype=torch.int64), num_tokens=0)
    config = DraftObjectiveConfig(num_layers=1, loss="ce")
    objective = DraftObjective.create(teacher_of(tiny_gpt2_target, torch.float64), config, corpus, 0)
    objective.module.double()
    objective.save(tmp_path, torch.float64)
    model = load_draft(str(tmp_path), tiny_gpt2_target).model
    text = [1, 2, 3, 4]
    batch = collate([[Example(torch.tensor(text), torch.ones(4, dtype=torch.bool))]], 8)
    states_BLE = objective.network(batch.tokens_BL, batch.positions_BL, batch.causal_BLL())
    session = model.open(model.plan(1, 64, 8))
    theirs_LV = session.forward([0], text[:1], Draft.of_chains([text[1:]])).logits_BMV[0]
    assert ((states_BLE @ objective.network.head_VE.T)[0] - theirs_LV).abs().max() < 1e-9


def test_the_target_itself_agrees_everywhere(target: Target) -> None:
    objective = objective_of(target, layers="0,1", num_depths=3)
    examples = texts_of(target, objective.feature_layers)
    with torch.no_grad():
        outcome = objective(batch_of(examples), torch.Generator())
    assert outcome.overlap_KR is not None
    assert torch.allclose(outcome.overlap_KR[outcome.valid_KR], torch.ones(()), atol=1e-4)
    assert outcome.valid_KR.sum(1).tolist() == [90, 87, 84]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=4),
    num_depths=st.integers(1, 6),
)
def test_agreement_further_on_equals_the_chain_written_out(
    texts: list[list[tuple[bool, bool]]], num_depths: int
) -> None:
    examples = [Example(torch.arange(len(text)), torch.tensor([learn for learn, _ in text])) for text in texts]
    batch = collate([examples], 64)
    flags = [agreed for text in texts for _, agreed in text]  # entry t: the guess made at place t is right
    chained = batch.written_ahead(num_depths, 1)
    values_N = torch.tensor(flags)[chained[0, 0]]
    found_KA = further_on(values_N, chained)
    anchors = []
    start = 0
    for text in texts:
        for place in range(len(text)):
            depths = []
            for depth in range(1, num_depths + 1):
                behind = [learn for learn, _ in text[place + 1 : place + depth + 1]]
                is_valid = len(behind) == depth and all(behind)
                depths.append((is_valid, is_valid and flags[start + place + depth - 1]))
            if depths[0][0]:
                anchors.append(depths)
        start += len(text)
    assert chained[:, chained[0]].T.tolist() == [[valid for valid, _ in depths] for depths in anchors]
    assert found_KA.T.tolist() == [[agreed for _, agreed in depths] for depths in anchors]


def test_it_learns_what_it_drafts_and_shifted_labels_do_not(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taus, score = [], Scorer.score
    for shift in (0, 1):
        monkeypatch.setattr(Scorer, "score", lambda *args, by=shift: score(*args[:3], args[3].roll(by), *args[4:]))
        objective = objective_of(target, num_layers=1, loss="ce")
        train(objective, batch_of(texts_of(target)), 60, 2e-2)
        directory = tmp_path / str(shift)
        directory.mkdir()
        objective.save(directory, torch.float32)
        taus.append(tau(target, load_proposer("draft_model", target, checkpoint=str(directory), num_nodes=4)))
    assert taus[0] > 4.2
    assert taus[1] < 1.6


def test_the_whole_distribution_is_learnt_from_the_targets_states(target: Target) -> None:
    objective = objective_of(target, layers="0,1", loss="kl")
    for parameter in objective.module.parameters():
        parameter.data.mul_(0.8)
    batch = batch_of(texts_of(target, objective.feature_layers))
    with torch.no_grad():
        before = objective(batch, torch.Generator()).overlap_KR
    train(objective, batch, 40)
    with torch.no_grad():
        after = objective(batch, torch.Generator()).overlap_KR
    assert before is not None
    assert after is not None
    assert after[0].mean() > before[0].mean() + 0.1


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_saved_loaded_and_saved_again_gives_equal_bytes(
    target: Target, tmp_path: Path, start: dict[str, object]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    objective_of(target, **start).save(first, torch.bfloat16)
    complete = start.get("complete", False)
    objective_of(target, checkpoint=str(first), complete=complete).save(second, torch.bfloat16)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_only_what_is_trained_requires_a_gradient_and_is_stored(target: Target, tmp_path: Path) -> None:
    objective = objective_of(target, num_layers=1)
    assert all(parameter.requires_grad for parameter in objective.module.parameters())
    assert not any("embed" in name or "lm_head" in name for name in objective.module.state_dict())
    objective.save(tmp_path, torch.float32)
    assert sorted(files_of(tmp_path)) == ["config.json", "model.safetensors"]


def test_a_small_model_with_fewer_rows_is_padded_to_the_target(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "small")
    weights = tiny_weights(tiny_spec(vocab_size=264), seed=0)
    wide = NativeTarget.from_weights(tiny_spec(vocab_size=264), weights, "wide", torch.float64)
    objective = objective_of(wide, checkpoint=str(tmp_path / "small"))
    assert objective.network.head_VE.shape == (264, 16)
    assert torch.isfinite(objective(batch_of(texts_of(wide, objective.feature_layers)), torch.Generator()).loss)


def test_a_small_model_of_the_family_is_trained_with_its_own_embedding(target: Target, tmp_path: Path) -> None:
    small = stored_target(tmp_path / "small", seed=5)
    objective = objective_of(target, checkpoint=str(tmp_path / "small"))
    names = objective.module.state_dict()
    assert torch.equal(names["lm_head.weight"].double(), small.shared_weights().head_VE.float().double())
    (tmp_path / "out").mkdir()
    objective.save(tmp_path / "out", torch.float64)
    assert load_target(str(tmp_path / "out")).spec.vocab_size == 258


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_depths": 65}, "num_depths=65 must be between 1 and 64"),
        ({"loss": "l2"}, "loss=l2 must be one of ce, kl, tv, log_alpha"),
        ({"checkpoint": "no-such-place"}, "no model directory"),
    ],
)
def test_bad_settings_get_one_sentence(target: Target, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_of(target, **options)


def test_a_slim_start_has_no_embedding_to_train(target: Target, tmp_path: Path) -> None:
    objective_of(target, num_layers=1).save(tmp_path, torch.float32)
    with pytest.raises(ConfigError, match="has no embedding and head of its own; leave out share=False"):
        objective_of(target, checkpoint=str(tmp_path), share=False)


def test_it_is_registered() -> None:
    assert OBJECTIVES["draft"].endswith(":DraftObjective")
