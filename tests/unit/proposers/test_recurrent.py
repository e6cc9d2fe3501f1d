"""The session of recurrent drafters: what is read, when, and that drafts are those of a brute-force drafter."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider import Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan
from outrider.cache import KVCache
from outrider.draft import Tree
from outrider.models.draft_network import DraftStep, Reading
from outrider.models.eagle3 import Eagle3Head
from outrider.noise import Stream, position_keys
from outrider.noise import pick as pick_token
from outrider.ops.base import GraphCache
from outrider.placement import Placement, place_tokens
from outrider.proposers.drafting import head_reader
from outrider.proposers.drafting.pending import Pending
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.drafting.recurrent_tree import Paths, RankedGrowth, parse_paths
from outrider.proposers.eagle3 import head_of, random_checkpoint
from outrider.testing import tiny_target

TARGET = tiny_target()
VOCAB = TARGET.spec.vocab_size
HEADS: dict[int, Eagle3Head] = {}


def head_from(seed: int) -> Eagle3Head:
    return HEADS.setdefault(seed, head_of(random_checkpoint(TARGET, seed), TARGET))


def plan(noise: Stream = Stream.TARGET) -> SessionPlan:
    return SessionPlan(max_slots=4, max_positions=60, noise=noise, device=torch.device("cpu"))


def session_of(head: Eagle3Head, noise: Stream = Stream.TARGET, **shape: object) -> RecurrentSession:
    settings = {"vocab_size": VOCAB, "num_nodes": 4, "depth": 4, **shape}
    return RecurrentSession(head, plan(noise), **settings)  # type: ignore[arg-type]


class Text:
    """One request: its committed tokens, and features that are simply random."""

    def __init__(self, head: Eagle3Head, generator: torch.Generator, length: int) -> None:
        self.tokens = torch.randint(0, VOCAB - 1, (60,), generator=generator).tolist()
        self.features_TF = torch.randn(60, head.spec.features, generator=generator, dtype=torch.float64)
        self.head, self.length = head, length
        self.known: dict[tuple[int, ...], Tensor] = {}

    def log_probs(self, path: Sequence[int]) -> Tensor:
        """log q over the target's vocabulary behind the committed text and a path."""
        key = (self.length, *path)
        if key not in self.known:
            self.known[key] = self.compute(path)
        return self.known[key]

    def compute(self, path: Sequence[int]) -> Tensor:
        """All is read anew, as one chain."""
        head, cache, count = self.head, KVCache(self.head.plan(1, 80, 1)), self.length - 1
        placement = place_tokens(cache, [0], [count])
        tokens_R = torch.tensor(self.tokens[1 : self.length])
        out_RE = head.read(head.fuse(self.features_TF[:count]), tokens_R, placement, cache).states_RE[-1:]
        cache.extend([0], [count])
        for step, token in enumerate(path):
            out_RE = head.read(out_RE, torch.tensor([token]), place_tokens(cache, [0], [1], [step]), cache).states_RE
        log_q_K = head.predict(out_RE)[0].log_softmax(-1)
        if head.ids_K is None:
            return log_q_K
        return torch.full((VOCAB,), -torch.inf, dtype=log_q_K.dtype).index_copy(0, head.ids_K, log_q_K)

    def best(self, path: Sequence[int], count: int) -> list[int]:
        count = min(count, int(self.log_probs(path).isfinite().sum()))
        return self.log_probs(path).topk(count).indices.tolist()

    def chain(self, depth: int) -> list[int]:
        chain: list[int] = []
        for _ in range(depth):
            chain += self.best(chain, 1)
        return chain

    def dynamic(self, width: int, depth: int, num_nodes: int) -> set[tuple[int, ...]]:
        """EAGLE-2 by its definition: expand the best `width` paths of each level; keep the best of all."""
        frontier: dict[tuple[int, ...], float] = {(): 0.0}
        every: dict[tuple[int, ...], float] = {}
        for _ in range(depth):
            level = {
                (*path, token): score + float(self.log_probs(path)[token])
                for path, score in frontier.items()
                for token in self.best(path, width)
            }
            every |= level
            frontier = dict(sorted(level.items(), key=lambda item: -item[1])[:width])
        return set(sorted(every, key=lambda path: -every[path])[:num_nodes])

    def static(self, paths: Paths, depth: int, num_nodes: int) -> set[tuple[int, ...]]:
        found: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
        for path in paths:
            if len(path) <= depth and path[:-1] in found and len(found) <= num_nodes:
                above = found[path[:-1]]
                found[path] = (*above, self.best(above, path[-1] + 1)[path[-1]])
        return set(found.values()) - {()}


def token_paths(tree: Tree) -> set[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert len(set(paths)) == len(paths)
    return set(paths)


STATIC = parse_paths("0 1 0.0 0.2 1.0 0.0.0 0.0.1 0.2.0 0.0.1.0")


@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 11), kind=st.sampled_from(["chain", "dynamic", "static"]))
def test_drafts_equal_brute_force_through_any_history(data: st.DataObject, seed: int, kind: str) -> None:
    """Slots come, wait, accept and go; every draft is that of a drafter that reads the whole text anew."""
    head, generator = head_from(seed), torch.Generator().manual_seed(seed)
    width = data.draw(st.integers(2, 4)) if kind == "dynamic" else 1
    session = session_of(head, width=width, num_nodes=8, depth=4, paths=STATIC if kind == "static" else None)
    texts: dict[int, Text] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        for slot in set(range(4)) - set(texts):
            if data.draw(st.booleans()):
                texts[slot] = Text(head, generator, data.draw(st.integers(1, 9)))
                session.admit(
                    slot,
                    texts[slot].tokens[: texts[slot].length],
                    SamplingParams(),
                    texts[slot].features_TF[: texts[slot].length - 1],
                )
        slots = list(texts)
        limits = [DraftLimit(data.draw(st.sampled_from([0, 1, 3, 8])), data.draw(st.integers(0, 5))) for _ in slots]
        trees = session.propose(slots, limits).trees
        for slot, limit, tree in zip(slots, limits, trees, strict=True):
            text, num_nodes, depth = texts[slot], limit.num_nodes, min(4, limit.max_depth)
            if text.length == 1 or min(num_nodes, depth) == 0:
                assert tree.tokens == []
            elif kind == "chain":
                assert tree == Tree.chain(text.chain(min(num_nodes, depth)))
            elif kind == "dynamic":
                assert token_paths(tree) == text.dynamic(width, min(depth, num_nodes), num_nodes)
            else:
                assert token_paths(tree) == text.static(STATIC, min(depth, num_nodes), num_nodes)
        counts = [data.draw(st.integers(1, 5)) for _ in slots]
        session.observe(*committed(texts, slots, counts))
        for slot in slots:
            if data.draw(st.integers(0, 4)) == 0:
                session.release(slot)
                del texts[slot]


def committed(texts: dict[int, Text], slots: list[int], counts: list[int]) -> tuple[list[Commit], Tensor]:
    """Each slot goes on by some tokens; their features lie at scattered rows, as after a tree."""
    commits, rows_of = [], [0, 2, 3, 5, 6]
    features_BMF = torch.full((len(slots), 8, texts[slots[0]].features_TF.shape[1]) if slots else (0, 8, 1), torch.nan)
    features_BMF = features_BMF.double()
    for place, (slot, count) in enumerate(zip(slots, counts, strict=True)):
        text = texts[slot]
        features_BMF[place, rows_of[:count]] = text.features_TF[text.length - 1 : text.length - 1 + count]
        tokens = text.tokens[text.length : text.length + count]
        commits.append(Commit(slot, rows_of[:count], tokens, place))
        text.length += count
    return commits, features_BMF


@pytest.mark.parametrize("lengths", [[41, 3], [50], [7, 40, 36]])
def test_long_prompts_are_read_in_pieces(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_reader, "SHORT", 6)
    monkeypatch.setattr(head_reader, "PIECE", 16)
    head, generator = head_from(3), torch.Generator().manual_seed(0)
    session = session_of(head)
    texts = [Text(head, generator, length) for length in lengths]
    for slot, text in enumerate(texts):
        session.admit(slot, text.tokens[: text.length], SamplingParams(), text.features_TF[: text.length - 1])
    trees = session.propose(list(range(len(texts))), [DraftLimit(4, 4)] * len(texts)).trees
    assert [tree.tokens for tree in trees] == [text.chain(4) for text in texts]


def test_all_slots_catch_up_in_one_read_and_each_level_is_one_read() -> None:
    head, generator = head_from(0), torch.Generator().manual_seed(0)
    reads: list[int] = []
    predicted: list[int] = []
    chained: list[int] = []
    read, predict, draft_step = head.read, head.predict, head.draft_step

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(head, name)

        def read(self, *arguments: Tensor, num_predicted: int, graph_cache: GraphCache) -> Reading:
            reads.append(len(arguments[1]))
            if num_predicted:
                predicted.append(num_predicted)
            return read(*arguments, num_predicted=num_predicted, graph_cache=graph_cache)  # type: ignore[arg-type]

        def predict(self, states_RE: Tensor) -> Tensor:
            predicted.append(len(states_RE))
            return predict(states_RE)

        def draft_step(self, cache: KVCache) -> DraftStep:
            known = draft_step(cache)

            def watched(both_RE: Tensor, placement: Placement) -> Tensor:
                chained.append(placement.positions_BM.numel())
                return known.read(both_RE, placement)

            return replace(known, read=watched)

    for width, want in ((1, ([], [], [12, 3, 3])), (2, ([12, 6, 6], [3, 6, 6], []))):
        session = session_of(Counting(), width=width, num_nodes=3, depth=3)  # type: ignore[arg-type]
        for slot, length in enumerate((3, 5, 7)):
            text = Text(head, generator, length)
            session.admit(slot, text.tokens[:length], SamplingParams(), text.features_TF[: length - 1])
        for some in (reads, predicted, chained):
            some.clear()
        session.propose([0, 1, 2], [DraftLimit(3, 3)] * 3)
        assert (reads, predicted, chained) == want


def test_an_unverified_proposal_can_be_made_again() -> None:
    head = head_from(1)
    text = Text(head, torch.Generator().manual_seed(0), 5)
    session = session_of(head)
    session.admit(0, text.tokens[:5], SamplingParams(), text.features_TF[:4])
    first = session.propose([0], [DraftLimit(4, 4)]).trees
    assert session.propose([0], [DraftLimit(4, 4)]).trees == first
    assert session.propose([0], [DraftLimit(2, 4)]).trees[0].tokens == first[0].tokens[:2]


def test_drafted_entries_are_never_kept() -> None:
    head = head_from(1)
    text = Text(head, torch.Generator().manual_seed(0), 5)
    session = session_of(head, width=3, num_nodes=8)
    session.admit(0, text.tokens[:5], SamplingParams(), text.features_TF[:4])
    session.propose([0], [DraftLimit(8, 4)])
    assert session.reader.cache.lengths[0] == 4


@pytest.mark.parametrize("noise", [Stream.TARGET, Stream.DRAFT])
def test_sampled_chains_draw_from_the_heads_distribution(noise: Stream) -> None:
    """With the noise of the positions where the tokens will stand, numbered by depth for the ratio tests."""
    head, sampling = head_from(2), SamplingParams(temperature=0.8, seed=11)
    text = Text(head, torch.Generator().manual_seed(0), 6)
    session = session_of(head, noise, sampled=True)
    session.admit(0, text.tokens[:6], sampling, text.features_TF[:5])
    draft = session.propose([0], [DraftLimit(4, 4)])
    chain = draft.trees[0].tokens
    for depth, token in enumerate(chain):
        logits_1V = text.log_probs(chain[:depth])[None] / 0.8
        draw = depth if noise is Stream.DRAFT else 0
        keys = position_keys(torch.tensor([11]), torch.tensor([6 + depth]), noise, draw)
        assert int(pick_token(logits_1V, keys)) == token
        if noise is Stream.DRAFT:
            assert draft.probs_BMV is not None
            assert (draft.probs_BMV[0, depth] - logits_1V[0].softmax(-1)).abs().max() < 1e-9
    assert (draft.probs_BMV is None) == (noise is Stream.TARGET)


def test_a_backlog_gives_what_was_added_in_order() -> None:
    pending = Pending()
    pending.add(torch.arange(3.0)[:, None], [10, 11, 12])
    pending.add(torch.arange(3.0, 5.0)[:, None], [13, 14])
    head = pending.take(2)
    assert (head.tokens, torch.cat(head.features).flatten().tolist()) == ([10, 11], [0.0, 1.0])
    rest = pending.take(99)
    assert (rest.tokens, torch.cat(rest.features).flatten().tolist()) == ([12, 13, 14], [2.0, 3.0, 4.0])
    assert (pending.tokens, pending.features) == ([], [])


def test_a_fixed_tree_leaves_out_ranks_that_a_small_vocabulary_does_not_have() -> None:
    growth = RankedGrowth(parse_paths("0 3 0.0 3.0"))
    growth.add_level([[7, 8]], [[0.0, -1.0]])
    growth.add_level([[9, 8]], [[0.0, -1.0]])
    assert growth.select(9) == Tree([7, 9], [-1, 0])
    assert growth.frontier == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 x", "'x' is not a path of ranks"),
        ("0 0..1", "'0..1' is not a path of ranks"),
        ("0 0", "path 0 comes twice"),
        ("0.0 0", "path 0.0 comes before its parent"),
        (" , ", "at least one path"),
    ],
)
def test_a_tree_that_is_none_gets_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_paths(text)
