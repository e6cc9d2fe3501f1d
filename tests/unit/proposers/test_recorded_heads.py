"""Drafting from recorded kernels gives the tokens of drafting kernel by kernel, and records each shape once."""

import pytest
import torch

from outrider import Engine
from outrider.draft import Draft
from outrider.models.eagle3 import Eagle3Head
from outrider.models.mtp import MtpModule
from outrider.models.ops import Ops
from outrider.models.ops_cpu import CpuOps
from outrider.proposers import proposer_class
from outrider.testing import tiny_target

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [4, 4], [8, 1, 2, 8, 1, 2]]
PLAIN = {Eagle3Head: False, MtpModule: False}


def trees_of(engine: Engine) -> list[object]:
    """All drafts of a few requests."""
    drafts: list[Draft] = []
    propose = engine.session.propose

    def watched(*arguments: object) -> Draft:
        drafts.append(propose(*arguments))
        return drafts[-1]

    engine.session.propose = watched
    engine.generate(PROMPTS, max_new_tokens=14, ignore_eos=True)
    return [draft.trees for draft in drafts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "seed"), [("eagle3", 1), ("eagle3", 3), ("eagle3", 6), ("mtp", 1), ("mtp", 2)])
def test_recorded_drafts_are_the_same(
    name: str, seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target(2, dtype=dtype, max_positions=64)
    proposer = proposer_class(name).example(target, seed)
    recorded = trees_of(Engine(target, proposer, max_batch=2))
    monkeypatch.setattr(CpuOps, "replay", Ops.replay)
    for head, value in PLAIN.items():
        monkeypatch.setattr(head, "chains", value)
    assert recorded == trees_of(Engine(target, proposer, max_batch=2))
    assert any(tree.tokens for trees in recorded for tree in trees)


def test_each_shape_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(2, dtype=torch.float32, max_positions=64)
    proposer = proposer_class("eagle3").example(target, 3)
    engine = Engine(target, proposer, max_batch=2)
    trees_of(engine)
    known = dict(engine.session.programs)
    assert known
    trees_of(engine)
    assert {key: program for key, program in engine.session.programs.items() if key in known} == known
    assert all(engine.session.programs[key] is program for key, program in known.items())
