"""Memory stays flat under continuous traffic, by counts: for every registered method."""

import gc
from collections import Counter

import numpy as np
import pytest
import torch

from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import proposer_class, proposer_names
from outrider.targets.native import NativeSession
from outrider.testing import tiny_target
from outrider.testing.traffic import NUM_REQUESTS, drive

WARM_UP, MORE = 200, 800


def living() -> dict[str, int]:
    """Live tensors and arrays; types are counted, since asking the objects themselves wakes lazy ones that warn."""
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    wanted = {"tensors": torch.Tensor, "arrays": np.ndarray}
    return {
        name: sum(count for kind, count in kinds.items() if issubclass(kind, base)) for name, base in wanted.items()
    }


@pytest.mark.parametrize("name", proposer_names())
def test_nothing_grows_after_warm_up(name: str) -> None:
    target = tiny_target(dtype=torch.float32, max_positions=64)
    proposer = proposer_class(name).example(target, 1)
    engine = Engine(target, proposer, max_batch=2)
    session = engine.target
    assert isinstance(session, NativeSession)
    most = drive(engine, WARM_UP)
    cache = (session.cache.keys_LCHSD.data_ptr(), session.cache.values_LCHSD.data_ptr())
    graphs, held, before = len(session._graph_cache), engine.session.num_bytes, living()
    later = drive(engine, MORE)
    assert engine.num_steps >= WARM_UP + MORE
    assert (session.cache.keys_LCHSD.data_ptr(), session.cache.values_LCHSD.data_ptr()) == cache
    assert len(session._graph_cache) == graphs
    assert living() == before
    assert engine.session.num_bytes == held
    assert later == most


def test_traffic_queues_and_repeats() -> None:
    target = tiny_target()
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, proposer_class("none").example(target, 0), max_batch=3, record=records.append)
    drive(engine, 1)
    steps = [record for record in records if isinstance(record, StepRecord)]
    first = [[(slot.context_length, slot.num_emitted) for slot in step.slots] for step in steps]
    assert max(map(len, first)) == 3
    assert sum(slot.finished for step in steps for slot in step.slots) == NUM_REQUESTS
    drive(engine, 1)
    again = [record for record in records if isinstance(record, StepRecord)][len(steps) :]
    assert [[(slot.context_length, slot.num_emitted) for slot in step.slots] for step in again] == first
