"""Heads whose layers have a sliding window of their own, against the dense head that sees the same positions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dense_head import Dense
from outrider import Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan
from outrider.formats.eagle3 import Eagle3Checkpoint
from outrider.noise import Stream
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer, head_of, random_checkpoint
from outrider.target import Target
from outrider.testing import tiny_target

LENGTH, STEP, DEPTH = 90, 6, 4
CHAIN = ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))
KINDS: dict[str, dict[str, Any]] = {"chain": {}, "tree": {"paths": CHAIN}}


def sliding(target: Target, seed: int, windows: Sequence[int | None]) -> Eagle3Checkpoint:
    checkpoint = random_checkpoint(target, seed)
    layer = checkpoint.spec.layer
    assert layer.num_layers == len(windows)
    layer = replace(layer, windows=tuple(windows), max_position_embeddings=LENGTH)
    return replace(checkpoint, spec=replace(checkpoint.spec, layer=layer))


def dense_chain(checkpoint: Eagle3Checkpoint, embedding_VE: Tensor, text: list[int], features_TF: Tensor) -> list[int]:
    dense = Dense(checkpoint, embedding_VE)
    fused_TE = dense.fuse(features_TF)
    for row, token in enumerate(text[1:]):
        state_E = dense.read(fused_TE[row], token)
    chain: list[int] = []
    for _ in range(DEPTH):
        chain.append(int(checkpoint.ids_K[dense.predict(state_E).argmax()]))
        state_E = dense.read(state_E, chain[-1])
    return chain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("seed", "windows", "dtype"),
    [
        (0, (33,), torch.float64),
        (2, (40,), torch.float32),
        (5, (None, 35), torch.float64),
        (13, (36, None, 50), torch.float32),
    ],
)
def test_drafts_are_those_of_the_dense_head(
    seed: int, windows: Sequence[int | None], dtype: torch.dtype, kind: str
) -> None:
    """A prompt longer than the window, and steps behind it; in fp32 by the kernels, two slots at a time."""
    target = tiny_target(dtype=dtype)
    checkpoint, embedding_VE = sliding(target, seed, windows), target.shared_weights().embedding_VE.double()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, target.spec.vocab_size - 1, (2, LENGTH), generator=generator).tolist()
    features_BTF = torch.randn(2, LENGTH, checkpoint.spec.features, generator=generator, dtype=torch.float64)
    plan = SessionPlan(max_slots=2, max_positions=LENGTH, noise=Stream.TARGET, device=torch.device("cpu"))
    session = RecurrentSession(
        head_of(checkpoint, target),
        plan,
        vocab_size=target.spec.vocab_size,
        num_nodes=DEPTH,
        depth=DEPTH,
        **KINDS[kind],
    )
    lengths = [62, 20]
    for slot, length in enumerate(lengths):
        session.admit(slot, tokens[slot][:length], SamplingParams(), features_BTF[slot, : length - 1].to(dtype))
    for _ in range(4):
        trees = session.propose([0, 1], [DraftLimit(DEPTH, DEPTH)] * 2).trees
        for slot, length in enumerate(lengths):
            want = dense_chain(checkpoint, embedding_VE, tokens[slot][:length], features_BTF[slot, : length - 1])
            assert trees[slot].tokens == want
        counts = (STEP, STEP - 3)
        commits, features = [], torch.zeros(2, STEP, checkpoint.spec.features, dtype=dtype)
        for slot, count in enumerate(counts):
            start = lengths[slot]
            commits.append(Commit(slot, list(range(count)), tokens[slot][start : start + count], slot))
            features[slot, :count] = features_BTF[slot, start - 1 : start - 1 + count].to(dtype)
            lengths[slot] += count
        session.observe(commits, features)


def test_a_window_changes_what_the_dense_head_drafts() -> None:
    """Else the comparison above would show nothing."""
    target = tiny_target()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, target.spec.vocab_size - 1, (62,), generator=generator).tolist()
    features_TF = torch.randn(61, random_checkpoint(target, 0).spec.features, generator=generator, dtype=torch.float64)
    embedding_VE = target.shared_weights().embedding_VE
    whole, windowed = (
        dense_chain(sliding(target, 0, (window,)), embedding_VE, text, features_TF) for window in (None, 33)
    )
    assert whole != windowed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Eagle3Config(num_nodes=20), "a sliding window of 40 positions, and a step takes up to 41 rows; give fewer"),
        (Eagle3Config(window=20), "window=20 is for heads that read the whole text, and this one has a sliding window"),
    ],
)
def test_settings_that_do_not_fit_the_window_are_refused(config: Eagle3Config, message: str) -> None:
    target = tiny_target()
    head = head_of(sliding(target, 0, (40,)), target)
    plan = SessionPlan(max_slots=1, max_positions=40, noise=Stream.TARGET, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=message):
        Eagle3Proposer(head, config).open(plan)
