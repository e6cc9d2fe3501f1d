"""Memory stays flat under continuous traffic, by counts: for every registered method."""

import gc

import numpy as np
import pytest
import torch

from outrider.engine import Engine
from outrider.proposers import proposer_class, proposer_names
from outrider.targets.native import NativeSession
from outrider.testing import tiny_target
from outrider.testing.traffic import drive

WARM_UP, MORE = 500, 700
SLACK = 8


def counts() -> tuple[int, int]:
    """Live tensors, and live arrays that own memory."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]  # not isinstance: it wakes objects that warn when touched
    tensors = sum(issubclass(kind, torch.Tensor) for kind in kinds)
    return tensors, sum(issubclass(kind, np.ndarray) for kind in kinds)


@pytest.mark.parametrize("name", proposer_names())
def test_nothing_grows_after_warm_up(name: str) -> None:
    target = tiny_target(dtype=torch.float32, max_positions=64)
    proposer = proposer_class(name).example(target, 0 if proposer_class(name).example(target, 0).learns else 1)
    engine = Engine(target, proposer, max_batch=2)
    session = engine.target
    assert isinstance(session, NativeSession)
    drive(engine, WARM_UP)
    addresses = (session.cache.keys_LCHSD.data_ptr(), session.cache.values_LCHSD.data_ptr())
    programs, bytes_before, before = len(session._programs), engine.session.num_bytes, counts()
    drive(engine, MORE)
    assert engine.num_steps == WARM_UP + MORE
    assert (session.cache.keys_LCHSD.data_ptr(), session.cache.values_LCHSD.data_ptr()) == addresses
    assert len(session._programs) == programs
    after = counts()
    assert after[0] <= before[0] + SLACK, "tensors are kept"
    assert after[1] <= before[1] + SLACK, "arrays are kept"
    if not proposer.learns:
        engine.reset()
        assert engine.session.num_bytes <= bytes_before + SLACK


def test_traffic_never_runs_dry_and_repeats() -> None:
    target = tiny_target()
    engine = Engine(target, proposer_class("none").example(target, 0), max_batch=3)
    for _ in range(30):
        drive(engine, 1, period=2)
        assert len(engine.batch.running) + len(engine.batch.free_slots()) == 3
        assert engine.waiting
    assert len({request.prompt for request in engine.waiting}) <= 2
