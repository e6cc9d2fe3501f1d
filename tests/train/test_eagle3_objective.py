"""Training an EAGLE-3 head: what it sees, that serving computes the same, and that it learns."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from outrider import Commit, ConfigError, DraftLimit, Engine, SamplingParams, SessionPlan, load_proposer, load_target
from outrider.data.texts import Corpus, Example
from outrider.formats.weights import read_weights
from outrider.metrics import StepRecord, summarize
from outrider.models.eagle3 import Eagle3Head
from outrider.noise import Stream
from outrider.ops.base import Ops
from outrider.ops.cpu import CpuOps
from outrider.target import Target
from outrider.testing import Oracle, tiny_target
from outrider.testing.directory import write_tiny_model
from outrider.train.batch import Batch, collate
from outrider.train.objective import Teacher
from outrider.train.objectives import layers, scoring
from outrider.train.objectives.columns import choose_columns
from outrider.train.objectives.eagle3 import Eagle3Objective, Eagle3ObjectiveConfig

VOCAB = 31


def objective_on(
    target: Target, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object
) -> Eagle3Objective:
    """A fresh objective in that precision, whose norms are not all one."""
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE.to(dtype), shared.head_VE.to(dtype))
    corpus = Corpus(counts_V=torch.arange(target.spec.vocab_size), num_tokens=100)
    config = Eagle3ObjectiveConfig(**{"num_depths": 4, "draft_vocab": 20, **changes})  # type: ignore[arg-type]
    objective = Eagle3Objective.create(teacher, config, corpus, seed)
    objective.module.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.module.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return objective


def example(target: Target, feature_layers: tuple[int, ...], tokens: Sequence[int], num_prompt: int) -> Example:
    features_TF = features_of(target, feature_layers, tokens)
    return Example(torch.tensor(tokens), torch.arange(len(tokens)) >= num_prompt, features_TF)


def features_of(target: Target, feature_layers: tuple[int, ...], tokens: Sequence[int]) -> Tensor:
    session = target.open(target.plan(1, target.spec.max_positions, 1), feature_layers)
    features_TF = session.prefill([0], [tokens])[0]
    assert features_TF is not None
    return features_TF.clone()


def written(target: Target, prompt: Sequence[int], count: int) -> list[int]:
    return [*prompt, *Oracle(target).continuation(list(prompt), SamplingParams(), count)]


# ---- training and serving compute the same


VARIANTS = [
    {},
    {"norm_before_residual": True, "fc_norm": True},
    {"norm_output": True, "norm_before_fc": True, "layer_ids": "0,1"},
    {"draft_vocab": VOCAB, "intermediate_size": 40},
    {"num_layers": 3, "norm_before_residual": True},
    {"num_layers": 2, "norm_output": True},
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_serving_predicts_what_training_scored_at_every_depth(
    tmp_path: Path, variant: dict[str, object], accepted: int
) -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, **variant)
    objective.save(tmp_path, torch.float64)
    proposer = load_proposer("eagle3", target, checkpoint=str(tmp_path), num_nodes=4)
    assert proposer.spec.feature_layers == objective.feature_layers[:-1]
    committed = written(target, [3, 1, 4, 1, 5], accepted)
    served, chain = serve(target, proposer, committed, accepted)  # type: ignore[arg-type]

    text = [*committed, *chain]
    batch = collate(
        [[example(target, objective.feature_layers, [7, 8, 9], 1), example(target, objective.feature_layers, text, 5)]],
        64,
    )
    slot = 3 + len(committed) - 2  # of the pair that ends in the root
    for depth, states_BLE in enumerate(objective.states(batch)):
        trained_K = objective.network.predict(states_BLE[0, slot])
        assert (served[depth] - trained_K).abs().max() < 1e-9, f"depth {depth + 1} differs"


def serve(target: Target, proposer: object, committed: list[int], accepted: int) -> tuple[list[Tensor], list[int]]:
    """The logits and tokens of the chain behind `committed`, the last `accepted` of which came in one step."""
    served: list[Tensor] = []
    predict = proposer.head.predict

    def watched(states_RE: Tensor) -> Tensor:
        logits_RK = predict(states_RE)
        served.append(logits_RK[0].clone())
        return logits_RK

    proposer.head.predict = watched
    session = proposer.open(SessionPlan(max_slots=1, max_positions=64, noise=Stream.TARGET, device=target.spec.device))
    features_TF = features_of(target, proposer.spec.feature_layers, committed)
    first = len(committed) - accepted
    session.admit(0, committed[:first], SamplingParams(), features_TF[: first - 1])
    if accepted:
        session.propose([0], [DraftLimit(4, 4)])
        rows = list(range(accepted))
        session.observe([Commit(0, rows, committed[first:], 0)], features_TF[None, first - 1 : -1])
    served.clear()
    chain = session.propose([0], [DraftLimit(4, 4)]).trees[0].tokens
    assert len(served) == len(chain) == 4
    return served, chain


def test_serving_a_head_in_fp32_agrees_to_single_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, so that every logit can be seen; recorded reads have the same bits."""
    monkeypatch.setattr(CpuOps, "replay", Ops.replay)
    monkeypatch.setattr(Eagle3Head, "draft_step", lambda self, cache: None)
    target = tiny_target(vocab_size=VOCAB, dtype=torch.float32)
    objective = objective_on(target, dtype=torch.float32)
    objective.save(tmp_path, torch.float32)
    proposer = load_proposer("eagle3", target, checkpoint=str(tmp_path), num_nodes=4)
    committed = written(target, [3, 1, 4, 1, 5], 2)
    served, chain = serve(target, proposer, committed, 2)
    batch = collate([[example(target, objective.feature_layers, [*committed, *chain], 5)]], 64)
    for depth, states_BLE in enumerate(objective.states(batch)):
        trained_K = objective.network.predict(states_BLE[0, len(committed) - 2])
        assert (served[depth] - trained_K).abs().max() < 1e-5 * trained_K.abs().max().clamp(min=1)


# ---- the outcome of a batch


def test_agreement_and_validity_are_counted_at_the_right_token() -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, draft_vocab=VOCAB, num_depths=2)
    tokens = written(target, [3, 1, 4], 5)
    batch = collate([[example(target, objective.feature_layers, tokens, 3)]], 64)
    outcome = objective(batch, torch.Generator())
    # roots that the target wrote are x3..x7: slots 2..6; depth 1 predicts x[slot + 2], depth 2 x[slot + 3]
    assert outcome.valid_KR.nonzero().tolist() == [[0, 2], [0, 3], [0, 4], [0, 5], [1, 2], [1, 3], [1, 4]]
    assert outcome.num_texts == 1
    for depth, states_BLE in enumerate(objective.states(batch)):
        for slot in range(2, 6 - depth):
            guess = int(objective.network.predict(states_BLE[0, slot]).argmax())
            assert bool(outcome.agreed_KR[depth, slot]) == (guess == tokens[slot + 2 + depth])


def test_the_loss_is_the_mean_of_each_text_with_decaying_depths() -> None:
    """Against the formula, position by position, with a reduced vocabulary."""
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, num_depths=3, decay=0.5)
    texts = [written(target, [3, 1], 6), written(target, [9], 3)]
    batch = collate([[example(target, objective.feature_layers, text, 1) for text in texts]], 64)
    ids_K, final = objective.head.ids_K, batch.features_BLF[0, :, objective.head.spec.features :]
    p_LV = (final @ objective.head.teacher.head_VE.T).softmax(-1)
    want, starts = torch.zeros((), dtype=torch.float64), (0, len(texts[0]))
    for depth, states_BLE in enumerate(objective.states(batch)):
        for text, start in zip(texts, starts, strict=True):
            losses = []
            for slot in range(len(text) - 2 - depth):
                p_V = p_LV[start + slot + 1 + depth]
                if int(p_V.argmax()) in ids_K.tolist():
                    log_q_K = objective.network.predict(states_BLE[0, start + slot]).log_softmax(-1)
                    losses.append(-(p_V[ids_K] / p_V[ids_K].sum() * log_q_K).sum())
            want = want + 0.5**depth * (torch.stack(losses).mean() if losses else 0)
    assert abs(float((objective(batch, torch.Generator()).loss - want).detach())) < 1e-5  # the target's log p is fp32


@pytest.mark.parametrize("loss", ["ce", "kl", "tv", "log_alpha"])
def test_every_loss_reaches_every_parameter(loss: str) -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target, loss=loss, fc_norm=True, norm_before_fc=True, num_layers=2)
    batch = collate([[example(target, objective.feature_layers, written(target, [3, 1], 12), 1)]], 64)
    objective(batch, torch.Generator()).loss.backward()
    with torch.no_grad():
        outcome = objective(batch, torch.Generator())
    assert outcome.overlap_KR is not None
    assert 0 <= outcome.overlap_KR.min() <= outcome.overlap_KR.max() <= 1
    for name, parameter in objective.module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.abs().max() > 0, f"{name} has no gradient"


def test_a_batch_with_nothing_to_learn_has_a_loss_of_zero_with_gradient() -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target)
    batch = collate([[example(target, objective.feature_layers, [1, 2, 3], 3)]], 64)
    outcome = objective(batch, torch.Generator())
    outcome.loss.backward()
    assert (outcome.loss.item(), outcome.num_texts, bool(outcome.valid_KR.any())) == (0.0, 0, False)


def test_gradients_through_chunks_equal_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(vocab_size=VOCAB)
    objective = objective_on(target)
    batch = collate([[example(target, objective.feature_layers, written(target, [3, 1], 12), 1)]], 64)
    found = []
    for chunk, small in ((1024, 1 << 22), (3, 0)):
        monkeypatch.setitem(layers.CHUNKS, "cpu", chunk)
        monkeypatch.setitem(scoring.CHUNK_LIMITS, "cpu", scoring.ChunkLimits(small, chunk))
        objective.module.zero_grad()
        objective(batch, torch.Generator()).loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in objective.module.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-9


# ---- learning


def train(objective: Eagle3Objective, batch: Batch, num_steps: int) -> None:
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=0.02, weight_decay=0.0)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / num_steps)
        optimizer.zero_grad()
        objective(batch, torch.Generator()).loss.backward()
        optimizer.step()


def tokens_per_step(target: Target, directory: Path, prompts: list[list[int]]) -> float:
    """Of 20 tokens after each prompt, drafting 4 at a time: 5 is the most."""
    records: list[object] = []
    proposer = load_proposer("eagle3", target, checkpoint=str(directory), num_nodes=4)
    Engine(target, proposer, record=records.append).generate(prompts, SamplingParams(max_tokens=20, ignore_eos=True))
    steps = [record for record in records if isinstance(record, StepRecord)]
    return summarize(steps, []).tokens_per_target_forward or 0.0


@pytest.mark.parametrize(
    ("loss", "shift", "num_layers", "low", "high"),
    [("kl", 0, 1, 4.0, 5.0), ("ce", 0, 1, 4.7, 5.0), ("ce", 0, 2, 4.7, 5.0), ("ce", 1, 1, 1.0, 2.0)],
    ids=["kl", "ce", "two-layers", "off-by-one"],
)
def test_it_learns_its_targets_texts(
    tmp_path: Path, loss: str, shift: int, num_layers: int, low: float, high: float
) -> None:
    target = tiny_target(vocab_size=VOCAB, dtype=torch.float32)
    objective = objective_on(
        target,
        dtype=torch.float32,
        draft_vocab=VOCAB,
        num_layers=num_layers,
        loss=loss,
        intermediate_size=128,
        decay=1.0,
    )
    prompts = [[3, 1, 4], [15, 9, 2]]
    examples = [
        example(target, objective.feature_layers, written(target, prompt, 20), len(prompt)) for prompt in prompts
    ]
    if shift:
        examples = [off_by(one, shift) for one in examples]
    train(objective, collate([examples], 64), 160 if loss == "kl" else 80)
    objective.save(tmp_path, torch.float32)
    assert low <= tokens_per_step(target, tmp_path, prompts) <= high


def off_by(one: Example, by: int) -> Example:
    """Beside each token the features of a later position: what a feature is taught to predict lies `by` too early."""
    assert one.features_TF is not None
    return Example(one.tokens_T[:-by], one.learn_T[:-by], one.features_TF[by:])


# ---- what a head begins with, and what is refused


def test_columns_go_to_frequent_tokens_and_the_end_of_text_first() -> None:
    target = tiny_target(vocab_size=6)  # its end of text is token 5
    corpus = Corpus(counts_V=torch.tensor([4, 7, 7, 0, 9, 0]), num_tokens=27)
    assert choose_columns(target, corpus, 3).tolist() == [1, 4, 5]
    assert choose_columns(target, corpus, 99).tolist() == [0, 1, 2, 3, 4, 5]
    assert corpus.counts_V.tolist() == [4, 7, 7, 0, 9, 0]


def test_equal_seeds_give_equal_weights_and_the_head_starts_from_the_targets() -> None:
    target = tiny_target(vocab_size=VOCAB)
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE, shared.head_VE)
    corpus = Corpus(counts_V=torch.arange(VOCAB), num_tokens=1)
    one, two, other = (
        Eagle3Objective.create(teacher, Eagle3ObjectiveConfig(draft_vocab=9), corpus, seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True))
    assert not torch.equal(one.network.fc.weight, other.network.fc.weight)
    assert torch.equal(one.network.lm_head.weight, shared.head_VE[one.head.ids_K].float())


def test_a_layer_of_the_target_may_be_the_start(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "target", dtype=torch.float32)
    target = load_target(str(tmp_path / "target"), dtype="float32")
    objective = objective_on(target, dtype=torch.float32, start_layer=-1, draft_vocab=50)
    attention, width = objective.network.midlayer.self_attn, target.spec.hidden_size
    assert not attention.q_proj.weight[:, :width].any()
    stored = read_weights(tmp_path / "target")
    assert torch.equal(attention.q_proj.weight[:, width:], stored["model.layers.1.self_attn.q_proj.weight"])
    assert torch.equal(objective.network.midlayer.mlp.up_proj.weight, stored["model.layers.1.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be between 1 and 32"),
        ({"num_depths": 0}, "num_depths=0 must be between 1 and 32"),
        ({"decay": 1.5}, "decay=1.5 must be above 0"),
        ({"draft_vocab": 0}, "draft_vocab=0 must be at least 1"),
        ({"loss": "mse"}, "loss=mse must be one of ce, kl"),
        ({"layer_ids": "0,2"}, "layer 2 does not exist; the target has layers 0 to 1"),
        ({"layer_ids": "a"}, "layer_ids=a is not a list of numbers"),
        ({"start_layer": 5}, "start_layer=5 does not exist"),
        ({"start_layer": 0}, "start_layer=0 needs the files of the target"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_on(tiny_target(vocab_size=VOCAB), **settings)
