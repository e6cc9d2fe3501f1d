"""Packed rows of several texts have the features of each text alone; CPU in fp64 stands for the GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import texts

from outrider.models.spec import DecoderSpec
from outrider.testing import tiny_gemma3, tiny_spec, tiny_target
from outrider.train.batch import fill_rows
from outrider.train.features import FeatureReader, Live

FEATURE_LAYERS = (2, 0, 1)


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "family": "qwen3"}, {"qkv_bias": True, "family": "qwen2"}, {"windows": (3, None)}]
)
def test_packed_features_are_those_of_each_text_alone(changes: dict[str, Any]) -> None:
    _check_packed(replace(tiny_spec(), **changes))


def test_packed_features_of_two_rotations_and_normed_additions() -> None:
    _check_packed(tiny_gemma3(window=5))


def _check_packed(spec: DecoderSpec) -> None:
    target, data = tiny_target(spec=spec), texts(30, seed=0)
    reader = FeatureReader(target, FEATURE_LAYERS, 24)
    assert reader.packed is not None, "fp64 is not exact by row, so packing is allowed"
    rows = fill_rows([data.num_tokens(index) for index in range(len(data))], 24)
    batch = Live(data, reader).batch(rows, 24, torch.device("cpu"))
    assert batch.tokens_BL.shape == (len(rows), 24), "all batches have one shape"
    assert batch.features_BLF is not None
    assert any(len(row) > 1 for row in rows)
    for place, row in enumerate(rows):
        alone = reader.read([data.example(index).tokens_T for index in row])
        count = sum(len(features_TF) for features_TF in alone)
        torch.testing.assert_close(batch.features_BLF[place, :count], torch.cat(alone), rtol=0, atol=1e-6)


def test_features_can_be_learnt_from() -> None:
    target, data = tiny_target(), texts(4, seed=1)
    batch = Live(data, FeatureReader(target, FEATURE_LAYERS, 24)).batch([[0], [1]], 24, torch.device("cpu"))
    assert batch.features_BLF is not None
    weight = torch.ones(batch.features_BLF.shape[-1], dtype=torch.float32, requires_grad=True)
    (batch.features_BLF @ weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_exact_targets_read_text_by_text() -> None:
    assert FeatureReader(tiny_target(dtype=torch.float32), FEATURE_LAYERS, 24).packed is None
