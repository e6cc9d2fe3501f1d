"""DFlash's packed training against the dense formulas of one block, its learning, and that it trains what it drafts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_blocks_loss import GAMMA, check_packed
from drafts import batch_of, corpus_of, files_of, stored_target, tau, teacher_of, texts_of, train

from outrider import Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan, load_proposer
from outrider.noise import Stream
from outrider.proposers.dflash import DFlashProposer
from outrider.target import Target
from outrider.train.batch import Batch, collate
from outrider.train.objectives import OBJECTIVES
from outrider.train.objectives.blocks.dflash import DFlashObjective, DFlashObjectiveConfig, drawn_anchors
from outrider.train.objectives.scoring import Scorer

FP64 = torch.float64


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return stored_target(tmp_path_factory.mktemp("dflash") / "target")


def made(target: Target, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: object) -> DFlashObjective:
    config = DFlashObjectiveConfig(**{"num_layers": 2, "block_size": 4, **settings})  # type: ignore[arg-type]
    objective = DFlashObjective.create(teacher_of(target, dtype), config, corpus_of(target), seed)
    objective.module.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in objective.module.parameters():  # so that norms differ from one
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return objective


def batch_for(objective: DFlashObjective, target: Target, dtype: torch.dtype = FP64) -> Batch:
    """Two texts in one row, a third in another, with the target's features."""
    batch = batch_of(texts_of(target, objective.feature_layers))
    assert batch.features_BLF is not None
    return batch._replace(features_BLF=batch.features_BLF.to(dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_blocks_equal_every_block_alone_in_loss_and_gradient(target: Target, causal: bool) -> None:
    objective = made(target, FP64, causal=causal, gamma=GAMMA)
    assert check_packed(objective, batch_for(objective, target)).num_texts == 3


def test_many_blocks_are_computed_in_parts_with_the_same_gradient(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = []
    for chunk in (10_000, 5):
        monkeypatch.setattr("outrider.train.objectives.blocks.dflash_network.CHUNK", chunk)
        objective = made(target, FP64)
        objective(batch_for(objective, target), torch.Generator().manual_seed(1)).loss.backward()
        grads.append([parameter.grad for parameter in objective.module.parameters()])
    assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(*grads, strict=True))  # type: ignore[arg-type]


def test_anchors_precede_what_the_target_wrote_and_are_drawn_evenly(target: Target) -> None:
    batch = batch_of(texts_of(target))
    everywhere = drawn_anchors(batch, 3, 999, torch.Generator())
    assert everywhere.real_BA.sum(1).tolist() == [60, 30]  # answers of 30 tokens
    assert everywhere.chained_KBA.sum((1, 2)).tolist() == [90, 87, 84]
    counts = torch.zeros(batch.tokens_BL.shape[1])
    for seed in range(300):
        few = drawn_anchors(batch, 3, 10, torch.Generator().manual_seed(seed))
        assert few.real_BA.sum(1).tolist() == [10, 10]
        assert bool((few.places_BA.diff(dim=1) > 0).all())
        counts += torch.bincount(few.places_BA[0], minlength=len(counts))
    eligible = batch.written_ahead(1, 1)[0, 0]
    assert counts[~eligible].sum() == 0
    # 50 expected at each of 60 places; six standard deviations
    assert counts[eligible].min() > 50 - 6 * 50**0.5
    assert counts[eligible].max() < 50 + 6 * 50**0.5


@pytest.mark.parametrize("causal", [False, True])
def test_training_scores_what_drafting_predicts(target: Target, tmp_path: Path, causal: bool) -> None:
    objective = made(target, FP64, block_size=5, causal=causal)
    example = texts_of(target, objective.feature_layers)[1]
    batch = collate([[texts_of(target, objective.feature_layers)[0], example]], 128)
    anchors = drawn_anchors(batch, 4, 999, torch.Generator())
    states_AME = objective.states(batch, anchors)[0]
    objective.save(tmp_path, FP64)
    proposer = load_proposer("dflash", target, checkpoint=str(tmp_path))
    assert isinstance(proposer, DFlashProposer)
    assert proposer.spec.feature_layers == objective.feature_layers
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device)
    session = proposer.open(plan)
    text, features_TF = example.tokens_T.tolist(), example.features_TF
    assert features_TF is not None
    session.admit(0, text[:2], SamplingParams(), features_TF[:1])
    offset = len(batch.tokens_BL[0]) - len(text)
    root, num_compared = 1, 0
    for step in (1, 3, 5, 2, 1, 4):
        drafted = session.propose([0], [DraftLimit(4, 4)]).trees[0].tokens
        place = anchors.places_BA[0].tolist().index(root + offset)
        logits_MV = states_AME[place, 1:] @ objective.teacher.head_VE.T
        logits_MV[:, objective.spec.mask_id] = -torch.inf
        assert drafted == logits_MV.argmax(-1).tolist()
        num_compared += len(drafted)
        commit = Commit(0, list(range(step)), text[root + 1 : root + 1 + step], 0)
        session.observe([commit], features_TF[None, root : root + step])
        root += step
    assert num_compared == 24


def test_it_learns_what_it_drafts_and_shifted_labels_do_not(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taus, score = [], Scorer.score_by
    for shift in (0, 1):
        monkeypatch.setattr(Scorer, "score_by", lambda *args, by=shift: score(*args[:3], args[3].roll(by), *args[4:]))
        config = DFlashObjectiveConfig(num_layers=1, block_size=4)
        objective = DFlashObjective.create(teacher_of(target), config, corpus_of(target), 0)
        train(objective, batch_for(objective, target, torch.float32), 100, 2e-2)
        directory = tmp_path / str(shift)
        directory.mkdir()
        objective.save(directory, torch.float32)
        taus.append(tau(target, load_proposer("dflash", target, checkpoint=str(directory))))
    assert taus[0] > 3.2
    assert taus[1] < 1.6


def test_agreement_is_told_by_anchor_and_depth(target: Target) -> None:
    objective = made(target)
    outcome = objective(batch_for(objective, target), torch.Generator())
    assert outcome.valid_KR.sum(1).tolist() == [90, 87, 84]
    assert not (outcome.agreed_KR & ~outcome.valid_KR).any()
    assert outcome.overlap_KR is None
    few = made(target, anchors=7)
    assert few(batch_for(few, target), torch.Generator()).valid_KR.shape == (3, 14)


@pytest.mark.parametrize("loss", ["kl", "tv", "log_alpha"])
def test_other_losses_learn_from_the_target_s_distribution(target: Target, loss: str) -> None:
    objective = made(target, loss=loss)
    batch = batch_for(objective, target, torch.float32)
    outcome = objective(batch, torch.Generator().manual_seed(0))
    outcome.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.module.parameters())
    with torch.no_grad():
        overlap_KR = objective(batch, torch.Generator().manual_seed(0)).overlap_KR
    assert overlap_KR is not None
    assert 0 < overlap_KR[0].mean() < 1


def test_a_text_weighs_the_same_whatever_shares_its_row(target: Target) -> None:
    objective = made(target, FP64)
    examples = texts_of(target, objective.feature_layers)
    alone = [objective(collate([[example]], 64), torch.Generator()).loss.item() for example in examples]
    assert objective(batch_of(examples), torch.Generator()).loss.item() == pytest.approx(sum(alone), rel=1e-9)


def test_equal_seeds_give_equal_bytes_and_the_config_says_what_it_is(target: Target, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made(target, seed=3).save(tmp_path / name, torch.bfloat16)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert set(files_of(tmp_path / "first")) == {"config.json", "model.safetensors"}


def test_the_published_decays() -> None:
    assert DFlashObjectiveConfig(block_size=8).weights[:2] == pytest.approx([1, math.exp(-1 / 4)])
    assert DFlashObjectiveConfig(block_size=16).weights[:2] == pytest.approx([1, math.exp(-1 / 7)])
    assert len(DFlashObjectiveConfig(block_size=16).weights) == 15
    assert replace(DFlashObjectiveConfig(), gamma=2.0).weights[2] == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be between 1 and 32"),
        ({"block_size": 1}, "block_size=1 must be between 2 and 64"),
        ({"anchors": 0}, "anchors=0 must be at least 1"),
        ({"gamma": 0.0}, "gamma=0.0 must be above 0"),
        ({"loss": "mse"}, "loss=mse must be one of ce, kl"),
        ({"mask_id": 999}, "mask_id=999 is not one of the target's 258 tokens"),
        ({"mask_id": 1}, "mask_id=1 occurs in the target's texts"),
        ({"layer_ids": "9"}, "layer 9 does not exist"),
        ({"layer_ids": "0,1"}, "layer_ids=0,1 names the embedding, which the layout cannot; start at 1"),
    ],
)
def test_bad_settings_get_one_sentence(target: Target, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(target, **options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    assert OBJECTIVES[DFlashObjective.method].endswith(":DFlashObjective")
