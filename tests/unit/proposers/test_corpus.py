"""Corpora on disk against plain counting over all documents: counts, drafts, files, damage, saved answers."""

import gc
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider import Engine, load_proposer, load_target
from outrider.draft import Tree
from outrider.errors import CheckpointError, ConfigError
from outrider.metrics import StepRecord, summarize
from outrider.noise import Stream
from outrider.proposer import Commit, DraftLimit, SessionPlan
from outrider.proposers.corpus.index import CorpusIndex
from outrider.proposers.corpus.order import SEPARATOR, suffix_order
from outrider.proposers.corpus.store import Corpus, Vocabulary, joined, merge_into, write_corpus
from outrider.proposers.lookup.suffix_tree import Mode
from outrider.proposers.suffix import SuffixConfig, SuffixProposer
from outrider.sampling import SamplingParams
from outrider.testing.directory import write_tiny_model

VOCAB = 5
DEPTH = 9
DOCUMENTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=25), min_size=1, max_size=6)
WORDS = Vocabulary(size=VOCAB, digest="")


def index_of(documents: Sequence[Sequence[int]], depth: int = DEPTH, vocab: int = VOCAB) -> CorpusIndex:
    tokens = joined(documents)
    return CorpusIndex(tokens, suffix_order(tokens, depth), depth, vocab)


def count(documents: Sequence[Sequence[int]], string: Sequence[int]) -> int:
    size = len(string)
    return sum(list(text[at : at + size]) == list(string) for text in documents for at in range(len(text) - size + 1))


def children(documents: Sequence[Sequence[int]], string: list[int]) -> list[tuple[int, int]]:
    """Tokens that follow, with their counts: the most frequent first, of equals the lowest."""
    found = [(count(documents, [*string, token]), token) for token in range(VOCAB)]
    return sorted(((number, token) for number, token in found if number), key=lambda one: (-one[0], one[1]))


def grown(
    documents: Sequence[Sequence[int]], string: list[int], size: int, least: float, mode: str
) -> tuple[list[int], list[int], list[float]]:
    """The draft after `string`: repeatedly the most probable candidate, in path mode of the first children only."""
    tokens: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    frontier: list[tuple[np.float32, list[int], int]] = [(np.float32(1), string, -1)]
    is_root = True
    while frontier and len(tokens) < size:
        prob, node, parent = frontier.pop(frontier.index(max(frontier, key=lambda one: one[0])))
        if not is_root:
            tokens.append(node[-1])
            parents.append(parent)
            probs.append(float(prob))
            parent = len(tokens) - 1
        is_root = False
        if len(node) == DEPTH:
            continue
        total = count(documents, node)
        offered = children(documents, node)
        for number, token in offered[:1] if mode == "path" else sorted(offered, key=lambda one: one[1]):
            share = prob * (np.float32(number) / np.float32(total))
            if mode == "tree" and number != total:
                share = prob * np.float32(number) / np.float32(total)
            if share >= np.float32(least):
                frontier.append((share, [*node, token], parent))
    return tokens, parents, probs


@given(DOCUMENTS, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_suffixes_are_sorted_by_their_first_tokens(documents: list[list[int]], depth: int) -> None:
    tokens = joined(documents)
    order = suffix_order(tokens, depth)
    assert sorted(order.tolist()) == list(range(len(tokens)))
    # behind the end, as a document's end, comes what sorts before every token
    padded = [*tokens.tolist(), *[SEPARATOR] * depth]
    keys = [padded[start : start + depth] for start in order.tolist()]
    assert keys == sorted(keys)


@given(DOCUMENTS, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_strings_are_counted_within_documents(documents: list[list[int]], string: list[int]) -> None:
    distinct = [list(text) for text in dict.fromkeys(map(tuple, documents))]
    assert index_of(documents).count(string) == count(distinct, string)


@given(
    DOCUMENTS,
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
    st.integers(1, 8),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from(["path", "tree"]),
    st.integers(1, 8),
)
@settings(max_examples=400, deadline=None)
def test_the_draft_is_the_best_over_all_match_lengths(
    documents: list[list[int]], context: list[int], size: int, factor: float, least: float, mode: str, max_match: int
) -> None:
    distinct = [list(text) for text in dict.fromkeys(map(tuple, documents))]
    best: tuple[list[int], list[int], list[float]] = ([], [], [])
    score = np.float32(0)
    for length in range(min(max_match, len(context)), 0, -1):
        string = context[-length:]
        if count(distinct, string):
            bound = min(size, int(length * factor + 1e-6))
            draft = grown(distinct, string, bound, least, mode)
            total = np.float32(0)
            for prob in draft[2]:
                total += np.float32(prob)
            if total > score:
                best, score = draft, total
    index = index_of(documents)
    found = index.speculate(context, size, factor, 0.0, least, mode, max_match=max_match)  # type: ignore[arg-type]
    assert found.score == pytest.approx(float(score), abs=1e-6)
    assert (found.tokens.tolist(), found.parents.tolist()) == (best[0], best[1])
    assert found.probs.tolist() == pytest.approx(best[2])


def test_a_draft_must_score_more_than_what_is_there_already() -> None:
    index = index_of([[1, 2, 3, 4]])
    assert index.speculate([1, 2], 2, max_match=2).score == 2
    assert not len(index.speculate([1, 2], 2, max_match=2, floor=2.0).tokens)


def test_long_runs_are_found_among_many_children() -> None:
    # 700 different tokens once each, and one of them 300 times more: the search must not stop at the small runs
    documents = [[0, token] for token in range(1, 701)] + [[0, 350, token, token] for token in range(1, 301)]
    index = index_of(documents, vocab=1000)
    found = index.speculate([9, 0], 1, max_match=1)
    assert found.tokens.tolist() == [350]
    assert found.score == pytest.approx(301 / 1000)


def test_ids_that_the_target_lacks_are_never_drafted() -> None:
    assert index_of([[1, 7, 7], [1, 7, 8]], vocab=5).speculate([0, 1], 4, max_match=1).tokens.tolist() == []


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "some.corpus"
    write_corpus(path, joined([[1, 2, 3], [4, 4]]), WORDS)
    corpus = Corpus.open(path)
    assert [text.tolist() for text in corpus.documents()] == [[1, 2, 3], [4, 4]]
    assert (corpus.num_documents, corpus.num_tokens, corpus.vocabulary) == (2, 5, WORDS)
    assert corpus.check()
    assert not corpus.index.tokens_N.flags.owndata  # the file is mapped


def test_merging_keeps_one_of_equal_documents_and_the_newest_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "some.corpus"
    merge_into(path, [[1, 2], [3, 4]], WORDS)
    merge_into(path, [[4, 4, 4], [1, 2]], WORDS)
    assert [text.tolist() for text in Corpus.open(path).documents()] == [[3, 4], [4, 4, 4], [1, 2]]
    merge_into(path, [[2]], WORDS, most_tokens=9)  # 3 + 4 + 3 + 2 tokens with separators
    assert [text.tolist() for text in Corpus.open(path).documents()] == [[4, 4, 4], [1, 2], [2]]


def test_one_document_longer_than_the_bound_leaves_its_end() -> None:
    assert joined([[1, 2, 3, 4]], most_tokens=3).tolist() == [3, 4, SEPARATOR]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.corpus"
    write_corpus(path, joined([[1]]), Vocabulary(size=5, digest="aa"))
    Corpus.open(path).require(Vocabulary(size=5, digest="aa"))
    Corpus.open(path).require(Vocabulary(size=5, digest=""))  # an engine that passes token ids alone
    for other in (Vocabulary(size=6, digest="aa"), Vocabulary(size=5, digest="bb")):
        with pytest.raises(ConfigError, match="another tokenizer"):
            Corpus.open(path).require(other)


def test_damaged_files_end_in_a_sentence_or_a_poor_draft(tmp_path: Path) -> None:
    path, damaged = tmp_path / "some.corpus", tmp_path / "damaged.corpus"
    rng = random.Random(0)
    write_corpus(path, joined([[rng.randrange(VOCAB) for _ in range(60)] for _ in range(4)]), WORDS)
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.randrange(1, 30)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        damaged.write_bytes(content)
        try:
            corpus = Corpus.open(damaged)
        except CheckpointError:
            refused += 1
            continue
        assert corpus.check() == (bytes(content) == whole)
        assert len(corpus.documents()) == corpus.num_documents
        for mode in ("path", "tree"):
            found = corpus.index.speculate([1, 2, 3, 1], 8, 2.0, 1.0, 0.0, mode, max_match=4)  # type: ignore[arg-type]
            Tree(found.tokens.tolist(), found.parents.tolist()).depths()
            assert all(0 <= token < corpus.vocabulary.size for token in found.tokens.tolist())
    assert 0 < refused < 400


@pytest.mark.parametrize("mode", ["path", "tree"])
def test_suffixes_out_of_order_end_in_a_poor_draft(mode: Mode) -> None:
    rng = random.Random(0)
    tokens = joined([[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)])
    order = suffix_order(tokens, DEPTH).tolist()
    for _ in range(200):
        rng.shuffle(order)
        context = [rng.randrange(VOCAB) for _ in range(6)]
        index = CorpusIndex(tokens, np.array(order, np.int32), DEPTH, VOCAB)
        found = index.speculate(context, 8, 2.0, 1.0, 0.0, mode, max_match=4)
        Tree(found.tokens.tolist(), found.parents.tolist()).depths()


def test_a_file_that_lost_its_separators_has_no_document(tmp_path: Path) -> None:
    path = tmp_path / "some.corpus"
    write_corpus(path, joined([[1, 2, 3]]), WORDS)
    separator = np.array([SEPARATOR], np.int32).tobytes()
    assert path.read_bytes().count(separator) == 1
    path.write_bytes(path.read_bytes().replace(separator, np.array([4], np.int32).tobytes()))
    assert Corpus.open(path).documents() == []


def plan() -> SessionPlan:
    return SessionPlan(max_slots=2, max_positions=100, noise=Stream.DRAFT, device=torch.device("cpu"))


def test_answers_are_saved_when_the_session_ends_and_found_by_the_next(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model")))
    path = tmp_path / "day.corpus"
    config = SuffixConfig(corpus=None, save=str(path))
    session = SuffixProposer.load(target, config).open(plan())
    session.admit(0, [9, 9], SamplingParams(), None)
    session.observe([Commit(0, [0], [5, 6, 7, 8], 0)], None)
    session.release(0)
    assert not path.exists()
    session.close()
    assert [text.tolist() for text in Corpus.open(path).documents()] == [[5, 6, 7, 8]]
    session.close()
    session.admit(0, [9, 9], SamplingParams(), None)
    session.observe([Commit(0, [0], [4, 4], 0)], None)
    session.release(0)
    del session  # as when the program ends
    gc.collect()
    assert [text.tolist() for text in Corpus.open(path).documents()] == [[5, 6, 7, 8], [4, 4]]
    later = SuffixProposer.load(target, SuffixConfig(corpus=str(path))).open(plan())
    later.admit(1, [1, 5, 6], SamplingParams(), None)
    [tree] = later.propose([1], [DraftLimit(8, 8)]).trees
    assert tree.tokens == [7, 8]


def test_files_are_checked_when_the_method_is_loaded(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model")))
    with pytest.raises(CheckpointError, match="outrider corpus build"):
        SuffixProposer.load(target, SuffixConfig(corpus=str(tmp_path / "none.corpus")))
    with pytest.raises(ConfigError, match="directory that is not there"):
        SuffixProposer.load(target, SuffixConfig(save=str(tmp_path / "nowhere" / "day.corpus")))
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "other.corpus")
    with pytest.raises(CheckpointError, match="damaged"):
        SuffixProposer.load(target, SuffixConfig(save=str(tmp_path / "other.corpus")))
    assert json.loads((tmp_path / "other.corpus").read_text())


def test_a_corpus_changes_the_steps_and_not_the_text(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model")), dtype="float64")
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    [plain] = Engine(target, load_proposer("none", target)).generate([[1, 2, 3]], params)
    path = tmp_path / "answers.corpus"
    write_corpus(path, joined([[1, 2, 3, *plain.tokens]]), Vocabulary.of(target.spec.vocab_size, target.tokenizer))
    for method, others in (("suffix", {}), ("hybrid", {"drafter": "ngram"})):
        steps: list[object] = []
        proposer = load_proposer(method, target, corpus=str(path), max_cached_requests=0, **others)
        engine = Engine(target, proposer, record=steps.append)
        [looked_up] = engine.generate([[1, 2, 3]], params)
        assert looked_up.tokens == plain.tokens
        assert summarize([one for one in steps if isinstance(one, StepRecord)]).num_accepted_tokens >= 18
