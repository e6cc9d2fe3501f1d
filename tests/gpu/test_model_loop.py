"""The recorded draft of a draft model: the same chains as token by token, one copy back a step, few captures."""

import pytest
import torch
from counted_steps import questions

from outrider import verify
from outrider.engine import Engine
from outrider.ops.graphs import GraphPool
from outrider.proposers import draft_model
from outrider.proposers.draft_model import DraftModelConfig, DraftModelProposer, cut_from
from outrider.sampling import SamplingParams
from outrider.testing import tiny_target

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [4, 4], [8, 1, 2, 8, 1, 2]]


def engine_of(seed: int, graphs: GraphPool | None, monkeypatch: pytest.MonkeyPatch, max_batch: int = 3) -> Engine:
    """Of a draft model that is sometimes right: one of the target's layers; every other one drafts half the tokens."""
    monkeypatch.setattr(draft_model, "default_graph_pool", lambda device: graphs)
    target = tiny_target(seed, max_positions=96)
    ids_K = torch.arange(0, target.spec.vocab_size, 2) if seed % 2 else None
    config = DraftModelConfig(layers="0", num_nodes=3)
    return Engine(target, DraftModelProposer(cut_from(target, "0"), config, 0, ids_K), max_batch=max_batch)


def drafts_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[list[int]]], list[tuple[int, ...]]]:
    """The tokens of every draft of a small run, and its texts."""
    drafts: list[list[list[int]]] = []
    propose = engine.session.propose

    def spy(slots, limits):
        limits = [replace_limit(limit, len(drafts) + slot) for slot, limit in zip(slots, limits, strict=True)]
        draft = propose(slots, limits)
        drafts.append([list(tree.tokens) for tree in draft.trees])
        return draft

    monkeypatch.setattr(engine.session, "propose", spy)
    texts = engine.generate(PROMPTS, SamplingParams(max_tokens=24, ignore_eos=True))
    return drafts, [tuple(text.tokens) for text in texts]


def replace_limit(limit, number: int):
    """Limits from nothing to more than the method drafts, so that pending tokens grow and chains are cut."""
    most = number % 5
    return limit._replace(num_nodes=min(limit.num_nodes, most), max_depth=min(limit.max_depth, most))


@pytest.mark.parametrize("seed", range(4))
def test_the_loop_drafts_what_is_drafted_token_by_token(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = GraphPool("cpu")
    by_token, texts = drafts_of(engine_of(seed, None, monkeypatch), monkeypatch)
    recorded, same_texts = drafts_of(engine_of(seed, graphs, monkeypatch), monkeypatch)
    assert same_texts == texts
    assert recorded == by_token
    assert any(len(tokens) == 3 for draft in recorded for tokens in draft)
    assert 1 <= graphs.num_captured <= 3  # 1, 2 and 3 slots


def test_a_drafted_step_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verify.VERIFIERS, "coupled", verify._coupled_at_once)
    engine = engine_of(0, GraphPool("cpu"), monkeypatch, max_batch=2)
    assert questions(engine, PROMPTS[:2], max_new_tokens=60, num_steps=4) == ["tolist"] * 4
