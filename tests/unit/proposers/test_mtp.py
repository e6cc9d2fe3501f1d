"""Prediction modules at run time: what a draft depends on, what the caches keep, and what is refused."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import rms_norm

from outrider.draft import Tree
from outrider.errors import ConfigError
from outrider.formats.mtp import write_mtp
from outrider.noise import Stream
from outrider.proposer import Commit, DraftLimit, Session, SessionPlan
from outrider.proposers import load_proposer
from outrider.proposers.drafting import mtp_modules
from outrider.proposers.drafting.mtp_modules import MtpModulesSession
from outrider.proposers.mtp import MtpConfig, MtpProposer, random_checkpoint
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.testing import tiny_target

VOCAB, POSITIONS = 31, 96
TARGET = tiny_target(0, vocab_size=VOCAB, max_positions=POSITIONS)


def proposer_of(num_modules: int, state: str = "residual", **changes: object) -> MtpProposer:
    checkpoint = random_checkpoint(TARGET, num_modules, state, seed=3)  # type: ignore[arg-type]
    return MtpProposer(TARGET, checkpoint, MtpConfig(checkpoint="memory", **changes))  # type: ignore[arg-type]


def opened(proposer: MtpProposer, max_slots: int = 1) -> Session:
    device = torch.device("cpu")
    plan = SessionPlan(max_slots=max_slots, max_positions=POSITIONS, noise=Stream.TARGET, device=device)
    return proposer.open(plan)


def features_of(target: Target, tokens: list[int]) -> Tensor:
    session = target.open(target.plan(1, POSITIONS, 1), feature_layers=(target.spec.num_layers,))
    features_TF = session.prefill([0], [tokens])[0]
    assert features_TF is not None
    return features_TF


def fresh_draft(proposer: MtpProposer, text: list[int]) -> Tree:
    session = opened(proposer)
    session.admit(0, text, SamplingParams(), features_of(TARGET, text[:-1]))
    return session.propose([0], [DraftLimit(9, 9)]).trees[0]


@settings(max_examples=15, deadline=None)
@given(num_modules=st.integers(1, 4), piece=st.sampled_from([2, 5, 128]), seed=st.integers(0, 10**6))
def test_a_draft_depends_on_the_text_alone(num_modules: int, piece: int, seed: int) -> None:
    """After any history of limits, commits and neighbours, the draft is that of a session just admitted."""
    draw = random.Random(seed)
    proposer = proposer_of(num_modules)
    texts = [[draw.randrange(VOCAB) for _ in range(80)] for _ in range(2)]
    features = [features_of(TARGET, text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtp_modules, "PIECE", piece)
        session = opened(proposer, max_slots=2)
        lengths = [draw.randint(1, 40), 1]
        for slot, text in enumerate(texts):
            session.admit(slot, text[: lengths[slot]], SamplingParams(), features[slot][: lengths[slot] - 1])
        for _ in range(6):
            slots = draw.choice([[0, 1], [1, 0]])
            limits = [DraftLimit(9, draw.choice([0, 1, 2, 9])) for _ in slots]
            session.propose(slots, limits)
            counts = [draw.randint(1, 6) for _ in slots]
            rows_BMF = torch.full((2, 8, features[0].shape[1]), torch.nan, dtype=torch.float64)
            commits = []
            for place, (slot, count) in enumerate(zip(slots, counts, strict=True)):
                rows = sorted(draw.sample(range(8), count))
                start = lengths[slot] - 1
                rows_BMF[place, rows] = features[slot][start : start + count]
                commits.append(Commit(slot, rows, texts[slot][start + 1 : start + 1 + count], place))
                lengths[slot] += count
            session.observe(commits, rows_BMF)
        drafts = session.propose([1, 0], [DraftLimit(9, 9), DraftLimit(9, 9)]).trees
    for draft, slot in zip(drafts, (1, 0), strict=True):
        assert draft == fresh_draft(proposer, texts[slot][: lengths[slot]])
        assert len(draft.tokens) == proposer.spec.max_nodes


def test_each_module_keeps_the_slots_whose_token_is_known() -> None:
    session = opened(proposer_of(3))
    assert isinstance(session, MtpModulesSession)
    text = [4, 9, 1, 7, 20, 3]
    session.admit(0, text, SamplingParams(), features_of(TARGET, text[:-1]))
    session.propose([0], [DraftLimit(9, 9)])
    assert [cache.lengths[0] for cache in session.caches] == [5, 4, 3]
    assert [session.texts[0].count(module) for module in range(3)] == [0, 1, 1]
    session.observe([Commit(0, [0], [8], 0)], features_of(TARGET, text)[None, -1:])
    session.propose([0], [DraftLimit(9, 1)])
    assert [cache.lengths[0] for cache in session.caches] == [6, 4, 3]
    session.release(0)
    assert [cache.lengths[0] for cache in session.caches] == [0, 0, 0]


@pytest.mark.parametrize("num_modules", [1, 3])
def test_a_prompt_of_one_token_gets_no_draft_at_first(num_modules: int) -> None:
    session = opened(proposer_of(num_modules))
    session.admit(0, [5], SamplingParams(), features_of(TARGET, [5])[:0])
    assert session.propose([0], [DraftLimit(9, 9)]).num_nodes == (0,)
    session.observe([Commit(0, [0], [8], 0)], features_of(TARGET, [5])[None])
    assert session.propose([0], [DraftLimit(9, 9)]).num_nodes == (3,)


def test_the_first_embedding_counts_as_zero() -> None:
    """Slot 0 reads no token, as in vLLM; slot 1 does."""
    proposer = proposer_of(1)
    module = proposer.modules[0]
    states_RE = features_of(TARGET, [1, 2])
    cache_lengths = []
    for tokens in ([3, 4], [9, 4], [3, 7]):
        session = opened(proposer)
        session.admit(0, [1, *tokens], SamplingParams(), states_RE)
        session.propose([0], [DraftLimit(1, 1)])
        cache_lengths.append(session.reader.states[0].clone())  # type: ignore[attr-defined]
    assert torch.equal(cache_lengths[0], cache_lengths[1])
    assert not torch.allclose(cache_lengths[0], cache_lengths[2])
    assert module.feature_layers == (TARGET.spec.num_layers,)


def test_the_residual_stream_is_recovered() -> None:
    """norm_hidden of h / w is norm_hidden of the stream before the final norm, up to the norm's epsilon."""
    module = proposer_of(1).modules[0]
    assert module.state_norm_E is not None
    stream_RE = 7 * torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def norm(x_RE: Tensor) -> Tensor:
        return rms_norm(x_RE, (16,), eps=module.spec.rms_norm_eps)

    after_RE = norm(stream_RE) * module.state_norm_E
    want, got = norm(stream_RE), norm(module.fuse(after_RE))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (norm(after_RE) - want).abs().max() > 0.01
    plain = proposer_of(1, "normed").modules[0]
    assert torch.equal(plain.fuse(after_RE), after_RE)


def test_defaults_come_from_training(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(TARGET, 1, "normed", seed=0)
    write_mtp(tmp_path, checkpoint, torch.float64)
    assert load_proposer("mtp", TARGET, checkpoint=str(tmp_path)).spec.max_nodes == 3
    assert load_proposer("mtp", TARGET, checkpoint=str(tmp_path), num_nodes=7).spec.max_nodes == 7
    assert proposer_of(2).spec.max_nodes == 2


def test_examples_vary() -> None:
    made = [MtpProposer.example(TARGET, seed) for seed in range(8)]
    assert {len(proposer.modules) for proposer in made} == {1, 2, 3}
    assert {proposer.config.width for proposer in made} == {1, 3}
    assert {proposer.config.sampled for proposer in made} == {None, True}


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"num_nodes": 0}, "num_nodes=0 must be between"),
        ({"width": 0}, "width=0 must be between"),
        ({"width": 2, "depth": 0}, "depth=0 must be between"),
        ({"depth": 4}, "depth=4 bounds a tree"),
        ({"width": 2, "sampled": True}, "set width=1"),
    ],
)
def test_settings_are_checked(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MtpConfig(checkpoint="somewhere", **settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [({"width": 2}, "2 modules draft chains"), ({"num_nodes": 3}, "num_nodes=3 exceeds the 2 modules of memory")],
)
def test_several_modules_draft_short_chains(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        proposer_of(2, **settings_)
