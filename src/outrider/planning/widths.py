"""The width of a model's weights, from the names of their kinds.

The first kind is that of the layers, the second, if there is one, that of the output head, as in published files:

    bytes per weight = (layers * bytes of the first + head * bytes of the second) / (layers + head)

Quantised weights are multiplied as 8-bit integers.

Example: SmolLM2-135M in "Q4_1, Q8_0" has 106 M weights of 0.625 bytes and 28 M of 1.0625: 0.717 bytes a weight.
"""

from dataclasses import dataclass
from pathlib import Path

from outrider.formats.gguf.stored import stored_weights
from outrider.formats.locate import EMBEDDED, gguf_file
from outrider.models.spec import DecoderSpec
from outrider.models.weight_kinds import BYTES_PER_WEIGHT, MADE_KINDS, checked_kinds, is_quantised
from outrider.ops.quantised import kinds_of
from outrider.planning.shapes import target_pass

__all__ = ["Width", "stored_kinds", "width_of"]


@dataclass(frozen=True, kw_only=True)
class Width:
    """A width.

    kinds       kinds of the weights, in words
    num_bytes   bytes per weight, mean over those that a forward reads
    is_integer  True if weights are multiplied as 8-bit integers
    """

    kinds: str
    num_bytes: float
    is_integer: bool


def width_of(kinds: str, spec: DecoderSpec) -> Width:
    """Return the width of a model with these kinds of weights.

    Raises:
        ConfigError: for an unknown kind.
    """
    found = checked_kinds(MADE_KINDS.get(kinds, kinds))
    layers, head = found[0], found[min(1, len(found) - 1)]
    share = spec.vocab_size * spec.hidden_size / target_pass(spec).num_held
    num_bytes = (1 - share) * BYTES_PER_WEIGHT[layers] + share * BYTES_PER_WEIGHT[head]
    return Width(kinds=", ".join(found), num_bytes=num_bytes, is_integer=is_quantised(layers))


def stored_kinds(model: str) -> str:
    """Return the kinds of a GGUF file's weights, or bf16 for a model that is known by its sizes.

    Raises:
        CheckpointError: if the file cannot be read as stored.
    """
    if model not in EMBEDDED and Path(model).suffix != ".gguf":
        return "bf16"
    file = gguf_file(model)
    return "bf16" if file is None else kinds_of(stored_weights(file))
