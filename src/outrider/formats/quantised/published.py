"""Checkpoints that are published quantised: their matrices as they are stored, other weights as tensors.

The method in `quantization_config` names a layout; a module is quantised if it has the layout's tensors, so modules
that the publisher left out (the output head, usually) stay tensors. Names, dtypes and shapes of all tensors are checked
before any large one is read.

Example: a GPTQ checkpoint's `model.layers.0.mlp.up_proj.qweight`, `.qzeros` and `.scales` become one matrix named
`model.layers.0.mlp.up_proj.weight`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from outrider.errors import CheckpointError
from outrider.formats.quantised.awq import open_awq
from outrider.formats.quantised.compressed_tensors import open_compressed
from outrider.formats.quantised.gptq import open_gptq
from outrider.formats.quantised.layout import Opened, PublishedMatrix
from outrider.formats.quantised.parts import FLOATS, LazyWeights, part, require_dtype
from outrider.formats.weights import Weights
from outrider.models.quant_scheme import QUANTIZATION, QuantScheme
from outrider.models.spec import DecoderSpec

__all__ = ["published_weights"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Opener = Callable[[Weights, str, tuple[int, int], QuantScheme], Opened | None]
OPENERS: Final[Mapping[str, Opener]] = {
    "awq": open_awq,
    "gptq": open_gptq,
    "compressed-tensors": open_compressed,
}
NAMES: Final = {"awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors"}


def published_weights(directory: Path, spec: DecoderSpec, weights: Weights, scheme: QuantScheme) -> LazyWeights:
    """Return the weights of a checkpoint that is stored quantised; `lm_head.weight` is there where it is not tied.

    Raises:
        CheckpointError: for tensors that are missing, misshapen or too many, and for act-order.
    """
    has_head = any(name.startswith("lm_head.") for name in weights)
    shapes = replace(spec, tie_word_embeddings=spec.tie_word_embeddings and not has_head).weight_shapes()
    found: dict[str, Opened] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        opened = OPENERS[scheme.method](weights, module, shape, scheme) if len(shape) == 2 else None
        if opened is None:
            expected[name] = shape
        else:
            found[name] = opened
            expected |= opened.tensors
            expected |= _zero_bias(weights, f"{module}.bias", shape[0], shapes)
    weights.check(expected)
    for name in shapes.keys() - found.keys():
        require_dtype(weights.stored[name], FLOATS)
    if not found:
        raise CheckpointError(
            f"{directory} has a {QUANTIZATION} ({NAMES[scheme.method]}) but no quantised matrix; remove that section"
            " from config.json if its weights are whole"
        )
    names = [name for name in shapes if name != HEAD or not _is_copy(spec, weights, found)]
    method = NAMES[scheme.method]
    matrices = {name: lambda opened=opened: PublishedMatrix(opened, method) for name, opened in found.items()}
    return LazyWeights(names, matrices, weights)


def _zero_bias(
    weights: Weights, name: str, num_rows: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of a bias that the model does not have but the file does, if it is zero and changes nothing."""
    if name in shapes or name not in weights or weights.shape(name) != (num_rows,):
        return {}
    return {} if part(weights.stored[name]).any() else {name: (num_rows,)}


def _is_copy(spec: DecoderSpec, weights: Weights, found: Mapping[str, Opened]) -> bool:
    """Return whether the config ties a head that the file holds as a copy of the embedding."""
    if not spec.tie_word_embeddings or HEAD in found or EMBEDDING in found:
        return False
    head, embedding = weights[HEAD], weights[EMBEDDING]
    return torch.equal(head.to(torch.float32), embedding.to(torch.float32))
