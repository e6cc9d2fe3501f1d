"""The n-gram index against scans of the whole context that state the semantics of vLLM and of Hugging Face."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from outrider.errors import ConfigError
from outrider.proposers.lookup.ngram_index import MAX_OCCURRENCES, NgramIndex, NgramMatch

TOKENS = st.lists(st.integers(0, 3), max_size=40)
RANGES = st.tuples(st.integers(1, 3), st.integers(0, 3)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def occurrences(tokens: list[int], n: int) -> list[int]:
    """Ends of the earlier occurrences of the last n tokens, earliest first."""
    suffix = tokens[-n:]
    return [end for end in range(n - 1, len(tokens) - 1) if tokens[end - n + 1 : end + 1] == suffix]


def scan(tokens: list[int], min_n: int, max_n: int, size: int, policy: str, num: int) -> list[tuple[list[int], int]]:
    """The candidates by definition, as (tokens, n)."""
    found: list[tuple[list[int], int]] = []
    for n in range(min(max_n, len(tokens) - 1), min_n - 1, -1):
        ends = occurrences(tokens, n)
        for end in (ends if policy == "earliest" else ends[::-1])[:MAX_OCCURRENCES]:
            draft = tokens[end + 1 : end + 1 + size]
            if draft and len(found) < num and not any(other[: len(draft)] == draft for other, _ in found):
                found.append((draft, n))
    return found


def build(tokens: list[int], min_n: int, max_n: int, cut: int) -> NgramIndex:
    """An index grown in three steps, with little room at first."""
    index = NgramIndex(min_n, max_n, reserve=1)
    index.extend(tokens[:cut])
    for token in tokens[cut : cut + 3]:
        index.extend([token])
    index.extend(np.array(tokens[cut + 3 :], np.int32))
    return index


def plain(matches: list[NgramMatch]) -> list[tuple[list[int], int]]:
    return [(match.tokens.tolist(), match.n) for match in matches]


@settings(deadline=None)
@given(
    TOKENS, RANGES, st.integers(0, 6), st.sampled_from(["earliest", "latest"]), st.integers(1, 12), st.integers(0, 9)
)
def test_drafts_are_those_of_a_scan(tokens, lengths, size, policy, num, cut):
    index = build(tokens, *lengths, cut)
    assert index.tokens.tolist() == tokens
    assert plain(index.draft(size, policy, num)) == scan(tokens, *lengths, size, policy, num)


@settings(deadline=None)
@given(TOKENS, RANGES, st.integers(1, 6))
def test_earliest_is_vllm_ngram(tokens, lengths, size):
    """vLLM: the longest n that matches, its earliest occurrence, up to `size` tokens within the context."""
    min_n, max_n = lengths
    best: list[int] = []
    for n in range(min_n, max_n + 1):
        ends = occurrences(tokens, n) if n < len(tokens) else []
        if ends:
            best = tokens[ends[0] + 1 : ends[0] + 1 + size]
    index = build(tokens, min_n, max_n, 5)
    assert [match.tokens.tolist() for match in index.draft(size)] == ([best] if best else [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=25), st.integers(1, 4), st.integers(1, 6))
def test_earliest_from_one_is_hugging_face_prompt_lookup(tokens, max_n, size):
    theirs = PromptLookupCandidateGenerator(num_output_tokens=size, max_matching_ngram_size=max_n, max_length=1000)
    candidates, _ = theirs.get_candidates(torch.tensor([tokens]))
    ours = NgramIndex(1, max_n)
    ours.extend(tokens)
    drafted = [token for match in ours.draft(size) for token in match.tokens.tolist()]
    assert candidates[0].tolist() == tokens + drafted


def test_the_example_of_the_module():
    index = NgramIndex(1, 2)
    index.extend([1, 2, 3, 1, 2, 4, 1, 2])
    assert plain(index.draft(8)) == [([3, 1, 2, 4, 1, 2], 2)]
    assert plain(index.draft(8, "latest", 2)) == [([4, 1, 2], 2), ([3, 1, 2, 4, 1, 2], 2)]
    assert [match.end for match in index.draft(8, "latest", 2)] == [4, 1]


def test_a_run_matches_itself_with_overlap():
    index = NgramIndex(2, 3)
    index.extend([7] * 6)
    assert plain(index.draft(4)) == [([7, 7, 7], 3)]
    assert plain(index.draft(4, "latest")) == [([7], 3)]


def test_large_token_ids_and_growth_keep_every_match():
    """Two copies of 5,000 distinct 1-grams: the second copy is drafted from the first at every position."""
    block = (np.random.default_rng(0).permutation(5000) + 2**31 - 5001).astype(np.int32)
    index = NgramIndex(1, 4, reserve=16)
    index.extend(block)
    for i in range(0, 4990, 499):
        index.extend(block[len(index) - 5000 : i + 1])
        assert index.draft(3)[0].tokens.tolist() == block[i + 1 : i + 4].tolist()
    assert len(index) == 5000 + 4492
    assert index.memory_bytes < 4 * 36 * 20_000


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"\[3, 2\]"):
        NgramIndex(3, 2)
    with pytest.raises(ConfigError, match="did you mean 'latest'"):
        NgramIndex(1, 2).draft(3, "lates")  # type: ignore[arg-type]
