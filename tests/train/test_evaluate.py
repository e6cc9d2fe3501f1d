"""Held-out figures by hand, and a drafter whose real tau is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import pytest
import torch
from torch import nn
from toys import setup, small, texts

from outrider.data.texts import Corpus, Data, Example, ListedTexts
from outrider.formats.store import write_checkpoint
from outrider.proposers import load_proposer
from outrider.proposers.draft_model import DraftModelProposer
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.train.batch import Batch
from outrider.train.evaluate import Counts, decode, prompts_of, summary
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.run import accelerator, train


def outcome(agreed: Any, valid: Any, overlap: Any = None, loss: float = 0.0, num_texts: int = 1) -> Outcome:
    found = None if overlap is None else torch.tensor(overlap)
    return Outcome(torch.tensor(loss), num_texts, torch.tensor(agreed).bool(), torch.tensor(valid).bool(), found)


def of(*outcomes: Outcome, num_depths: int = 2) -> Any:
    counts = Counts.zero(num_depths)
    for one in outcomes:
        counts.add(one)
    return summary(counts)


def test_the_worked_example() -> None:
    found = of(outcome([[1, 1], [1, 0]], [[1, 1], [1, 1]], loss=6.0, num_texts=3))
    assert found.conditional == (1.0, 0.5)
    assert found.joint == (1.0, 0.5)
    assert found.tau == 2.5
    assert found.loss == 2.0
    assert (found.num_texts, found.num_anchors) == (3, 2)
    assert found.overlap == ()
    assert found.sampled_tau is None


def test_a_depth_counts_only_where_all_before_it_were_right() -> None:
    # five anchors: right to depth 2; wrong then right; right then wrong; right and the text ends; no answer at depth 1
    found = of(outcome([[1, 0, 1, 1, 1], [1, 1, 0, 1, 1]], [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]))
    assert found.num_anchors == 4
    assert found.conditional == (3 / 4, 1 / 2)
    assert found.tau == 1 + 3 / 4 + 3 / 8


def test_batches_add_up_and_the_order_does_not_matter() -> None:
    one = outcome([[1, 0, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]], [[0.5, 0.2, 0.1], [0.4, 0.3, 0.9]], 2.0, 2)
    two = outcome([[0, 1], [0, 1]], [[1, 1], [0, 1]], [[0.6, 0.6], [9.0, 0.4]], 5.0, 1)
    assert of(one, two) == of(two, one)
    found = of(one, two)
    assert found.loss == pytest.approx(7 / 3)
    assert found.overlap == pytest.approx(((0.5 + 0.2 + 0.1 + 0.6 + 0.6) / 5, (0.4 + 0.3 + 0.9 + 0.4) / 4))
    first, second = found.overlap
    assert found.sampled_tau == pytest.approx(1 + first + first * second)


def test_depths_that_nothing_reached_are_left_out() -> None:
    found = of(outcome([[0, 0], [1, 1]], [[1, 1], [1, 1]]))
    assert found.conditional == (0.0,)
    assert found.tau == 1.0
    nothing = of()
    assert (nothing.loss, nothing.conditional, nothing.tau, nothing.num_anchors) == (None, (), 1.0, 0)


def test_prompts_are_what_stands_before_the_first_answer() -> None:
    def text(learn: list[int]) -> Example:
        return Example(torch.arange(len(learn)), torch.tensor(learn).bool())

    found = prompts_of(
        ListedTexts([text([0, 0, 1, 0, 1]), text([0, 0]), text([1, 1]), text([0] * 9 + [1]), text([0, 1])]), 5, 8
    )
    assert found == [[0, 1], [0]]
    assert prompts_of(texts(9, seed=0), 3, 8) == [one.tokens_T[:3].tolist() for one in texts(3, seed=0).examples]


@dataclass(frozen=True, kw_only=True)
class PerfectConfig:
    """Nothing to set."""


@final
class Perfect(Objective):
    """Saves the target itself as a draft model: every draft is accepted, up to rounding of the stored weights."""

    Config = PerfectConfig
    method: ClassVar[str] = "draft_model"

    def __init__(self, target: Target) -> None:
        self.target = target
        self.unused = nn.Linear(1, 1)

    @classmethod
    def create(cls, teacher: Teacher, config: PerfectConfig, corpus: Corpus, seed: int) -> Self:
        return cls(teacher.target)

    @property
    def module(self) -> nn.Module:
        return self.unused

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return ()

    @property
    def num_depths(self) -> int:
        return 1

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        right_1R = batch.shifted(batch.learn_BL, 1).flatten()[None].bool()
        return Outcome(self.unused.weight.sum(), 1, right_1R, right_1R)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        from outrider.formats.weights import read_weights
        from outrider.records.json_fields import read_json

        assert self.target.spec.source is not None
        source = Path(self.target.spec.source)
        weights = read_weights(source)
        write_checkpoint(
            directory, {name: weights[name].to(dtype) for name in weights}, read_json(source / "config.json").plain()
        )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(str(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")), dtype="float32", device="cpu")


def test_the_real_tau_of_a_perfect_drafter(target: Target, tmp_path: Path) -> None:
    perfect = Perfect(target)
    perfect.save(tmp_path, torch.float32)
    drafter = load_proposer("draft_model", target, checkpoint=str(tmp_path))
    assert isinstance(drafter, DraftModelProposer)
    depth = drafter.spec.max_nodes
    prompts = [[1, 2, 3], [7], [5, 6, 7, 8, 9]]
    found = decode(perfect, target, prompts, 10 * (depth + 1))
    assert found is not None
    assert found.num_prompts == 3
    assert depth < found.tau <= depth + 1
    assert min(found.conditional) > 0.9
    assert decode(perfect, target, [], 10) is None


def test_the_loop_decodes_from_time_to_time(target: Target, tmp_path: Path) -> None:
    data = Data(train=texts(8, seed=1), held_out=texts(4, seed=2))
    config = small(epochs=1, real_tau_every=2, real_tau_prompts=2, real_tau_tokens=12)
    made = setup(config, objective=Perfect, settings=PerfectConfig(), target=target, data=data)
    report = train(made, tmp_path, accelerator("cpu"))
    assert report["decoded"]["num_prompts"] == 2
    assert report["decoded"]["tau"] > 2
    assert report["held_out"]["tau"] == 2.0
