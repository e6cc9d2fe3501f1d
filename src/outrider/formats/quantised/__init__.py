"""Quantised weights of Hugging Face directories, lazily read: matrices as codes and scales, the rest as tensors.

`quantised_weights` gives what a loader packs, under the names that `DecoderSpec.weight_shapes()` lists:

    "stored"         a checkpoint that is published quantised (compressed-tensors, AWQ, GPTQ), as it is
    "int8", "int4"   a checkpoint in floating point, quantised once and kept in the cache

Example:

    weights = quantised_weights(directory, "int4")
    matrix = weights["model.layers.0.mlp.up_proj.weight"]   # reads no weight yet
    rows = matrix.rows(0, 256)                              # reads 256 rows
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.directory import CONFIG
from outrider.formats.quantised.published import published_weights
from outrider.formats.quantised.quantise import quantise_weights
from outrider.formats.weights import read_weights, settle_head
from outrider.models.quant_scheme import quant_scheme
from outrider.models.spec import DecoderSpec
from outrider.ops.quantised import QuantisedMatrix
from outrider.records.json_fields import read_json
from outrider.records.progress import Listener, unheard

__all__ = ["quantised_weights"]


def quantised_weights(
    directory: Path, kind: Literal["stored", "int8", "int4"], listen: Listener = unheard
) -> Mapping[str, Tensor | QuantisedMatrix] | None:
    """Return a directory's weights in a quantised form, or None with "stored" if it holds floating point.

    The names are those of the decoder; `lm_head.weight` is among them only if the head is not tied to the embedding,
    which the tensors decide.

    Args:
        kind: "stored" for a checkpoint that is quantised, "int8" or "int4" to quantise one that is not.
        listen: told of the progress of quantising.

    Raises:
        CheckpointError: for a damaged checkpoint, and one quantised in a way that is not read.
        ConfigError: for int8 or int4 with a checkpoint that is already quantised.
    """
    scheme = quant_scheme(read_json(directory / CONFIG), str(directory / CONFIG))
    if kind == "stored" and scheme is None:
        return None
    if kind != "stored" and scheme is not None:
        raise ConfigError(
            f"weights={kind!r} quantises a checkpoint in floating point, but {directory} is already quantised; leave"
            " that setting out, or pass the original checkpoint"
        )
    if isinstance(scheme, str):
        raise CheckpointError(
            f"{directory} cannot be read as stored: {scheme}; use the original checkpoint with weights int8 or int4,"
            " or one quantised by compressed-tensors, AWQ or GPTQ"
        )
    spec, weights = DecoderSpec.from_config_file(directory), read_weights(directory)
    if kind == "stored":
        assert scheme is not None
        return published_weights(directory, spec, weights, scheme)
    return quantise_weights(settle_head(spec, weights), weights, kind, listen)
