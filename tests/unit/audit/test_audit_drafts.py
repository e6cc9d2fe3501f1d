"""Drafts that are not drawn from the probabilities they state are caught, and honest ones raise few false alarms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import pytest
import torch
from torch import Tensor

from outrider.audit import AuditConfig, AuditReport, audit, methods
from outrider.draft import Draft
from outrider.noise import Stream
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.sampling import SamplingParams, choose, distribution
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target

SMALL = AuditConfig(
    verification=("rejection",),
    temperatures=(0.7,),
    processors=("none",),
    batches=(3,),
    num_prompts=3,
    max_new_tokens=24,
    law_tokens=576,
)
CELL = "mine, rejection, batch 3, T=0.7"
VOCAB_SIZE = 31


def table(seed: int) -> Tensor:
    """Logits of the next token by the last one."""
    return torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


@final
class Drawing(Proposer):
    """Draws chains of two from one table of logits, and states the law of another."""

    def __init__(self, stated_VV: Tensor, drawn_VV: Tensor) -> None:
        self.stated_VV, self.drawn_VV = stated_VV, drawn_VV

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=2)

    def open(self, plan: SessionPlan) -> Session:
        return _Chains(self, plan)


@final
class _Chains(Session):
    def __init__(self, tables: Drawing, plan: SessionPlan) -> None:
        self.tables, self.plan = tables, plan
        self.texts: dict[int, list[int]] = {}
        self.samplings: dict[int, SamplingParams] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: object) -> None:
        self.texts[slot], self.samplings[slot] = list(tokens), sampling

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        chains: list[list[int]] = []
        probs_BMV = torch.zeros(len(slots), 3, VOCAB_SIZE, dtype=torch.float64)
        for place, (slot, limit) in enumerate(zip(slots, limits, strict=True)):
            chain, last, sampling = list[int](), self.texts[slot][-1], self.samplings[slot]
            for depth in range(min(2, limit.num_nodes, limit.max_depth)):
                probs_BMV[place, depth] = distribution(self.tables.stated_VV[last][None].double(), sampling)[0]
                position = torch.tensor([len(self.texts[slot]) + depth])
                row = self.tables.drawn_VV[last][None]
                last = int(choose(row, position, [sampling], Stream.DRAFT, depth)[0])
                chain.append(last)
            chains.append(chain)
        longest = 1 + max(map(len, chains))
        return Draft.of_chains(chains, self.plan.device, probs_BMV[:, :longest])

    def observe(self, commits: Sequence[Commit], features_BMF: object) -> None:
        for commit in commits:
            self.texts[commit.slot] += commit.tokens

    def release(self, slot: int) -> None:
        del self.texts[slot]


@pytest.fixture(scope="module")
def target() -> NativeTarget:
    found = tiny_target(max_positions=128)
    assert found.spec.vocab_size == VOCAB_SIZE
    return found


def verdicts(report: AuditReport, name: str) -> dict[str, str]:
    [layer] = [one for one in report.layers if one.name == name]
    return {one.name: one.verdict for one in layer.findings}


def test_honest_drafts_pass_and_drafts_by_argmax_are_caught(target: NativeTarget) -> None:
    report = audit(SMALL, target, {"mine": Drawing(table(1), table(1))})
    assert report.verdict == "PASS", report.sentence
    assert set(verdicts(report, "law")) == {CELL, f"{CELL}, drafts"}
    [controls] = [one for one in report.layers if one.name == "controls"]
    [planted] = [one for one in controls.findings if one.name.endswith(": drafts by argmax")]
    assert planted.counts["is_caught"] == 1, planted
    # two tests of the text and two of the drafts; the drafts are more tokens than the text
    assert report.distance == pytest.approx(distance_by_hand(576), rel=1e-3)


def distance_by_hand(count: int) -> float:
    """ln(8000) = 8.987 and ln(20) = 2.996."""
    return float((8.987 / (2 * count)) ** 0.5 + (2.996 / (2 * count)) ** 0.5)


@pytest.mark.parametrize(
    ("drawn", "kind"),
    [(table(1) * 1.6, "sharper"), (table(2), "of another law"), (table(1).argmax(1)[:, None] * 0.0, "uniform")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_drafts_of_another_law_than_they_state_fail(drawn: Tensor, kind: str, target: NativeTarget) -> None:
    report = audit(SMALL, target, {"mine": Drawing(table(1), drawn.expand(VOCAB_SIZE, VOCAB_SIZE))})
    assert (report.verdict, report.status) == ("FAIL", 3)
    assert verdicts(report, "law")[f"{CELL}, drafts"] == "FAIL", kind


def test_whole_audits_of_a_lossless_method_fail_as_seldom_as_they_promise(
    target: NativeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one in ten, 2 of 20 are expected to fail at most; more than 7 have a probability of 1 in 2,400."""
    monkeypatch.setattr(methods, "faults_of", lambda cell: {})  # they can make no audit fail, and take most of the time
    config = replace(SMALL, alpha=0.1, law_tokens=72)
    reports = [audit(replace(config, seed=seed), target, {"mine": Drawing(table(1), table(1))}) for seed in range(20)]
    assert sum(report.verdict == "FAIL" for report in reports) <= 7
    chances = [one.counts["chance"] for report in reports for one in report.layers[1].findings]
    assert len(set(chances)) > 35  # samples of their own
    assert min(chances) < 0.2  # of 40, so that a tenth of the budget was near
