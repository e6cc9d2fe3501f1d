"""PARD's rows, its learning, and that it trains exactly what it drafts."""

import json
import math
from pathlib import Path

import pytest
import torch
from drafts import batch_of, corpus_of, files_of, stored_target, tau, teacher_of, texts_of, train
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from outrider import CheckpointError, Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan, load_proposer
from outrider.data.texts import Corpus, Example
from outrider.noise import Stream
from outrider.proposers.drafting.model_reader import ModelReader
from outrider.target import Target
from outrider.testing import tiny_target
from outrider.train.batch import Batch, collate
from outrider.train.objectives import OBJECTIVES
from outrider.train.objectives.pard import PardObjective, PardObjectiveConfig, choose_mask
from outrider.train.objectives.pard_layout import lay_out
from outrider.train.objectives.scoring import Scorer


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return stored_target(tmp_path_factory.mktemp("pard") / "target")


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    def text() -> Example:
        length = draw(st.integers(1, 7))
        learn = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        return Example(torch.arange(length) + draw(st.integers(0, 20)), torch.tensor(learn))

    rows = [[text() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 2)))]
    return collate(rows, row_length=draw(st.sampled_from([9, 30])))


def written_out(batch: Batch, row: int, num_depths: int) -> torch.Tensor:
    """The paper's rule on all of the [K * L] rows, entry by entry; row (i, t) is number i * L + t."""
    segments = batch.segments_BL[row].tolist()
    length = len(segments)
    sees = torch.zeros(num_depths * length, num_depths * length, dtype=torch.bool)
    for i in range(num_depths):
        for t in range(length):
            for s in range(length):
                if s <= t - i and segments[s] == segments[t]:
                    sees[i * length + t, s] = True
            for m in range(i + 1):
                if t - m >= 0 and segments[t - m] == segments[t]:
                    sees[i * length + t, (i - m) * length + t - m] = True
    return sees


@settings(max_examples=60, deadline=None)
@given(
    batch=batches(), num_depths=st.integers(1, 5), retention=st.sampled_from([0.4, 0.7, 1.0]), seed=st.integers(0, 9)
)
def test_the_mask_equals_the_rule_written_out(batch: Batch, num_depths: int, retention: float, seed: int) -> None:
    layout = lay_out(batch, num_depths, retention, 0.2, torch.Generator().manual_seed(seed))
    visible_BRR = layout.visible_BRR(batch)
    assert bool(visible_BRR.any(-1).all())
    length = batch.tokens_BL.shape[1]
    for row, real_R in enumerate(layout.real_BR):
        number_R = (layout.blocks_BR[row] * length + layout.anchors_BR[row] + layout.blocks_BR[row])[real_R]
        want = written_out(batch, row, num_depths)[number_R][:, number_R]
        assert torch.equal(visible_BRR[row][real_R][:, real_R], want)
        assert not visible_BRR[row][real_R][:, ~real_R].any()


@settings(max_examples=60, deadline=None)
@given(
    batch=batches(), num_depths=st.integers(1, 5), retention=st.sampled_from([0.4, 0.7, 1.0]), seed=st.integers(0, 9)
)
def test_drops_keep_whole_chains_and_the_right_number(
    batch: Batch, num_depths: int, retention: float, seed: int
) -> None:
    layout = lay_out(batch, num_depths, retention, 0.2, torch.Generator().manual_seed(seed))
    again = lay_out(batch, num_depths, retention, 0.2, torch.Generator().manual_seed(seed))
    assert all(torch.equal(one, other) for one, other in zip(layout, again, strict=True))
    real = layout.real_BR.nonzero().tolist()
    kept = [(b, int(layout.blocks_BR[b, r]), int(layout.anchors_BR[b, r])) for b, r in real]
    assert len(set(kept)) == len(kept)
    assert {(b, a) for b, i, a in kept if i == 0} == {(b, a) for b, a in (batch.segments_BL > 0).nonzero().tolist()}
    assert all((b, i - 1, a) in kept for b, i, a in kept if i > 0)
    num_anchors = int(layout.chained_KBL[0].sum())
    for block in range(1, num_depths):
        count = sum(i == block for _, i, _ in kept)
        assert count <= math.ceil(max(retention**block, 0.2) * num_anchors + 1e-6)
        assert retention < 1 or count == int(layout.chained_KBL[block].sum())
    wanted = {
        (b, i, a)
        for b, i, a in kept
        if a + i + 1 < batch.tokens_BL.shape[1]
        and all(batch.learn_BL[b, a + 1 : a + i + 2])
        and batch.segments_BL[b, a] == batch.segments_BL[b, a + i + 1]
    }
    rows = layout.scored()
    scored = set(zip(rows.row_N.tolist(), rows.block_N.tolist(), rows.anchor_N.tolist(), strict=True))
    assert scored == wanted
    assert {row for row in kept if row[1] > 0} <= scored


def test_the_kept_share_falls_to_the_floor() -> None:
    batch = collate([[Example(torch.arange(101), torch.ones(101, dtype=torch.bool))]], 128)
    layout = lay_out(batch, 6, 0.5, 0.2, torch.Generator().manual_seed(0))
    counts = [int((layout.blocks_BR == block).sum()) for block in range(6)]
    assert counts[0] == 101
    most = [50, 25, 20, 20, 20]  # of 100 anchors, less those whose chain would leave the text
    assert all(want - 5 <= got <= want for got, want in zip(counts[1:], most, strict=True))
    assert layout.anchors_BR.shape[1] == sum(counts)


@pytest.mark.parametrize("start", [{"num_layers": 2}, {"layers": "1,0", "complete": True}], ids=["slim", "complete"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_training_scores_what_drafting_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: dict[str, object], dtype: torch.dtype, near: float
) -> None:
    target = stored_target(tmp_path / "target", dtype=str(dtype).removeprefix("torch."))
    config = PardObjectiveConfig(num_depths=4, retention=1.0, **start)
    objective = PardObjective.create(teacher_of(target, dtype), config, corpus_of(target), 3)
    objective.module.to(dtype)
    example = texts_of(target)[1]
    batch = collate([[texts_of(target)[0], example]], 128)
    layout = lay_out(batch, 4, 1.0, 0.2, torch.Generator())
    logits_BRV = objective.states(batch, layout) @ objective.network.head_VE.T
    offset = len(batch.tokens_BL[0]) - len(example.tokens_T)
    trained = {
        (int(anchor) - offset, int(block)): logits_V
        for anchor, block, logits_V in zip(layout.anchors_BR[0], layout.blocks_BR[0], logits_BRV[0], strict=True)
    }
    (tmp_path / "draft").mkdir()
    objective.save(tmp_path / "draft", dtype)
    seen: list[torch.Tensor] = []
    read = ModelReader.states

    def watched(self: ModelReader, slots: list[int], feeds: list[list[int]], others: list[list[int]]) -> torch.Tensor:
        seen.append(read(self, slots, feeds, others))
        return seen[-1]

    monkeypatch.setattr(ModelReader, "states", watched)
    proposer = load_proposer("pard", target, checkpoint=str(tmp_path / "draft"), num_nodes=4)
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device)
    session = proposer.open(plan)
    text = example.tokens_T.tolist()
    session.admit(0, text[:2], SamplingParams(), None)
    root, num_compared = 1, 0
    for step in (1, 3, 5, 2, 1, 4):
        draft = session.propose([0], [DraftLimit(4, 4)])
        for depth in range(4):
            ours_V, theirs_V = trained[root, depth], proposer.model.project(seen[-1][0, [-4 + depth]])[0]
            assert (ours_V - theirs_V).abs().max() < near * ours_V.abs().max().clamp(min=1)
            others_V = ours_V.detach().clone()
            others_V[objective.mask_id] = -torch.inf
            assert draft.trees[0].tokens[depth] == int(others_V.argmax())
            num_compared += 1
        session.observe([Commit(0, list(range(step)), text[root + 1 : root + 1 + step], 0)], None)
        root += step
    assert num_compared == 24


def test_the_complete_form_predicts_the_same_in_transformers(target: Target, tmp_path: Path) -> None:
    config = PardObjectiveConfig(num_depths=4, retention=1.0, complete=True)
    objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
    objective.module.model.mask_embedding.data += 0.3  # type: ignore[union-attr]
    objective.save(tmp_path, torch.float32)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["pard_token"], stored["spd_type"]) == (objective.mask_id, "pard")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    example = texts_of(target)[0]
    batch, anchor = collate([[example]], 64), 12
    layout = lay_out(batch, 4, 1.0, 0.2, torch.Generator())
    logits_RV = (objective.states(batch, layout) @ objective.network.head_VE.T)[0]
    text = [*example.tokens_T[: anchor + 1].tolist(), *[objective.mask_id] * 3]
    theirs_KV = model(torch.tensor([text])).logits[0, anchor:]
    for block in range(4):
        (place,) = ((layout.anchors_BR[0] == anchor) & (layout.blocks_BR[0] == block)).nonzero().flatten().tolist()
        assert torch.allclose(logits_RV[place], theirs_KV[block], rtol=1e-4, atol=1e-4)


def test_the_mask_is_never_drafted(target: Target, tmp_path: Path) -> None:
    objective = PardObjective.create(teacher_of(target), PardObjectiveConfig(num_depths=2), corpus_of(target), 0)
    objective.save(tmp_path, torch.float32)
    proposer = load_proposer("pard", target, checkpoint=str(tmp_path), num_nodes=2)
    plan = SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device)

    def drafted() -> list[int]:
        session = proposer.open(plan)
        session.admit(0, [1, 2, 3], SamplingParams(), None)
        return session.propose([0], [DraftLimit(2, 2)]).trees[0].tokens

    first = drafted()[0]
    proposer.mask_id = first
    assert first not in drafted()


def test_it_learns_what_it_drafts_and_shifted_labels_do_not(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(texts_of(target))
    config = PardObjectiveConfig(num_depths=4)
    taus, score = [], Scorer.score
    for shift in (0, 1):
        monkeypatch.setattr(Scorer, "score", lambda *args, by=shift: score(*args[:3], args[3].roll(by), *args[4:]))
        objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
        train(objective, batch, 110, 2e-2)
        directory = tmp_path / str(shift)
        directory.mkdir()
        objective.save(directory, torch.float32)
        taus.append(tau(target, load_proposer("pard", target, checkpoint=str(directory), num_nodes=4)))
    assert taus[0] > 4.2
    assert taus[1] < 1.6


def test_agreement_is_told_by_anchor_and_depth(target: Target) -> None:
    config = PardObjectiveConfig(num_depths=3, retention=1.0)
    objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
    outcome = objective(batch_of(texts_of(target)), torch.Generator())
    assert outcome.valid_KR.sum(1).tolist() == [90, 87, 84]  # 3 answers of 30 tokens
    assert not (outcome.agreed_KR & ~outcome.valid_KR).any()
    assert not (outcome.valid_KR[1:] & ~outcome.valid_KR[:-1]).any()
    assert outcome.num_texts == 3
    assert outcome.overlap_KR is None


@pytest.mark.parametrize("loss", ["ce", "kl", "tv", "log_alpha"])
def test_every_loss_gives_a_gradient_to_every_parameter(target: Target, loss: str) -> None:
    config = PardObjectiveConfig(num_depths=3, loss=loss)  # type: ignore[arg-type]
    objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
    batch = batch_of(texts_of(target, objective.feature_layers))
    objective(batch, torch.Generator().manual_seed(0)).loss.backward()
    with torch.no_grad():
        outcome = objective(batch, torch.Generator().manual_seed(0))
    for name, parameter in objective.module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert (outcome.overlap_KR is None) == (loss == "ce")


def test_a_text_weighs_the_same_whatever_shares_its_row(target: Target) -> None:
    config = PardObjectiveConfig(num_depths=3, retention=1.0)
    objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
    examples = texts_of(target)
    alone = [objective(collate([[example]], 64), torch.Generator()).loss.item() for example in examples]
    assert objective(batch_of(examples), torch.Generator()).loss.item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("complete", [False, True], ids=["slim", "complete"])
def test_saved_loaded_and_saved_again_gives_equal_bytes(target: Target, tmp_path: Path, complete: bool) -> None:
    start: dict[str, object] = {"complete": complete}
    for name in ("first", "second"):
        config = PardObjectiveConfig(num_depths=3, **start)  # type: ignore[arg-type]
        objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
        (tmp_path / name).mkdir()
        objective.save(tmp_path / name, torch.bfloat16)
        start |= {"checkpoint": str(tmp_path / name)}
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert ("tokenizer.json" in files_of(tmp_path / "first")) == complete


def test_the_mask_is_the_first_row_beyond_the_tokenizer() -> None:
    class Words:
        def __len__(self) -> int:
            return 29

    target = tiny_target()
    counts_V = torch.zeros(31, dtype=torch.int64)
    assert choose_mask(target, Corpus(counts_V=counts_V, num_tokens=0)) == 29  # 30 ends a text
    target._tokenizer = Words()
    assert choose_mask(target, Corpus(counts_V=counts_V, num_tokens=0)) == 29
    target._tokenizer = None
    counts_V[25:] = 1
    assert choose_mask(target, Corpus(counts_V=counts_V, num_tokens=6)) == 24
    with pytest.raises(ConfigError, match="wrote every token of its vocabulary"):
        choose_mask(target, Corpus(counts_V=counts_V + 1, num_tokens=37))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_depths": 0}, "num_depths=0 must be between 1 and 64"),
        ({"retention": 0.0}, "retention=0.0 must be above 0"),
        ({"floor": 1.5}, "floor=1.5 must be between 0 and 1"),
        ({"loss": "mse"}, "loss=mse must be one of ce, kl"),
        ({"mask_id": 999}, "mask_id=999 is not one of the target's 258 tokens"),
        ({"mask_id": 1}, "mask_id=1 occurs in the target's texts"),
        ({"checkpoint": "x", "layers": "0"}, "give checkpoint or layers, not both"),
        ({"layers": "0,7"}, "layer 7 does not exist"),
        ({"layers": "0", "hidden_size": 8}, "hidden_size=8 is for fresh layers"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"hidden_size": 8, "share": True}, "share=True needs the target's hidden size 16, not 8"),
    ],
)
def test_bad_settings_get_one_sentence(target: Target, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PardObjective.create(
            teacher_of(target),
            PardObjectiveConfig(**options),
            corpus_of(target),
            0,  # type: ignore[arg-type]
        )


def test_a_checkpoint_keeps_its_mask(target: Target, tmp_path: Path) -> None:
    unused = choose_mask(target, corpus_of(target))
    other = next(t for t in range(unused - 1, 0, -1) if corpus_of(target).counts_V[t] == 0)
    config = PardObjectiveConfig(num_depths=2, mask_id=other)
    PardObjective.create(teacher_of(target), config, corpus_of(target), 0).save(tmp_path, torch.float32)
    again = PardObjectiveConfig(num_depths=2, checkpoint=str(tmp_path))
    assert PardObjective.create(teacher_of(target), again, corpus_of(target), 0).mask_id == other != unused


def test_a_low_precision_pass_is_close(target: Target) -> None:
    config = PardObjectiveConfig(num_depths=3, loss="kl")
    objective = PardObjective.create(teacher_of(target), config, corpus_of(target), 0)
    batch = batch_of(texts_of(target, objective.feature_layers))
    full = objective(batch, torch.Generator().manual_seed(0)).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = objective(batch, torch.Generator().manual_seed(0)).loss
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(full.item(), rel=0.02)


def test_layers_need_a_target_with_files() -> None:
    target = tiny_target()
    corpus = Corpus(counts_V=torch.zeros(31, dtype=torch.int64), num_tokens=0)
    with pytest.raises(ConfigError, match="layers=0 needs a target on the native decoder, loaded from files"):
        PardObjective.create(teacher_of(target), PardObjectiveConfig(layers="0"), corpus, 0)


def test_a_slim_checkpoint_refuses_another_target(target: Target, tmp_path: Path) -> None:
    objective = PardObjective.create(teacher_of(target), PardObjectiveConfig(num_depths=2), corpus_of(target), 0)
    objective.save(tmp_path, torch.float32)
    other = stored_target(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"was trained for .*, whose embedding differs from that of"):
        load_proposer("pard", other, checkpoint=str(tmp_path))


def test_it_is_registered() -> None:
    assert OBJECTIVES[PardObjective.method].endswith(":PardObjective")
