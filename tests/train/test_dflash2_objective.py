"""DFlash-2's training against the dense formulas of one block, its start, its learning, and what it drafts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_blocks_loss import GAMMA, check_packed
from drafts import batch_of, corpus_of, stored_target, tau, teacher_of, texts_of, train
from torch import Tensor
from torch.nn.functional import cross_entropy

from outrider import Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan, load_proposer
from outrider.noise import Stream
from outrider.proposers.dflash import DFlashProposer
from outrider.target import Target
from outrider.train.batch import Batch, collate
from outrider.train.objectives.blocks.dflash import DFlashObjective, DFlashObjectiveConfig, drawn_anchors
from outrider.train.objectives.scoring import ChunkLimits

FP64 = torch.float64
SECOND = {"selector_rank": 6, "selector_top_k": 5, "conv_group_size": 4}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return stored_target(tmp_path_factory.mktemp("dflash2") / "target")


def made(target: Target, dtype: torch.dtype = FP64, noise: float = 0.1, **settings: object) -> DFlashObjective:
    config = DFlashObjectiveConfig(**{"num_layers": 2, "block_size": 4, **SECOND, **settings})  # type: ignore[arg-type]
    objective = DFlashObjective.create(teacher_of(target, dtype), config, corpus_of(target), 0)
    objective.module.to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in objective.module.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return objective


def batch_for(objective: DFlashObjective, target: Target, dtype: torch.dtype = FP64) -> Batch:
    batch = batch_of(texts_of(target, objective.feature_layers))
    assert batch.features_BLF is not None
    return batch._replace(features_BLF=batch.features_BLF.to(dtype))


def selector_loss(
    objective: DFlashObjective, w: Mapping[str, Tensor], state_E: Tensor, before: int, token: int
) -> Tensor:
    """-log of the token's share among the five best columns, the weakest of which gives way to it if it is absent."""
    head_VE = objective.teacher.head_VE
    logits_V = head_VE @ state_E
    falling = sorted(range(len(logits_V)), key=logits_V.tolist().__getitem__, reverse=True)
    best = falling[: objective.config.selector_top_k]
    best = best if token in best else [*best[:-1], token]
    context_Q = w["candidate_selector.predecessor_codebook"][before] * (
        w["candidate_selector.hidden_projection.weight"] @ state_E
    )
    scores_W = torch.stack(
        [logits_V[one] + w["candidate_selector.successor_codebook"][one] @ context_Q for one in best]
    )
    return cross_entropy(scores_W, torch.tensor(best.index(token)))


def test_packed_blocks_equal_every_block_alone_in_loss_and_gradient(target: Target) -> None:
    objective = made(target, num_layers=1, gamma=GAMMA, selector_weight=0.7, conv_kernel_size=3)

    def weighted(*place: Any) -> Tensor:
        return objective.config.selector_weight * selector_loss(*place)

    check_packed(objective, batch_for(objective, target), weighted)


def test_chunks_of_logits_and_of_candidates_change_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for limits in (ChunkLimits(1 << 25, 1024), ChunkLimits(1000, 7)):
        monkeypatch.setattr("outrider.train.objectives.scoring.CHUNK_LIMITS", {"cpu": limits})
        objective = made(target)
        objective(batch_for(objective, target), torch.Generator().manual_seed(1)).loss.backward()
        grads.append([parameter.grad for parameter in objective.module.parameters()])
    assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(*grads, strict=True))  # type: ignore[arg-type]


def test_it_begins_as_a_dflash(target: Target) -> None:
    first, second = made(target, noise=0.0, selector_rank=0), made(target, noise=0.0)
    assert not first.spec.conv_kernel_size
    shared = first.module.state_dict()
    second.module.load_state_dict(shared, strict=False)
    for objective in (first, second):
        anchors = drawn_anchors(batch_for(objective, target), 3, 99, torch.Generator())
        states = objective.states(batch_for(objective, target), anchors)
        outcome = objective(batch_for(objective, target), torch.Generator())
        if objective is first:
            want, agreed = states, outcome.agreed_KR
    assert torch.equal(states, want)
    assert torch.equal(outcome.agreed_KR, agreed)


def test_training_scores_what_drafting_predicts(target: Target, tmp_path: Path) -> None:
    """Agreement of a slot behind the target's own token: drafts up to the first wrong token show the same."""
    objective = made(target, noise=0.3)
    example = texts_of(target, objective.feature_layers)[1]
    outcome = objective(collate([[example]], 64), torch.Generator())
    objective.save(tmp_path, FP64)
    proposer = load_proposer("dflash", target, checkpoint=str(tmp_path))
    assert isinstance(proposer, DFlashProposer)
    assert proposer.network.spec.selector_rank == 6
    session = proposer.open(SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device))
    text, features_TF = example.tokens_T.tolist(), example.features_TF
    assert features_TF is not None
    first = int(example.learn_T.int().argmax())
    session.admit(0, text[:first], SamplingParams(), features_TF[: first - 1])
    for place in range(outcome.agreed_KR.shape[1]):  # anchors are the roots, one by one
        root = first - 1 + place
        drafted = session.propose([0], [DraftLimit(3, 3)]).trees[0].tokens
        for depth, token in enumerate(drafted[: len(text) - 1 - root]):
            is_right = token == text[root + 1 + depth]
            assert bool(outcome.agreed_KR[depth, place]) == is_right
            if not is_right:
                break
        if root + 2 < len(text):
            session.observe([Commit(0, [0], [text[root + 1]], 0)], features_TF[None, root : root + 1])
    assert bool(outcome.agreed_KR.any())


def test_it_learns_what_it_drafts(target: Target, tmp_path: Path) -> None:
    objective = made(target, torch.float32, noise=0.0, num_layers=1)
    train(objective, batch_for(objective, target, torch.float32), 80, 2e-2)
    objective.save(tmp_path, torch.float32)
    assert tau(target, load_proposer("dflash", target, checkpoint=str(tmp_path))) > 3.2
    selector = objective.module.get_submodule("candidate_selector")
    assert selector.get_parameter("successor_codebook").abs().max() > 0.01  # it began at zero


def test_a_token_without_a_column_teaches_nothing(target: Target) -> None:
    objective = made(target, draft_vocab=40)
    batch = batch_for(objective, target)
    outcome = objective(batch, torch.Generator())
    outcome.loss.backward()
    assert torch.isfinite(outcome.loss)
    gradient_VQ = objective.module.get_submodule("candidate_selector").get_parameter("successor_codebook").grad
    assert gradient_VQ is not None
    columns = objective.scorer.columns.of(torch.arange(target.spec.vocab_size)) >= 0
    assert gradient_VQ[~columns].abs().max() == 0
    assert gradient_VQ[columns].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector_rank": -1}, "selector_rank=-1 must be between 0 and 4096"),
        ({"selector_top_k": 1}, "selector_top_k=1 must be between 2 and 256"),
        ({"selector_weight": -1.0}, "selector_weight=-1.0 must be 0 or above"),
        ({"conv_kernel_size": 5}, "conv_kernel_size=5 must be between 1 and block_size"),
        ({"conv_group_size": 5}, "conv_group_size=5 does not divide the target's hidden size"),
    ],
)
def test_bad_settings_get_one_sentence(target: Target, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(target, **options)
