"""Figures of two targets: sums against fp64 by hand, and a comparison against logits of every prefix on its own."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.draft import Draft
from outrider.errors import CapacityError, ConfigError, RunError
from outrider.quality import compare as module
from outrider.quality.compare import Passage, Quality, compare, sums_of
from outrider.records.progress import Progress
from outrider.target import Target
from outrider.targets import load_target
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.tiny import tiny_spec, tiny_weights

PASSAGES = (
    Passage([1, 2, 3, 1, 2, 4, 1, 2, 9, 11]),
    Passage([5, 7, 7, 2, 30, 0, 3, 8], 4),
    Passage([6, 6]),
    Passage([3, 1, 4, 1, 5], 4),
)


def by_hand(reference_RV: np.ndarray, candidate_RV: np.ndarray, tokens: Sequence[int]) -> Quality:
    """The definition, token by token, with exact sums."""

    def probabilities(logits_V: np.ndarray) -> list[float]:
        powers = [math.exp(logit - max(logits_V)) for logit in logits_V]
        return [power / math.fsum(powers) for power in powers]

    equal, divergences, surprises, others = 0, [], [], []
    for p_logits_V, q_logits_V, token in zip(reference_RV, candidate_RV, tokens, strict=True):
        p_V, q_V = probabilities(p_logits_V), probabilities(q_logits_V)
        equal += p_V.index(max(p_V)) == q_V.index(max(q_V))
        divergences.append(math.fsum(p * math.log(p / q) for p, q in zip(p_V, q_V, strict=True) if p > 0))
        surprises.append(-math.log(p_V[token]))
        others.append(-math.log(q_V[token]))
    count = len(tokens)
    return Quality(
        num_positions=count,
        agreement=equal / count,
        kl=math.fsum(divergences) / count,
        reference_perplexity=math.exp(math.fsum(surprises) / count),
        perplexity=math.exp(math.fsum(others) / count),
    )


def assert_close(found: Quality, wanted: Quality, rel: float = 1e-9) -> None:
    assert (found.num_positions, found.agreement) == (wanted.num_positions, wanted.agreement)
    assert found.kl == pytest.approx(wanted.kl, rel=rel, abs=1e-12)
    assert found.perplexity == pytest.approx(wanted.perplexity, rel=rel)
    assert found.reference_perplexity == pytest.approx(wanted.reference_perplexity, rel=rel)


def prefix_logits(target: Target, tokens: Sequence[int]) -> np.ndarray:
    """Logits after the last token, from a cache that holds nothing else."""
    session = target.open(target.plan(1, len(tokens), 1))
    session.prefill([0], [tokens[:-1]])
    return session.forward([0], [tokens[-1]], Draft.empty(1)).logits_BMV[0][0].numpy()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 9), width=st.integers(2, 40), scale=st.floats(0.1, 12))
def test_sums_are_those_by_hand(seed: int, num_rows: int, width: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    reference_RV, candidate_RV = scale * random.standard_normal((2, num_rows, width))
    tokens = random.integers(width, size=num_rows)
    found = sums_of(*map(torch.from_numpy, (reference_RV, candidate_RV, tokens))).quality
    assert_close(found, by_hand(reference_RV, candidate_RV, list(tokens)))


def test_the_example_of_the_module() -> None:
    found = sums_of(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])).quality
    assert found.kl == pytest.approx(-math.log(3 / 4) / 2 - math.log(1 / 4) / 2 - math.log(2))
    assert round(found.kl, 3) == 0.144
    assert (found.reference_perplexity, found.perplexity) == pytest.approx((2, 4 / 3))


def test_tokens_that_the_reference_excludes_add_nothing_and_those_of_the_candidate_are_infinite() -> None:
    full, masked = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -math.inf]])
    token = torch.tensor([0])
    assert sums_of(masked, full, token).kl == pytest.approx(math.log(3 / 2))
    assert sums_of(masked, masked, token).kl == 0
    assert sums_of(full, masked, token).kl == math.inf


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_figures_are_those_of_every_prefix_read_alone(rows: int) -> None:
    reference, candidate = tiny_target(0), tiny_target(1)
    places = [(passage, end) for passage in PASSAGES for end in range(passage.start, len(passage.tokens))]
    logits_RV = [
        np.stack([prefix_logits(target, passage.tokens[:end]) for passage, end in places])
        for target in (reference, candidate)
    ]
    wanted = by_hand(*logits_RV, [passage.tokens[end] for passage, end in places])
    assert 0 < wanted.agreement < 1 or wanted.kl > 0.1, "the two differ"
    heard: list[Progress] = []
    found = compare(reference, candidate, PASSAGES, rows=rows, listen=heard.append)
    assert_close(found, wanted)
    assert [heard[-1].done, heard[-1].total] == [len(places), len(places)]


def test_a_target_against_itself() -> None:
    found = compare(tiny_target(3), tiny_target(3), PASSAGES)
    assert (found.agreement, found.kl) == (1, 0)
    assert found.perplexity == found.reference_perplexity


def test_transformers_targets_take_part(tmp_path: Path) -> None:
    directory = str(write_tiny_model(tmp_path / "model"))
    native, other = (load_target(directory, dtype="float64", backend=backend) for backend in ("native", "hf"))
    found = compare(native, other, PASSAGES)
    assert found.agreement == 1
    assert found.kl == pytest.approx(0, abs=1e-6)  # transformers rotates in fp32
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-4)


class _Words:
    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def with_words(*tokens: str) -> NativeTarget:
    spec = tiny_spec(vocab_size=3)
    return NativeTarget.from_weights(
        spec, tiny_weights(spec, 0), "-".join(tokens), torch.float64, tokenizer=_Words(*tokens)
    )


def test_two_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match="tiny-1 has 30 tokens and tiny-0 has 31"):
        compare(tiny_target(0), tiny_target(1, vocab_size=30), PASSAGES)
    with pytest.raises(ConfigError, match="token 1 of a-b-c is 'b', and not of a-c-b"):
        compare(with_words("a", "b", "c"), with_words("a", "c", "b"), PASSAGES)
    passages = [Passage([0, 1, 2])]
    assert compare(with_words("a", "b", "c"), with_words("a", "b", "c"), passages).agreement == 1


@pytest.mark.parametrize("passages", [(), (Passage([1]),), (Passage([1, 2], 0),), (Passage([1, 2, 3], 3),)])
def test_texts_without_a_position_are_refused(passages: tuple[Passage, ...]) -> None:
    with pytest.raises(ConfigError, match="at least two tokens"):
        compare(tiny_target(0), tiny_target(1), passages)


def test_a_text_beyond_the_context_of_either_is_refused() -> None:
    passages = [Passage([1] * 20)]
    short, long = tiny_target(0, max_positions=16), tiny_target(1)
    for pair in ((short, long), (long, short)):
        with pytest.raises(ConfigError, match="20 tokens and tiny-0 has a context of 16"):
            compare(*pair, passages)


def test_memory_is_checked_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    with pytest.raises(CapacityError, match=r"reading 10 tokens with tiny-0 needs 0\.0 GB"):
        compare(tiny_target(0), tiny_target(1), PASSAGES)


def test_logits_that_are_not_numbers_are_refused() -> None:
    spec = tiny_spec()
    weights = tiny_weights(spec, 0)
    weights["model.norm.weight"][0] = math.nan
    broken = NativeTarget.from_weights(spec, weights, "broken", torch.float64)
    with pytest.raises(RunError, match="broken gives logits that are NaN"):
        compare(tiny_target(0), broken, PASSAGES)
