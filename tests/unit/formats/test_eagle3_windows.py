"""EAGLE-3 heads whose layers have a sliding window: how `speculators` writes them, and how we do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from outrider import CheckpointError
from outrider.export.exported import Export, export_checkpoint
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3, write_native, write_speculators
from outrider.proposers.eagle3 import random_checkpoint
from outrider.testing import tiny_target

TARGET = tiny_target()
ONE, TWO = 0, 12
"""Seeds of heads of one layer and of two."""


def checkpoint_of(seed: int, windows: tuple[int | None, ...] | None = None) -> Eagle3Checkpoint:
    found = random_checkpoint(TARGET, seed)
    layer = replace(found.spec.layer, windows=found.spec.layer.windows if windows is None else windows)
    return replace(found, spec=replace(found.spec, layer=layer))


def written(directory: Path, seed: int, **layer: Any) -> Path:
    """Write a head of the speculators layout with further keys of its layer."""
    write_speculators(
        directory, checkpoint_of(seed), torch.float64, verifier="org/target", architectures=["LlamaForCausalLM"]
    )
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["transformer_layer_config"] |= layer
    file.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("seed", "layer", "windows"),
    [
        # what `speculators train` writes by default, and with --full-attention-indices
        (ONE, {"layer_types": ["sliding_attention"], "sliding_window": 40, "use_sliding_window": True}, (40,)),
        (ONE, {"layer_types": ["full_attention"], "sliding_window": 40, "use_sliding_window": False}, (None,)),
        (
            TWO,
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 40, "use_sliding_window": True},
            (None, 40),
        ),
        # a window that holds every position hides none
        (ONE, {"layer_types": ["sliding_attention"], "sliding_window": 2048}, (None,)),
        # the list of a target's layers, of which a head takes as many as it has
        (ONE, {"layer_types": ["sliding_attention"] * 30, "sliding_window": 33}, (33,)),
        (ONE, {"model_type": "mistral", "sliding_window": 8}, (8,)),
    ],
)
def test_the_window_of_each_layer_is_read(
    tmp_path: Path, seed: int, layer: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert TARGET.spec.max_positions < 2048
    assert read_eagle3(written(tmp_path, seed, **layer), TARGET).spec.layer.windows == windows


@pytest.mark.parametrize("windows", [(40, None), (None, 40), (40, 40)])
@pytest.mark.parametrize("layout", ["native", "speculators"])
def test_windows_survive_a_round_trip(tmp_path: Path, layout: str, windows: tuple[int | None, ...]) -> None:
    checkpoint = checkpoint_of(TWO, windows)
    if layout == "native":
        write_native(tmp_path, checkpoint, torch.float64)
    else:
        write_speculators(tmp_path, checkpoint, torch.float64, verifier="org/target", architectures=[])
    config = json.loads((tmp_path / "config.json").read_text())
    layer = config if layout == "native" else config["transformer_layer_config"]
    # the keys by which vLLM gives a Llama layer its window
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    assert (layer["sliding_window"], layer["layer_types"]) == (40, kinds)
    assert read_eagle3(tmp_path, TARGET).spec == checkpoint.spec


@pytest.mark.parametrize(
    ("seed", "layer", "message"),
    [
        (ONE, {"layer_types": ["sliding_attention"], "sliding_window": None}, "sliding_window is null"),
        (ONE, {"layer_types": ["sliding_attention"], "sliding_window": 0}, "sliding_window is 0 but must be"),
        (ONE, {"layer_types": ["chunked_attention"]}, "layer_types holds 'chunked_attention'"),
        (TWO, {"layer_types": ["sliding_attention"], "sliding_window": 9}, "layer_types for 1 layers, .* are of 2"),
    ],
)
def test_windows_that_are_not_said_clearly_are_refused(
    tmp_path: Path, seed: int, layer: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_eagle3(written(tmp_path, seed, **layer), TARGET)


def test_an_export_for_sglang_says_that_its_head_sees_all_of_the_text(tmp_path: Path) -> None:
    source = tmp_path / "head"
    source.mkdir()
    written(source, ONE, layer_types=["sliding_attention"], sliding_window=40)
    notes = {}
    for engine in ("sglang", "vllm"):
        output = tmp_path / engine
        output.mkdir()
        order = Export(checkpoint=source, target=TARGET, output=output, engine=engine, num_nodes=4)  # type: ignore[arg-type]
        notes[engine] = " ".join(export_checkpoint(order).notes)
        assert read_eagle3(output, TARGET).spec.layer.windows == (40,)
    assert "SGLang lets the head see all of the text, not the last 40 positions" in notes["sglang"]
    assert "the head see" not in notes["vllm"]
