"""Every registered proposer, under every check of the contract, on drawn traffic."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from outrider.models.spec import RopeSpec
from outrider.proposer import Proposer
from outrider.proposers import proposer_class, proposer_names
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import (
    Adversary,
    Case,
    Oracle,
    RandomTrees,
    check_contract,
    tiny_experts,
    tiny_gemma3,
    tiny_llama4,
    tiny_spec,
    tiny_target,
)
from outrider.testing.contract import CHECKS

VOCAB, POSITIONS = 31, 64
TARGETS: dict[int, Target] = {}


def target_of(seed: int) -> Target:
    return TARGETS.setdefault(seed, tiny_target(seed, vocab_size=VOCAB, max_positions=POSITIONS))


tokens = st.integers(0, VOCAB - 2)
phrases = st.lists(tokens, min_size=1, max_size=6)
prompts = st.builds(lambda phrase, times, tail: tuple(phrase * times + tail), phrases, st.integers(1, 5), phrases)
samplings = st.one_of(
    st.just(SamplingParams()),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.3, 0.7, 1.0]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.9]),
        min_p=st.sampled_from([0.0, 0.05]),
        seed=st.integers(0, 2**40),
    ),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    many = {"min_size": count, "max_size": count}
    return Case(
        prompts=tuple(draw(st.lists(prompts, **many))),
        samplings=tuple(draw(st.lists(samplings, **many))),
        limits=tuple(draw(st.lists(st.sampled_from([1, 2, 7, 25, 10**6]), **many))),
        arrivals=tuple(draw(st.lists(st.integers(0, 6), **many))),
        cancels=tuple(draw(st.lists(st.sampled_from([None, None, None, 3]), **many))),
        max_batch=draw(st.integers(1, 3)),
        num_nodes=draw(st.sampled_from([None, 1, 3, 7])),
        ignore_eos=draw(st.booleans()),
        prefill_chunk=draw(st.sampled_from([None, 1, 5])),
    )


def scripted(name: str, target: Target, seed: int) -> Proposer:
    if name == "all_right":
        return Oracle(target).proposer()
    if name == "adversary":
        return Adversary(target).proposer()
    return RandomTrees(target, seed=seed).proposer()


SCRIPTED = ("all_right", "adversary", "random_trees")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*proposer_names(), *SCRIPTED])
@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(case=cases(), seed=st.integers(0, 3))
def test_contract(name: str, check: str, case: Case, seed: int) -> None:
    target = target_of(seed % 2)
    proposer = scripted(name, target, seed) if name in SCRIPTED else proposer_class(name).example(target, seed)
    CHECKS[check](target, proposer, case)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in proposer_names()), ("draft_model", torch.float64)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_windows_and_two_rotations(name: str, dtype: torch.dtype) -> None:
    """Gemma 3: prompts longer than a window, norms behind every product, scaled embeddings in recorded chains."""
    target = tiny_target(dtype=dtype, spec=tiny_gemma3(VOCAB, POSITIONS, window=9))
    check_contract(proposer_class(name), num_cases=1, target=target)


@pytest.mark.parametrize("name", ["draft_model", "eagle3", "mtp"])
def test_partial_rotation(name: str) -> None:
    """Phi-4: three quarters of a head rotate, by LongRoPE, and a text ends with its original context."""
    rope = RopeSpec(
        type="longrope",
        factor=4.0,
        original_max_position_embeddings=POSITIONS,
        short_factor=(1.0, 1.2, 2.0),
        long_factor=(1.0, 4.0, 9.0),
        partial_rotary_factor=0.75,
    )
    spec = tiny_spec(VOCAB, 4 * POSITIONS, family="phi3", fused=True, head_dim=8, rope=rope)
    check_contract(proposer_class(name), num_cases=1, target=tiny_target(dtype=torch.float32, spec=spec))


@pytest.mark.parametrize("name", ["draft_model", "eagle3", "suffix"])
def test_experts(name: str) -> None:
    """A mixture of experts: the experts of a row do not depend on the rows that are verified with it."""
    target = tiny_target(dtype=torch.float32, spec=tiny_experts(VOCAB, POSITIONS))
    check_contract(proposer_class(name), num_cases=1, target=target)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in ("draft_model", "eagle3", "suffix")), ("draft_model", torch.float64)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_keys_and_values_in_int8(name: str, dtype: torch.dtype) -> None:
    """Rows verified together read the same rounded keys and values as rows decoded one by one."""
    target = tiny_target(2, dtype=dtype, vocab_size=VOCAB, max_positions=POSITIONS).with_kv_dtype("int8")
    check_contract(proposer_class(name), num_cases=1, target=target)


@pytest.mark.parametrize("name", ["draft_model", "eagle3", "suffix"])
def test_chunks(name: str) -> None:
    """Llama 4: drafts that cross the end of a chunk, queries that grow, layers that do not rotate, a shared expert."""
    target = tiny_target(dtype=torch.float32, spec=tiny_llama4(VOCAB, POSITIONS, chunk=11))
    check_contract(proposer_class(name), num_cases=1, target=target)
