"""The EAGLE-3 proposer: loading, settings, and that any head leaves the text alone."""

from pathlib import Path

import pytest
import torch

from outrider import CheckpointError, ConfigError, Engine, SessionPlan, load_proposer
from outrider.formats.eagle3 import Eagle3Checkpoint, write_native
from outrider.noise import Stream
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer, head_of, random_checkpoint
from outrider.sampling import SamplingParams
from outrider.testing import assert_lossless, tiny_target

PROMPTS = [[1, 2, 3], [7], [4, 5, 6, 7, 8]]


@pytest.mark.parametrize("seed", [2, 6], ids=["one layer", "three layers"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"sampled": True}, {"width": 3, "num_nodes": 12}, {"tree": "0 1 0.0 1.0"}, {"num_nodes": 20}],
    ids=["chain", "sampled", "dynamic", "static", "long"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_head_from_disk_leaves_the_text_alone(
    tmp_path: Path, dtype: torch.dtype, settings: dict[str, object], seed: int
) -> None:
    target = tiny_target(dtype=dtype)
    write_native(tmp_path, random_checkpoint(target, seed), dtype)
    proposer = load_proposer("eagle3", target, checkpoint=str(tmp_path), **settings)
    assert proposer.spec.num_bytes > 0
    assert_lossless(target, proposer, PROMPTS, SamplingParams(max_tokens=12, ignore_eos=True), max_batch=2)


def test_feature_layers_are_those_of_the_target() -> None:
    for num_layers, feature_layers in ((2, (0, 1, 1)), (8, (2, 4, 5))):
        target = tiny_target(num_layers=num_layers)
        assert (
            Eagle3Proposer(
                head_of(random_checkpoint(target, 3), target), Eagle3Config(checkpoint="")
            ).spec.feature_layers
            == feature_layers
        )


def test_what_the_checkpoint_lacks_is_the_targets() -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, 3)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "lm_head.weight"}
    lacking = Eagle3Checkpoint(spec=checkpoint.spec, tensors=tensors, ids_K=checkpoint.ids_K, provenance={})
    head, shared = head_of(lacking, target), target.shared_weights()
    assert torch.equal(head.ops.unpack(head.lm_head), shared.head_VE)
    assert head.embedding_VE is shared.embedding_VE
    assert head.ids_K is None


@pytest.mark.parametrize(("seed", "num_layers"), [(0, 1), (12, 2)])
def test_a_session_holds_a_cache_of_all_layers(seed: int, num_layers: int) -> None:
    target = tiny_target()
    proposer = Eagle3Proposer.example(target, seed)
    plan = SessionPlan(max_slots=2, max_positions=40, noise=Stream.TARGET, device=target.spec.device)
    session = proposer.open(plan)
    layer = proposer.head.spec.layer
    positions = 40 + 32 + 1
    assert session.num_bytes == num_layers * 2 * 2 * layer.num_kv_heads * layer.head_dim * positions * 8


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    target = tiny_target()
    with pytest.raises(ConfigError, match="no model directory"):
        load_proposer("eagle3", target, checkpoint=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_proposer("eagle3", target, checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 0}, "num_nodes=0 must be between 1 and 256"),
        ({"width": 40}, "width=40 must be between 1 and 32"),
        ({"depth": 0}, "depth=0 must be between 1 and 64"),
        ({"width": 2, "sampled": True}, "sampled=True drafts chains"),
        ({"tree": "0", "sampled": True}, "sampled=True drafts chains"),
        ({"tree": "0", "width": 2}, "tree fixes the shape of a draft; leave width=2 out"),
        ({"tree": "a"}, "'a' is not a path of ranks"),
        ({}, "checkpoint"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, object], message: str) -> None:
    given = {"checkpoint": "nowhere", **settings} if settings else {}
    with pytest.raises(ConfigError, match=message):
        load_proposer("eagle3", tiny_target(), **given)


def test_a_tree_is_at_most_as_deep_as_its_settings() -> None:
    target = tiny_target()
    head = head_of(random_checkpoint(target, 0), target)
    for settings, depth in (({"width": 2, "num_nodes": 30}, 6), ({"width": 2, "num_nodes": 30, "depth": 3}, 3)):
        proposer = Eagle3Proposer(head, Eagle3Config(checkpoint="", **settings))  # type: ignore[arg-type]
        records: list[object] = []
        Engine(target, proposer, record=records.append).generate(
            [[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True)
        )
        depths = [slot.draft_depth for step in records[1:] for slot in step.slots]  # type: ignore[attr-defined]
        assert max(depths) == depth
