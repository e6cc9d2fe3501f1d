"""A draft model whose config says tied while its file holds a head that differs drafts with that head."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from outrider import Engine, load_proposer, load_target
from outrider.metrics import PrefillRecord, StepRecord
from outrider.sampling import SamplingParams
from outrider.testing.directory import write_tiny_model


def test_a_stored_head_is_the_drafts_own(tmp_path: Path) -> None:
    """The draft is the target but for that key, so with the right head every guess is right."""
    target = load_target(str(write_tiny_model(tmp_path / "target")), dtype="float64")
    directory = write_tiny_model(tmp_path / "draft")
    tensors = load_file(directory / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    records: list[StepRecord | PrefillRecord] = []
    proposer = load_proposer("draft_model", target, checkpoint=directory, num_nodes=3)
    Engine(target, proposer, record=records.append).generate(
        [[5, 7, 9]], SamplingParams(max_tokens=20, ignore_eos=True)
    )
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [slot.num_accepted for step in steps for slot in step.slots] == [3] * 5
