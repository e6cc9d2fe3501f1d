"""The native target through graphs: the contract, few captures, nothing stale, one copy back."""

import pytest
import torch
from counted_steps import questions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider import verify
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.ops.graphs import GraphPool
from outrider.ops.torch import TorchOps
from outrider.proposers import draft_model, proposer_class
from outrider.proposers.drafting import recurrent
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.targets.native import NativeTarget
from outrider.testing import draw_case, tiny_spec, tiny_target, tiny_weights
from outrider.testing.contract import CHECKS
from outrider.verify import VerifyInput, coupled_chains


def recorded_target(device: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object) -> NativeTarget:
    spec = tiny_spec(max_positions=64, **changes)
    ops = TorchOps(dtype, device, fused=dtype != torch.float64, graphs=GraphPool(device))
    return NativeTarget.from_weights(spec, tiny_weights(spec, seed), f"recorded-{seed}", dtype, device, ops=ops)


def graphs_of(target: NativeTarget) -> GraphPool:
    return target.decoder.ops._replayer.graphs  # type: ignore[attr-defined]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("name", "seed"), [("none", 0), ("ngram", 1), ("eagle3", 1), ("eagle3", 3), ("draft_model", 3), ("draft_model", 9)]
)
def test_contract(name: str, seed: int, check: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two heads the first grows trees, and the second drafts chains from the recorded loop, as the draft models
    do, of which one drafts a part of the vocabulary."""
    target = recorded_target(device)
    monkeypatch.setitem(verify.VERIFIERS, "coupled", verify._coupled_at_once)  # the way of a GPU
    for module in (draft_model, recurrent):
        monkeypatch.setattr(module, "default_graph_pool", lambda device: graphs_of(target))
    case = draw_case(seed, target.spec.vocab_size, target.spec.max_positions)
    CHECKS[check](target, proposer_class(name).example(target, seed), case)
    assert graphs_of(target).num_captured > 0


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_recorded_steps_equal_eager_ones(device: str, data: st.DataObject) -> None:
    """Batches and drafts of changing size through the same buffers, with stale cache positions poisoned."""
    ours, theirs = recorded_target(device), tiny_target(0, max_positions=64)
    sessions = [target.open(target.plan(4, 64, 9), feature_layers=(1,)) for target in (ours, theirs)]
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9, 7]]
    for session in sessions:
        session.prefill([0, 1, 2, 3], prompts)
    for _ in range(5):
        slots = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
        chains = [data.draw(st.lists(st.integers(0, 29), max_size=4)) for _ in slots]
        roots = data.draw(st.lists(st.integers(0, 29), min_size=len(slots), max_size=len(slots)))
        forwards = [
            session.forward(slots, roots, Draft.of_chains(chains, where))
            for session, where in zip(sessions, (device, "cpu"), strict=True)
        ]
        for name in ("logits_BMV", "features_BMF"):
            for chain, got, want in zip(chains, *(getattr(forward, name) for forward in forwards), strict=True):
                rows = len(chain) + 1
                torch.testing.assert_close(got[:rows].cpu(), want[:rows], atol=1e-9, rtol=1e-9)
        for session in sessions:
            session.cache.commit(slots, [[1][: len(chain)] for chain in chains])
            for slot in range(4):
                session.cache.keys_LCHSD[:, slot, :, session.cache.lengths[slot] :] = 50.0
                session.cache.values_LCHSD[:, slot, :, session.cache.lengths[slot] :] = 50.0


def test_few_recordings_serve_many_shapes(device: str) -> None:
    target = recorded_target(device)
    session = target.open(target.plan(8, 64, 9))
    session.prefill(list(range(8)), [[1, 2, 3]] * 8)
    for batch in range(1, 9):
        session.forward(list(range(batch)), [4] * batch, Draft.of_chains([[5, 6]] * batch, device))
    assert graphs_of(target).num_captured == 6  # 1, 2, 3, 4, 6 and 8 slots
    session.forward([0], [4], Draft.of_chains([[7, 8]], device))
    assert graphs_of(target).num_captured == 6
    assert graphs_of(target).num_bytes > 0


def test_results_outlive_the_next_step(device: str) -> None:
    target = recorded_target(device)
    session = target.open(target.plan(2, 64, 4), feature_layers=(1,))
    session.prefill([0], [[1, 2, 3]])
    first = session.forward([0], [4], Draft.of_chains([[5]], device))
    kept = first.logits_BMV.clone(), first.features_BMF.clone()  # type: ignore[union-attr]
    session.forward([0], [9], Draft.of_chains([[8]], device))
    assert torch.equal(first.logits_BMV, kept[0])
    assert torch.equal(first.features_BMF, kept[1])  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_chains_are_accepted_alike_on_the_device(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B, N, V = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 5)), 4
    logits_BMV = torch.randn(B, N + 1, V, generator=generator, dtype=torch.float64)
    tokens_BN = torch.randint(0, V, (B, N), generator=generator)
    counts = [data.draw(st.integers(0, N)) for _ in range(B)]
    samplings = [SamplingParams(temperature=data.draw(st.sampled_from([0.0, 0.0, 1.0])), seed=seed) for _ in range(B)]
    given_ = VerifyInput(logits_BMV, [7 * b for b in range(B)], samplings)
    on_device = Draft.on_device(tokens_BN, counts)
    want = verify.coupled(Draft.of_chains([row[:n] for row, n in zip(tokens_BN.tolist(), counts, strict=True)]), given_)
    assert coupled_chains(on_device, given_) == want
    assert [tree.tokens for tree in on_device.trees] == [
        row[:n] for row, n in zip(tokens_BN.tolist(), counts, strict=True)
    ]
    on_device.validate(V)


def test_a_plain_step_asks_the_device_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verify.VERIFIERS, "coupled", verify._coupled_at_once)
    engine = Engine(recorded_target(device), NoProposer(), max_batch=3)
    assert questions(engine, [[1, 2, 3], [4, 5], [6, 7, 8]], max_new_tokens=20, num_steps=5) == ["tolist"] * 5
