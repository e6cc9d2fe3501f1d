"""Drafting from recorded kernels gives the tokens of drafting kernel by kernel, and records each shape once."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outrider import Commit, DraftLimit, Engine, Proposer, SamplingParams, SessionPlan
from outrider.draft import Draft
from outrider.models.draft_decoder import DraftDecoder
from outrider.models.eagle3 import Eagle3Head
from outrider.models.mtp import MtpModule
from outrider.noise import Stream
from outrider.ops import cpu_graphs
from outrider.ops.base import Ops
from outrider.ops.cpu import CpuOps
from outrider.proposer import Session
from outrider.proposers import proposer_class
from outrider.proposers.draft_model import DraftModelConfig, DraftModelProposer, cut_from
from outrider.proposers.drafting import fused_chain
from outrider.proposers.pard import PardConfig, PardProposer
from outrider.target import Target
from outrider.testing import tiny_target

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [4, 4], [8, 1, 2, 8, 1, 2]]
IDS_K = torch.arange(1, 31, 3)
SLOTS = 3
NOISE = Stream.TARGET


def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, nothing is recorded and no chain is drafted in one go."""
    monkeypatch.setattr(CpuOps, "replay", Ops.replay)
    for reader in (Eagle3Head, MtpModule, DraftDecoder):
        monkeypatch.setattr(reader, "draft_step", lambda *arguments: None)


def trees_of(engine: Engine) -> list[object]:
    """All drafts of a few requests."""
    drafts: list[Draft] = []
    propose = engine.session.propose

    def watched(*arguments: object) -> Draft:
        drafts.append(propose(*arguments))
        return drafts[-1]

    engine.session.propose = watched
    engine.generate(PROMPTS, SamplingParams(max_tokens=14, ignore_eos=True))
    return [draft.trees for draft in drafts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "seed"), [("eagle3", 1), ("eagle3", 3), ("eagle3", 6), ("mtp", 1), ("mtp", 2), ("draft_model", 9)]
)
def test_recorded_drafts_are_the_same(
    name: str, seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target(2, dtype=dtype, max_positions=64)
    proposer = proposer_class(name).example(target, seed)
    recorded = trees_of(Engine(target, proposer, max_batch=2))
    by_steps(monkeypatch)
    assert recorded == trees_of(Engine(target, proposer, max_batch=2))
    assert any(tree.tokens for trees in recorded for tree in trees)


def proposer_of(name: str, target: Target, ids_K: Tensor | None) -> Proposer:
    """A greedy chain of up to five tokens."""
    if name == "draft_model":
        return DraftModelProposer(cut_from(target, "0,1"), DraftModelConfig(layers="0,1", num_nodes=5), 0, ids_K=ids_K)
    if name == "pard":
        return PardProposer(cut_from(target, "0,1"), 2, PardConfig(checkpoint="", num_nodes=5), 0, ids_K)
    seeds = {"eagle3": (3, 4), "mtp": (18, 6)}[name]
    return proposer_class(name).example(target, seeds[ids_K is not None])


def opened(proposer: Proposer) -> Session:
    plan = SessionPlan(max_slots=SLOTS, max_positions=160, noise=NOISE, device=torch.device("cpu"))
    return proposer.open(plan)


def features_of(generator: torch.Generator, width: int, *shape: int) -> Tensor | None:
    return torch.randn(*shape, width, generator=generator) if width else None


GREEDY = [SamplingParams()] * SLOTS
MIXED = [SamplingParams(temperature=0.8, seed=2**40 + 5), SamplingParams(), SamplingParams(temperature=1.3, seed=-7)]


def history(
    proposer: Proposer, target: Target, seed: int, samplings: Sequence[SamplingParams] = GREEDY
) -> list[list[int]]:
    """The drafts of slots with texts of 1 to 60 tokens, ragged limits, and drafts accepted in part."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    session, width, chains = opened(proposer), len(proposer.spec.feature_layers) * target.spec.hidden_size, []
    for slot, length in enumerate((1, draw.randint(2, 9), 60)):
        tokens = [draw.randrange(30) for _ in range(length)]
        session.admit(slot, tokens, samplings[slot], features_of(generator, width, length - 1))
    for step in range(12):
        slots = sorted(draw.sample(range(SLOTS), draw.randint(1, SLOTS)))
        most = 0 if step in (3, 4) else 5  # a pending tokens grow
        draft = session.propose(
            slots, [DraftLimit(draw.randint(0, most), draw.randint(most // 2, most)) for _ in slots]
        )
        commits = []
        for place, (slot, tree) in enumerate(zip(slots, draft.trees, strict=True)):
            chains.append(tree.tokens)
            count = draw.randint(0, len(tree.tokens))
            tokens = [*tree.tokens[:count], draw.randrange(30)]
            commits.append(Commit(slot, list(range(count + 1)), tokens, place))
        session.observe(commits, features_of(generator, width, len(slots), draft.num_rows))
    return chains


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids_K", [None, IDS_K], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("name", ["draft_model", "pard", "eagle3", "mtp"])
def test_any_history_gives_the_chains_of_drafting_step_by_step(
    name: str, ids_K: Tensor | None, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_chain, "PIECE", (2, 16)[seed])
    target = tiny_target(seed, dtype=dtype, max_positions=160)
    proposer = proposer_of(name, target, ids_K)
    in_one_go = history(proposer, target, seed)
    by_steps(monkeypatch)
    assert in_one_go == history(proposer, target, seed)
    assert max(map(len, in_one_go)) >= 4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["draft_model", "pard", "eagle3", "mtp"])
def test_chains_are_drawn_as_the_sampler_draws_them(
    name: str, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_chain, "PIECE", (2, 16)[seed])
    target = tiny_target(seed, dtype=dtype, max_positions=160)
    proposer = proposer_of(name, target, IDS_K)
    assert proposer.config.sampled is None
    in_one_go = history(proposer, target, seed, MIXED)
    assert in_one_go != history(proposer, target, seed)
    by_steps(monkeypatch)
    monkeypatch.setattr(proposer, "config", replace(proposer.config, sampled=True))
    assert in_one_go == history(proposer, target, seed, MIXED)


def test_the_ratio_tests_draft_greedily_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their drafts must be independent of the target's noise, and carry their probabilities."""
    target = tiny_target(0, dtype=torch.float32, max_positions=160)
    proposer = proposer_of("eagle3", target, IDS_K)
    greedy = history(proposer, target, 0)
    monkeypatch.setattr(f"{__name__}.NOISE", Stream.DRAFT)
    assert greedy == history(proposer, target, 0, MIXED)


@pytest.mark.parametrize("name", ["draft_model", "pard", "eagle3", "mtp"])
def test_a_short_proposal_is_one_graph_and_each_shape_is_recorded_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target(2, dtype=torch.float32, max_positions=160)
    proposer = proposer_of(name, target, IDS_K)
    session, width = opened(proposer), len(proposer.spec.feature_layers) * target.spec.hidden_size
    session.admit(0, [2, 3], SamplingParams(), torch.zeros(1, width) if width else None)
    launch_all, launches, recorded = cpu_graphs.launch_all, [], []
    record = CpuOps._record
    monkeypatch.setattr(cpu_graphs, "launch_all", lambda *given: launches.append(launch_all(*given)))
    monkeypatch.setattr(CpuOps, "_record", lambda *given: recorded.append(record(*given)) or recorded[-1])
    for limit in (1, 3, 4, 3, 4, 1):
        assert len(session.propose([0], [DraftLimit(limit, limit)]).trees[0].tokens) == limit
        session.observe([Commit(0, [0], [5], 0)], torch.zeros(1, 1 + limit, width) if width else None)
    assert len(launches) == 6
    assert len(recorded) == 3


def test_slots_with_unequal_backlogs_share_a_read_and_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two graphs: there are few of each, and many pairs of a number of rows and a number of levels."""
    proposer = proposer_of("draft_model", tiny_target(2, dtype=torch.float32, max_positions=160), IDS_K)
    session = opened(proposer)
    for slot in range(3):
        session.admit(slot, [2, 3], SamplingParams(), None)
    session.catch_up([0, 1, 2])
    session.observe([Commit(1, [0], [5], 1)], None)
    launch_all, launches = cpu_graphs.launch_all, []
    monkeypatch.setattr(cpu_graphs, "launch_all", lambda *given: launches.append(launch_all(*given)))
    draft = session.propose([0, 1, 2], [DraftLimit(4, 4), DraftLimit(2, 4), DraftLimit(5, 1)])
    assert draft.num_nodes == (4, 2, 1)
    assert len(launches) == 2
    assert session.reader.cache.lengths == [5, 4, 2]
