"""Quantised weights of Hugging Face directories, lazily read: matrices as codes and scales, the rest as tensors.

`quantised_weights` gives what a loader packs, under the names that `DecoderSpec.weight_shapes()` lists:

    "int8", "int4"   a checkpoint in floating point, quantised once and kept in the cache

Example:

    weights = quantised_weights(directory, "int4")
    matrix = weights["model.layers.0.mlp.up_proj.weight"]   # reads no weight yet
    rows = matrix.rows(0, 256)                              # reads 256 rows
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from outrider.formats.quantised.quantise import quantise_weights
from outrider.formats.quantised.rounding import Kind
from outrider.formats.weights import read_weights, settle_head
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantisedMatrix
from outrider.records.progress import Listener, unheard

__all__ = ["quantised_weights"]


def quantised_weights(
    directory: Path, kind: Kind, listen: Listener = unheard
) -> Mapping[str, Tensor | QuantisedMatrix]:
    """Return a directory's weights in a quantised form; `lm_head.weight` is there where the head is not tied.

    Args:
        kind: "int8" or "int4" to quantise a checkpoint in floating point.
        listen: told of the progress of quantising.

    Raises:
        CheckpointError: for a damaged or unsupported checkpoint.
    """
    weights = read_weights(directory)
    spec = settle_head(DecoderSpec.from_config_file(directory), weights)
    return quantise_weights(spec, weights, kind, listen)
