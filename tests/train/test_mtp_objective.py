"""Multi-token prediction in training: its mask, its equality with run time, and that it learns."""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from outrider.data.texts import Corpus, Example
from outrider.engine import Completion, Engine
from outrider.errors import ConfigError
from outrider.models.output_head import OutputHead
from outrider.noise import Stream
from outrider.ops.base import GraphBody, GraphCache, Ops, Result
from outrider.ops.cpu import CpuOps
from outrider.ops.torch import TorchOps
from outrider.placement import Placement
from outrider.proposer import Commit, DraftLimit, SessionPlan
from outrider.proposers import load_proposer
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets import load_target
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model
from outrider.train.batch import Batch, collate
from outrider.train.objective import Teacher
from outrider.train.objectives.mtp import MtpObjective, MtpObjectiveConfig

VOCAB = 31
SHAPES = [(1, 3, "residual"), (1, 4, "normed"), (2, 2, "residual"), (3, 3, "normed")]


def objective_of(target: Target, seed: int = 0, **settings: object) -> MtpObjective:
    """An objective in the target's own dtype, every weight drawn at random."""
    shared = target.shared_weights()
    teacher = Teacher(target, shared.embedding_VE, shared.head_VE)
    corpus = Corpus(counts_V=torch.ones(VOCAB), num_tokens=VOCAB)
    return MtpObjective.create(teacher, MtpObjectiveConfig(**settings), corpus, seed)  # type: ignore[arg-type]


def shaken(objective: MtpObjective, seed: int = 1) -> MtpObjective:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return objective


def features_of(target: Target, tokens: list[int]) -> Tensor:
    session = target.open(target.plan(1, len(tokens) + 1, 1), feature_layers=(target.spec.num_layers,))
    features_TF = session.prefill([0], [tokens])[0]
    assert features_TF is not None
    return features_TF


def example_of(target: Target, tokens: list[int], num_prompt: int = 1) -> Example:
    learn_T = torch.arange(len(tokens)) >= num_prompt
    return Example(torch.tensor(tokens), learn_T, features_of(target, tokens))


def batch_of(target: Target, texts: list[list[int]]) -> Batch:
    return collate([[example_of(target, text) for text in texts]], sum(map(len, texts)))


@pytest.mark.parametrize(("num_modules", "num_depths", "state"), SHAPES)
def test_a_packed_text_is_alone(num_modules: int, num_depths: int, state: str) -> None:
    """What a text's slots give does not depend on its neighbours in the row, nor on its own later tokens."""
    target = tiny_target(3)
    objective = shaken(objective_of(target, num_modules=num_modules, num_depths=num_depths, state=state))
    texts = [[1, 5, 9, 2, 7, 7, 3], [4, 4, 8, 1, 6, 2, 9, 5]]
    together = objective.network(objective.inputs(batch_of(target, texts)))
    for start, text in ((0, texts[0]), (7, texts[1])):
        alone = objective.network(objective.inputs(batch_of(target, [text])))
        for depth in range(num_depths):
            count = len(text) - 1 - depth
            pair = together[depth][0, start : start + count], alone[depth][0, :count]
            torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


# ---- training is run time ----------------------------------------------------------------------------------------


class Watched:
    """The logits of a proposal, level by level, also where a recorded graph is repeated.

    Behind every call of the output head stands one operation more, a copy; a graph repeats it like the others.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.logits: list[Tensor] = []
        self._copies: list[Tensor] | None = None
        self._copies_of: dict[object, list[Tensor]] = {}
        self._predict, self._replay = OutputHead.__call__, {ops: ops.replay for ops in (CpuOps, TorchOps)}
        patch.setattr(OutputHead, "__call__", lambda *given: self._predicted(*given))
        for ops in self._replay:
            patch.setattr(ops, "replay", lambda *given: self._replayed(*given))

    def _predicted(self, output: OutputHead, states_RE: Tensor) -> Tensor:
        logits_RV = self._predict(output, states_RE)
        copy_RV = torch.full_like(logits_RV, torch.nan)
        output.ops.collect(logits_RV, None, 0.0, copy_RV, 0)
        (self.logits if self._copies is None else self._copies).append(copy_RV)
        return logits_RV

    def _replayed(
        self, ops: Ops, graph_cache: GraphCache, key: Hashable, body: GraphBody, x_RF: Tensor, at: Placement
    ) -> Result:
        def watched(x_RF: Tensor, placement: Placement) -> Result:
            self._copies = copies
            copies.clear()
            try:
                return body(x_RF, placement)
            finally:
                self._copies = None

        copies = self._copies_of.setdefault((id(graph_cache), key, at.positions_BM.shape), [])
        for copy_RV in copies:
            copy_RV.fill_(torch.nan)
        result = self._replay[type(ops)](ops, graph_cache, key, watched, x_RF, at)
        self.logits += [copy_RV.clone() for copy_RV in copies]
        return result


def scored(objective: MtpObjective, target: Target, text: list[int], root: int) -> list[Tensor]:
    """Logits that training scores at every depth for the anchor whose root is at position `root`."""
    outs = objective.network(objective.inputs(batch_of(target, [text])))
    return [out_BLE[0, root - 1] @ objective.teacher.head_VE.T for out_BLE in outs]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("num_modules", "num_depths", "state"), SHAPES)
def test_run_time_predicts_what_training_scores(
    num_modules: int,
    num_depths: int,
    state: str,
    dtype: torch.dtype,
    atol: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ragged batch, shrinking limits and partial acceptance; after every proposal, the logits of all depths agree."""
    target = tiny_target(5, dtype=dtype)
    objective = shaken(objective_of(target, num_modules=num_modules, num_depths=num_depths, state=state))
    objective.save(tmp_path, dtype)
    proposer = load_proposer("mtp", target, checkpoint=str(tmp_path))
    assert proposer.spec.max_nodes == num_depths
    plan = SessionPlan(max_slots=2, max_positions=64, noise=Stream.TARGET, device=torch.device("cpu"))
    session = proposer.open(plan)
    watched = Watched(monkeypatch)
    draw = torch.Generator().manual_seed(7)
    texts = [torch.randint(0, VOCAB - 1, (40,), generator=draw).tolist() for _ in range(2)]
    features = [features_of(target, text) for text in texts]
    roots = [0, 6]
    for slot, text in enumerate(texts):
        session.admit(slot, text[: roots[slot] + 1], SamplingParams(), features[slot][: roots[slot]])
    num_compared = 0
    with torch.no_grad():
        for step in range(9):
            limits = [
                DraftLimit(9, (num_depths, 1, num_depths, 0, 2, num_depths, num_depths, 1, 9)[step]),
                DraftLimit(9, 9),
            ]
            watched.logits.clear()
            draft = session.propose([0, 1], limits)
            logits = list(watched.logits)
            assert len(logits) == num_depths
            for slot, tree in enumerate(draft.trees):
                depth = min(limits[slot].max_depth, num_depths) if roots[slot] else 0
                assert len(tree.tokens) == depth
                want = scored(objective, target, texts[slot][: roots[slot] + 1] + tree.tokens, roots[slot])
                for level in range(depth):
                    row = slot if len(logits[level]) == 2 else 0
                    scale = max(1.0, float(want[level].abs().max()))
                    torch.testing.assert_close(logits[level][row], want[level], rtol=0, atol=atol * scale)
                    num_compared += 1
            commits, rows_BMF = [], torch.zeros(2, 4, features[0].shape[1], dtype=dtype)
            for slot, text in enumerate(texts):
                count, root = 1 + (step + slot) % 4, roots[slot]
                rows_BMF[slot, :count] = features[slot][root : root + count]
                commits.append(Commit(slot, list(range(count)), text[root + 1 : root + 1 + count], slot))
                roots[slot] += count
            session.observe(commits, rows_BMF)
    assert num_compared >= 12


def test_an_off_by_one_is_seen(tmp_path: Path) -> None:
    """The control of the test above: one slot earlier or later, the scored logits are others."""
    target = tiny_target(5)
    objective = shaken(objective_of(target))
    text = [3, 8, 1, 22, 9, 14, 5, 5, 2]
    here, before = (scored(objective, target, text, root)[1] for root in (5, 4))
    assert (here - before).abs().max() > 0.1


# ---- what is learnt ----------------------------------------------------------------------------------------------


def test_only_what_the_target_wrote_is_predicted() -> None:
    target = tiny_target(2)
    objective = objective_of(target)
    text = example_of(target, [1, 2, 3, 4, 5], num_prompt=2)
    outcome = objective(collate([[text]], 8), torch.Generator())
    assert outcome.valid_KR.tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, False],
        [False, False, False, False, False],
    ]
    nothing = objective(collate([[replace(text, learn_T=torch.zeros(5, dtype=torch.bool))]], 8), torch.Generator())
    assert nothing.num_texts == 0
    assert nothing.loss == 0


def test_no_draft_crosses_another_turn() -> None:
    """Behind a token that the target did not write nothing is predicted, though it wrote what follows."""
    target = tiny_target(2)
    text = example_of(target, [1, 2, 3, 4, 5, 6])
    text = replace(text, learn_T=torch.tensor([False, True, True, False, True, True]))
    outcome = objective_of(target)(collate([[text]], 8), torch.Generator())
    assert outcome.valid_KR.nonzero().tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_every_depth_has_its_own_label(loss: str) -> None:
    """Slot by slot: depth k of slot t is judged by token t + 1 + k, and by the target's state at t + k."""
    target = tiny_target(2)
    objective = shaken(objective_of(target, loss=loss, beta=1.0))
    text, head_VE = [1, 9, 3, 4, 22, 6, 7], objective.teacher.head_VE
    batch = batch_of(target, [text])
    outs = objective.network(objective.inputs(batch))
    p_TV = (features_of(target, text) @ head_VE.T).softmax(-1)
    means, overlap_KR = [], torch.zeros(3, len(text), dtype=torch.float64)
    for depth in (1, 2, 3):
        losses = []
        for slot in range(len(text) - 1 - depth):
            log_q_V = (outs[depth - 1][0, slot] @ head_VE.T).log_softmax(-1)
            exact = -log_q_V[text[slot + 1 + depth]] if loss == "ce" else -(p_TV[slot + depth] * log_q_V).sum()
            losses.append(exact)
            overlap_KR[depth - 1, slot] = torch.minimum(log_q_V.exp(), p_TV[slot + depth]).sum()
        means.append(torch.stack(losses).mean())
    with torch.no_grad():
        outcome = objective(batch, torch.Generator())
    assert outcome.loss.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)
    assert outcome.overlap_KR is not None
    torch.testing.assert_close(outcome.overlap_KR.double(), overlap_KR, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["ce", "kl", "tv", "log_alpha"])
def test_the_loss_is_a_mean_per_text(loss: str) -> None:
    """Two texts in one row cost what they cost alone; their order and packing do not matter."""
    target = tiny_target(2)
    objective = shaken(objective_of(target, loss=loss))
    texts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [9, 3, 7, 1]]
    alone = [objective(batch_of(target, [text]), torch.Generator()).loss for text in texts]
    with torch.no_grad():
        packed = objective(batch_of(target, texts), torch.Generator())
    assert packed.num_texts == 2
    assert packed.loss.item() == pytest.approx(sum(alone).item(), rel=1e-6)  # type: ignore[attr-defined]
    assert packed.overlap_KR is not None
    assert bool(((packed.overlap_KR > 0) == packed.valid_KR).all())


def test_depths_weigh_less_and_less() -> None:
    target = tiny_target(2)
    batch = batch_of(target, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])

    def loss(beta: float, num_depths: int) -> float:
        return objective_of(target, beta=beta, num_depths=num_depths)(batch, torch.Generator()).loss.item()

    first, both = loss(1.0, 1), loss(1.0, 2)
    second = 2 * both - first
    assert loss(0.6, 2) == pytest.approx((first + 0.6 * second) / 1.6, rel=1e-6)


def answers(target: Target, num_texts: int) -> list[Completion]:
    prompts = [[1 + index, 7, 3 * index % 29] for index in range(num_texts)]
    engine = Engine(target, NoProposer())
    return engine.generate(prompts, SamplingParams(temperature=2.0, seed=4, max_tokens=24, ignore_eos=True))


def trained(target: Target, done: list[Completion], num_modules: int, shift: int, steps: int = 120) -> MtpObjective:
    """Train on the texts themselves; with `shift`, every label is the token that many places further on."""
    objective = objective_of(target, num_modules=num_modules)
    texts = [[*completion.prompt, *completion.tokens] for completion in done]
    rows = [[example_of(target, text, len(completion.prompt))] for text, completion in zip(texts, done, strict=True)]
    batch = collate(rows, 64)
    labels = batch._replace(tokens_BL=batch.tokens_BL.roll(-shift, 1))
    inputs = objective.inputs(batch)
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(objective, "inputs", lambda _: inputs)
            outcome = objective(labels, torch.Generator())
        (outcome.loss / outcome.num_texts).backward()
        optimizer.step()
    return objective


@pytest.mark.parametrize("num_modules", [1, 3])
@pytest.mark.parametrize(("shift", "at_least", "at_most"), [(0, 3.5, 4.0), (1, 1.0, 1.4)])
def test_it_learns(num_modules: int, shift: int, at_least: float, at_most: float, tmp_path: Path) -> None:
    """Tokens per step in the engine, of at most 4; and that labels one token off are worth nothing."""
    target = tiny_target(1, dtype=torch.float32, hidden_size=32, intermediate_size=48, head_dim=8)
    done = answers(target, 6)
    trained(target, done, num_modules, shift).save(tmp_path, torch.float32)
    engine = Engine(target, load_proposer("mtp", target, checkpoint=str(tmp_path)))
    again = engine.generate(
        [completion.prompt for completion in done],
        SamplingParams(temperature=2.0, seed=4, max_tokens=24, ignore_eos=True),
    )
    assert [completion.tokens for completion in again] == [completion.tokens for completion in done]
    tau = sum(len(completion.tokens) for completion in again) / engine.num_steps
    assert at_least <= tau <= at_most


# ---- start and settings ------------------------------------------------------------------------------------------


def test_it_starts_from_the_last_layer(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path)), dtype="float64")
    assert isinstance(target, NativeTarget)
    network = objective_of(target, num_modules=2, num_depths=2).network
    state = network.state_dict()
    last = target.decoder.layers[-1]
    for index in range(2):
        torch.testing.assert_close(state[f"mtp_layers.{index}.self_attn.o_proj.weight"], last.out.data)
        torch.testing.assert_close(state[f"mtp_layers.{index}.final_layernorm.weight"], target.decoder.norm_E)
        assert torch.equal(state[f"mtp_layers.{index}.input_proj.weight"], torch.eye(16, 32, dtype=torch.float64))
        assert not state[f"mtp_layers.{index}.self_attn.q_proj.bias"].any()
    plain = objective_of(target, start_from_target=False).network.state_dict()
    assert not torch.allclose(plain["mtp_layers.0.self_attn.o_proj.weight"], last.out.data)


def test_equal_seeds_give_equal_weights() -> None:
    target = tiny_target(0)
    one, same, other = (objective_of(target, seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mtp_layers.0.input_proj.weight"], other["mtp_layers.0.input_proj.weight"])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"num_modules": 0}, "num_modules=0 must be between"),
        ({"num_modules": 2}, "set num_depths=2"),
        ({"num_depths": 17}, "num_depths=17 must be between"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
    ],
)
def test_settings_are_checked(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MtpObjectiveConfig(**settings_)  # type: ignore[arg-type]
