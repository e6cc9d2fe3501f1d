"""The attention kinds of a `transformers` model's layers, and their masks.

`transformers` has one convention for masks made ahead of time: a model whose config lists `layer_types` of more than
one kind takes a mapping from kind to mask; any other model takes one mask, limited to `sliding_window` if its config
has one. Full and sliding attention run on our cache. Chunked, recurrent, convolutional and sparse layers are refused
here, and so are models that are known to ignore a given mask or given positions.

Example: Gemma 2 alternates `sliding_attention` and `full_attention` with `sliding_window = 4096`, so it takes
`{"sliding_attention": mask within 4096 positions, "full_attention": mask}`.

Shapes: B slots, M rows, S cached positions.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.ops.torch import visible_BMS
from outrider.placement import Placement

__all__ = ["LayerMasks"]

KINDS = ("full_attention", "sliding_attention")
OWN_MASKS = ("gpt_neo",)
NEEDED = ("input_ids", "attention_mask", "position_ids", "past_key_values")


@final
@dataclass(frozen=True)
class LayerMasks:
    """The window of each kind of layer in positions, None for full attention; a single kind may have no name."""

    windows: Mapping[str, int | None]

    @classmethod
    def of(cls, model: Any, name: str) -> Self:
        """Read a model's config.

        Raises:
            CheckpointError: with the reason why the model cannot be run with given masks and positions.
        """
        reason = _refusal(model)
        if reason is not None:
            raise CheckpointError(
                f"{name} ({model.config.model_type}) cannot verify drafts: {reason}; use a decoder-only model with"
                " rotary or learned positions and a key/value cache"
            )
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        return cls({kind: window if kind == "sliding_attention" else None for kind in kinds} or {"": window})

    def __call__(self, placement: Placement, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Return additive masks [B, 1, M, S] of these rows, as the model takes them."""
        masks = {kind: _additive_B1MS(placement, window, dtype) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _additive_B1MS(placement: Placement, window: int | None, dtype: torch.dtype) -> Tensor:
    seen_BMS = visible_BMS(placement.within(window), window, placement.limit)
    hidden_BMS = torch.zeros(seen_BMS.shape, dtype=dtype, device=seen_BMS.device)
    return hidden_BMS.masked_fill_(~seen_BMS, torch.finfo(dtype).min)[:, None]


def _refusal(model: Any) -> str | None:
    """Return the reason why this model cannot run here, as the middle of a sentence, or None."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    if getattr(config, "alibi", False):
        return "it counts positions itself (ALiBi)"
    if config.model_type in OWN_MASKS:
        return "its local layers build their own masks"
    # transformers' own flag for recurrent layers
    if model._is_stateful:
        return "it keeps a recurrent state, which cannot be taken back when a guess is rejected"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(KINDS))
    if other:
        return f"its layer_types hold {other[0]!r}"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "it attends in chunks (attention_chunk_size)"
    parameters = inspect.signature(model.forward).parameters
    missing = [argument for argument in NEEDED if argument not in parameters]
    return f"its forward does not take {missing[0]}" if missing else None
