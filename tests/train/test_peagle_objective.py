"""Training a P-EAGLE head: its rows against the definition, every parameter, and that it learns and serves."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dense_head import Dense
from outrider import ConfigError, Engine, SamplingParams, load_proposer
from outrider.data.texts import Corpus, Example
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3
from outrider.metrics import StepRecord, summarize
from outrider.target import Target
from outrider.testing import Oracle, tiny_target
from outrider.train.batch import Batch, collate
from outrider.train.objective import Teacher
from outrider.train.objectives.pard_layout import lay_out
from outrider.train.objectives.peagle import PEagleObjective, PEagleObjectiveConfig

VOCAB, MASK = 31, 30


def objective_on(target: Target, dtype: torch.dtype = torch.float64, **changes: object) -> PEagleObjective:
    """A fresh objective in that precision, whose norms are not all one."""
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE.to(dtype), shared.head_VE.to(dtype))
    counts_V = torch.arange(target.spec.vocab_size)
    counts_V[MASK] = 0
    settings = {"num_depths": 4, "num_layers": 2, "draft_vocab": 20, "mask_id": MASK, **changes}
    config = PEagleObjectiveConfig(**settings)  # type: ignore[arg-type]
    objective = PEagleObjective.create(teacher, config, Corpus(counts_V=counts_V, num_tokens=100), 0)
    objective.module.to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in objective.module.named_parameters():
            if parameter.dim() == 1 or name == "mask_hidden":
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return objective


def batch_of(target: Target, objective: PEagleObjective, texts: Sequence[Sequence[int]], num_prompt: int) -> Batch:
    examples = []
    for text in texts:
        session = target.open(target.plan(1, target.spec.max_positions, 1), objective.feature_layers)
        features_TF = session.prefill([0], [list(text)])[0]
        assert features_TF is not None
        examples.append(Example(torch.tensor(text), torch.arange(len(text)) >= num_prompt, features_TF.clone()))
    return collate([examples], 64)


def written(target: Target, prompt: list[int], count: int) -> list[int]:
    return [*prompt, *Oracle(target).continuation(prompt, SamplingParams(), count)]


@pytest.mark.parametrize("changes", [{}, {"norm_before_residual": True, "fc_norm": True}, {"norm_before_fc": True}])
def test_every_row_is_what_the_definition_says(changes: dict[str, object]) -> None:
    """Row (i, a) by a dense head: the pairs up to a, then i masks; a second text in the row changes nothing."""
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, **changes)
    texts = [[7, 8, 9], written(target, [3, 1, 4], 5)]
    batch = batch_of(target, objective, texts, 3)
    layout = lay_out(batch, 4, 1.0, 1.0, torch.Generator(), first=2)
    rows = layout.scored()
    # slots 1..5 have roots x2..x6; the last four slots of the text have fewer tokens to learn
    assert sorted(zip((rows.anchor_N - 3).tolist(), rows.block_N.tolist(), strict=True)) == [
        (slot, block) for slot in range(1, 7) for block in range(4) if slot + block + 2 <= 7
    ]
    tensors = dict(objective.network.state_dict())
    checkpoint = Eagle3Checkpoint(spec=objective.head.spec, tensors=tensors, ids_K=objective.head.ids_K, provenance={})
    assert batch.features_BLF is not None
    features_LF = batch.features_BLF[0, 3:11, : objective.head.spec.features]
    with torch.no_grad():
        states_BRE = objective.states(batch, layout)
        for place, anchor, block in zip(rows.place_N, rows.anchor_N - 3, rows.block_N, strict=True):
            dense = Dense(checkpoint, target.shared_weights().embedding_VE)
            fused_LE = dense.fuse(features_LF)
            for slot in range(int(anchor) + 1):
                want_E = dense.read(fused_LE[slot], texts[1][slot + 1])
            for _ in range(int(block)):
                want_E = dense.read(dense.fuse(tensors["mask_hidden"].view(1, -1))[0], MASK)
            assert (states_BRE[0, place] - want_E).abs().max() < 1e-9


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_the_loss_is_the_mean_of_each_row(loss: str) -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, loss=loss, retention=1.0, draft_vocab=VOCAB)
    text = written(target, [3, 1, 4], 5)
    batch = batch_of(target, objective, [text], 3)
    with torch.no_grad():
        outcome = objective(batch, torch.Generator())
    layout = lay_out(batch, 4, 1.0, 1.0, torch.Generator(), first=2)
    rows = layout.scored()
    assert batch.features_BLF is not None
    final_LE = batch.features_BLF[0, :, objective.head.spec.features :]
    p_LV = (final_LE @ target.shared_weights().head_VE.T).softmax(-1)
    with torch.no_grad():
        states_BRE = objective.states(batch, layout)
        losses = []
        for place, before in zip(rows.place_N, rows.anchor_N + rows.block_N + 1, strict=True):
            log_q_V = objective.network.predict(states_BRE[0, place]).log_softmax(-1)
            if loss == "ce":
                losses.append(-log_q_V[text[int(before) + 1]])
            else:
                losses.append(-(p_LV[before] * log_q_V).sum())
    assert abs(float(outcome.loss) - float(torch.stack(losses).mean())) < 1e-5
    assert outcome.num_texts == 1


def test_the_loss_reaches_every_parameter() -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, fc_norm=True, norm_before_fc=True)
    batch = batch_of(target, objective, [written(target, [3, 1], 12)], 1)
    objective(batch, torch.Generator()).loss.backward()
    names = {name for name, parameter in objective.module.named_parameters() if parameter.grad is None}
    assert names == set()
    for name, parameter in objective.module.named_parameters():
        assert parameter.grad.abs().max() > 0, f"{name} has no gradient"


def test_it_learns_its_targets_texts_and_serves_them(tmp_path: Path) -> None:
    target = tiny_target(vocab_size=VOCAB, dtype=torch.float32)
    objective = objective_on(target, torch.float32, draft_vocab=VOCAB, loss="ce", intermediate_size=128, retention=1.0)
    prompts = [[3, 1, 4], [15, 9, 2]]
    batch = batch_of(target, objective, [written(target, prompt, 20) for prompt in prompts], 3)
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=0.02, weight_decay=0.0)
    losses = []
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 80)
        optimizer.zero_grad()
        loss = objective(batch, torch.Generator()).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    objective.save(tmp_path, torch.float32)
    assert read_eagle3(tmp_path, target).spec.mask_id == MASK
    records: list[object] = []
    proposer = load_proposer("peagle", target, checkpoint=str(tmp_path), num_nodes=4)
    Engine(target, proposer, record=records.append).generate(prompts, SamplingParams(max_tokens=20, ignore_eos=True))
    steps = [record for record in records if isinstance(record, StepRecord)]
    tau = summarize(steps, []).tokens_per_target_forward
    assert tau is not None
    assert 4.3 <= tau <= 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_depths": 0}, "num_depths=0 must be between 1 and 64"),
        ({"num_layers": 0}, "num_layers=0 must be between 1 and 32"),
        ({"mask_id": 31}, "mask_id=31 is not one of the target's 31 tokens"),
        ({"mask_id": 7}, "mask_id=7 occurs in the target's texts"),
        ({"retention": 0.0}, "retention=0.0 must be above 0"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_on(tiny_target(vocab_size=VOCAB), **settings)
