"""P-EAGLE: that one pass drafts what the definition says, and that any head leaves the text alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dense_head import Dense
from outrider import CheckpointError, Commit, ConfigError, DraftLimit, SamplingParams, SessionPlan, load_proposer
from outrider.doctor.heads.kinds import method_of
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3, write_native, write_speculators
from outrider.noise import Stream
from outrider.proposer import Session
from outrider.proposers import eagle3
from outrider.proposers.peagle import PEagleConfig, PEagleProposer, head_of, random_checkpoint
from outrider.testing import assert_lossless, tiny_target

TARGET = tiny_target(num_layers=4)
TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 8, 2, 0, 11, 5, 3, 14]]
GREEDY = SamplingParams()


def defined(checkpoint: Eagle3Checkpoint, features_TF: Tensor, text: list[int], depth: int) -> list[int]:
    """The drafts behind a text, whose last token is the root, by the definition: row by row, masks as further rows."""
    spec = checkpoint.spec
    dense = Dense(checkpoint, TARGET.shared_weights().embedding_VE)
    for state_E, token in zip(dense.fuse(features_TF), text[1:], strict=True):
        out_E = dense.read(state_E, token)
    assert spec.mask_id is not None
    mask_E = dense.fuse(checkpoint.tensors["mask_hidden"].view(1, -1))[0]
    drafted = []
    for level in range(depth):
        if level:
            out_E = dense.read(mask_E, spec.mask_id)
        logits_K = dense.predict(out_E)
        logits_K[checkpoint.ids_K == spec.mask_id] = -torch.inf
        drafted.append(int(checkpoint.ids_K[logits_K.argmax()]))
    return drafted


def session_of(seed: int, num_slots: int = 2) -> Session:
    proposer = PEagleProposer(
        head_of(random_checkpoint(TARGET, seed), TARGET), PEagleConfig(checkpoint="", num_nodes=4)
    )
    return proposer.open(
        SessionPlan(max_slots=num_slots, max_positions=60, noise=Stream.TARGET, device=TARGET.spec.device)
    )


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 6, 11])
def test_one_pass_drafts_what_the_definition_says(seed: int) -> None:
    """Seeds draw one to three layers and every norm; slots have other depths and other numbers of pending pairs."""
    checkpoint = random_checkpoint(TARGET, seed)
    width = checkpoint.spec.features
    features = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    session = session_of(seed)
    for slot, length in ((0, 5), (1, 3)):
        session.admit(slot, TEXTS[slot][:length], GREEDY, features[slot, : length - 1])
    session.catch_up([1])
    first = session.propose([1, 0], [DraftLimit(4, 4), DraftLimit(2, 9)]).trees
    assert [tree.tokens for tree in first] == [
        defined(checkpoint, features[1, :2], TEXTS[1][:3], 4),
        defined(checkpoint, features[0, :4], TEXTS[0][:5], 2),
    ]
    # nothing of the masks is kept: the next draft is that of the longer text
    session.observe([Commit(0, [0, 1, 2], TEXTS[0][5:8], 0)], features[None, 0, 4:7])
    session.observe([Commit(1, [0], TEXTS[1][3:4], 0)], features[None, 1, 2:3])
    second = session.propose([0, 1], [DraftLimit(9, 9), DraftLimit(1, 1)]).trees
    want = [
        defined(checkpoint, features[0, :7], TEXTS[0], 4),
        defined(checkpoint, features[1, :3], TEXTS[1][:4], 1),
    ]
    assert [tree.tokens for tree in second] == want
    # asked again without a step between
    again = session.propose([0, 1], [DraftLimit(9, 9), DraftLimit(1, 1)]).trees
    assert [tree.tokens for tree in again] == want


def test_long_prompts_are_read_before_the_pass() -> None:
    checkpoint = random_checkpoint(TARGET, 5)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, TARGET.spec.vocab_size, (50,), generator=generator).tolist()
    features_TF = torch.randn(49, checkpoint.spec.features, generator=generator, dtype=torch.float64)
    session = session_of(5, 1)
    session.admit(0, text, GREEDY, features_TF)
    assert session.propose([0], [DraftLimit(4, 4)]).trees[0].tokens == defined(checkpoint, features_TF, text, 4)


@pytest.mark.parametrize("settings", [{}, {"sampled": True}, {"num_nodes": 1}, {"num_nodes": 20}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_head_from_disk_leaves_the_text_alone(
    tmp_path: Path, dtype: torch.dtype, settings: dict[str, object]
) -> None:
    target = tiny_target(dtype=dtype)
    write_speculators(tmp_path, random_checkpoint(target, 6), dtype, verifier="org/target", architectures=["A"])
    proposer = load_proposer("peagle", target, checkpoint=str(tmp_path), **settings)
    assert proposer.spec.num_bytes > 0
    sampling = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, seed=3)
    assert_lossless(target, proposer, [[1, 2, 3], [7], [4, 5, 6, 7, 8]], sampling, max_batch=2)


def test_a_head_runs_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "masked").mkdir()
    (tmp_path / "plain").mkdir()
    checkpoint = random_checkpoint(TARGET, 0)
    write_native(tmp_path / "masked", checkpoint, torch.float64)
    with pytest.raises(CheckpointError, match=r"drafts all tokens in one pass \(P-EAGLE\); run it as peagle"):
        load_proposer("eagle3", TARGET, checkpoint=str(tmp_path / "masked"))
    write_native(tmp_path / "plain", eagle3.random_checkpoint(TARGET, 0), torch.float64)
    with pytest.raises(CheckpointError, match="has no mask_hidden, so it drafts token by token; run it as eagle3"):
        load_proposer("peagle", TARGET, checkpoint=str(tmp_path / "plain"))
    assert read_eagle3(tmp_path / "masked", TARGET).spec == checkpoint.spec
    assert [method_of(tmp_path / name) for name in ("masked", "plain")] == ["peagle", "eagle3"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_nodes": 0}, "num_nodes=0 must be between 1 and 64"), ({"num_nodes": 65}, "num_nodes=65 must be between")],
)
def test_bad_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_proposer("peagle", TARGET, checkpoint="nowhere", **settings)
