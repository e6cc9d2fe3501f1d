"""Scripted acceptance: as often right as it was told to be, and never more than a draft."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import load_proposer
from outrider.proposers.method_spec import method_specs
from outrider.proposers.none import NoProposer
from outrider.proposers.oracle_transcripts import Transcripts
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import tiny_target

PROMPTS = [[1, 2, 3], [4, 5], [9, 9, 1, 2]]
NUM_TOKENS = 240


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(max_positions=250, dtype=torch.float32)  # on the compiled kernels, whose rows are exact


@cache
def plain(target: Target, sampling: SamplingParams) -> list[tuple[int, ...]]:
    engine = Engine(target, NoProposer(), max_batch=len(PROMPTS))
    said = engine.generate(PROMPTS, replace(sampling, ignore_eos=True, max_tokens=NUM_TOKENS))
    return [one.tokens for one in said]


def played(target: Target, sampling: SamplingParams, **settings: object) -> list[StepRecord]:
    """The steps of answering the prompts, which must be plain decoding's answers."""
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, load_proposer("oracle", target, **settings), max_batch=2, record=records.append)
    said = engine.generate(PROMPTS, replace(sampling, ignore_eos=True, max_tokens=NUM_TOKENS))
    assert [one.tokens for one in said] == plain(target, sampling)
    return [record for record in records if isinstance(record, StepRecord)]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=1.0, seed=3)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("siblings", [0, 2])
def test_acceptance_is_the_profile_within_its_binomial_interval(
    target: Target, sampling: SamplingParams, siblings: int
) -> None:
    profile = (0.9, 0.7, 0.5)
    width = siblings + 1
    steps = played(target, sampling, acceptance=profile, num_nodes=3 * width, siblings=siblings, num_known=250)
    full = [slot.num_accepted for step in steps for slot in step.slots if slot.draft_depth == 3 and not slot.finished]
    assert len(full) > 150
    assert all(step.is_chain == (siblings == 0) for step in steps if step.num_rows > 2)
    for place, share in enumerate(profile):
        reached = sum(accepted >= place for accepted in full)
        right = sum(accepted > place for accepted in full)
        assert abs(right - share * reached) <= 3.3 * math.sqrt(share * (1 - share) * reached)


def test_certain_profiles_are_exact(target: Target) -> None:
    never = Counter(
        slot.num_accepted for step in played(target, SamplingParams(), acceptance=(0.0,)) for slot in step.slots
    )
    assert set(never) == {0}
    always = played(target, SamplingParams(), acceptance=(1.0,), num_nodes=5, num_known=250)
    assert all(slot.num_accepted == slot.draft_depth for step in always for slot in step.slots if not slot.finished)


def test_a_run_repeats_exactly_and_another_seed_is_another_script(target: Target) -> None:
    first, again, other = (
        [[slot.num_accepted for slot in step.slots] for step in played(target, SamplingParams(), seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_behind_what_is_known_nothing_is_drafted(target: Target) -> None:
    steps = played(target, SamplingParams(), num_known=40)
    drafted = [slot.context_length for step in steps for slot in step.slots if slot.num_nodes]
    assert max(drafted) <= 40 + max(map(len, PROMPTS))


def test_transcripts_are_written_once_and_forgotten_in_the_end() -> None:
    target = tiny_target(max_positions=24)
    assert Transcripts.of(target) is Transcripts.of(target)
    known = Transcripts(num_kept=4)
    first = known.continuation(target, [5, 9], SamplingParams(seed=1), 6)
    assert known.continuation(target, [5, 9, *first[:2]], SamplingParams(seed=2), 4) == first[2:]
    assert known.num_written == 1
    assert known.continuation(target, [5, 9], SamplingParams(temperature=1.0), 6)
    assert known.continuation(target, [5, 9], SamplingParams(), 7)[:6] == first
    assert known.num_written == 3
    for token in range(4):
        known.continuation(target, [token], SamplingParams(), 1)
    assert known.continuation(target, [5, 9], SamplingParams(), 6) == first
    assert known.num_written == 8


@pytest.mark.parametrize("verification", ["rejection", "block"])
def test_sampled_text_that_leaves_its_transcript_is_not_drafted_for(target: Target, verification: str) -> None:
    records: list[StepRecord | PrefillRecord] = []
    proposer = load_proposer("oracle", target, acceptance=(1.0,), num_known=250)
    engine = Engine(target, proposer, verification=verification, record=records.append)
    engine.generate(PROMPTS[:1], SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=60))
    drafted = [slot.num_nodes for record in records if isinstance(record, StepRecord) for slot in record.slots]
    first_without = drafted.index(0)
    assert 0 < first_without < len(drafted) - 1
    assert not any(drafted[first_without:])


def test_a_bare_value_is_the_acceptance() -> None:
    (short,) = method_specs(["oracle:0.8"])
    assert short.settings == {"acceptance": (0.8,)}
    (profile,) = method_specs(["oracle:acceptance=0.9/0.7/0.5,num_nodes=6"])
    assert profile.settings == {"acceptance": (0.9, 0.7, 0.5), "num_nodes": 6}
    (both,) = method_specs(["oracle:0.9/0.5,num_nodes=2"])
    assert both.settings == {"acceptance": (0.9, 0.5), "num_nodes": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oracle:1.5", "acceptance=1.5 must be probabilities"),
        ("oracle:0.5/x", "acceptance=x must be a number"),
        ("oracle:0.5,num_nodes=2,siblings=2", "num_nodes=2 must be between 3"),
        ("ngram:8", "no setting before '8'"),
    ],
)
def test_wrong_settings_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        method_specs([text])


def test_results_are_marked() -> None:
    target = tiny_target()
    assert load_proposer("oracle", target).scripted
    assert not load_proposer("ngram", target).scripted
