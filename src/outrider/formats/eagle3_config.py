"""The spec of an EAGLE-3 head, from its config and the shapes of its tensors.

The config gives rotary positions, the norm's epsilon, the number of heads, `norm_before_residual`, `norm_output`, and
the fused states. Layers are named in three ways, which count differently:

    eagle_aux_hidden_state_layer_ids   k is the state before layer k; the number of layers is the stream after the last
    (top level or in eagle_config; aux_hidden_state_layer_ids is the same)
    target_layer_ids                   k is the state after layer k; after the last one, after the final norm
    none, null or []                   the published three, if three states are fused

With `use_aux_hidden_state` false and no `fc.weight`, the head reads the target's final state unchanged. Layers that
`layer_types` calls sliding see the last `sliding_window` positions.

Example: 6 layers and ids [2, 4, 6] fuse the states before layers 2 and 4 and the stream that enters the final norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from outrider.errors import CheckpointError
from outrider.formats.eagle3_tensors import Shapes, layer_sizes, num_layers
from outrider.formats.hf_config import MASK_KEYS
from outrider.models.eagle3 import LAYER, NUM_FEATURE_LAYERS, Eagle3Spec
from outrider.models.spec import DecoderSpec, filled_config, is_supported
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["LAYER_IDS", "TARGET_LAYER_IDS", "spec_of"]

LAYER_IDS: Final = "eagle_aux_hidden_state_layer_ids"
TARGET_LAYER_IDS: Final = "target_layer_ids"
LLAMA_LIKE: Final = (None, "llama", "qwen2", "qwen3", "mistral")
UNREAD: Final = ("torch_dtype", "dtype", "architectures", "layer_types", "outrider")
OWN: Final = (
    "norm_before_residual",
    "norm_before_fc",
    "fc_norm",
    "norm_output",
    "eagle_config",
    "use_aux_hidden_state",
    *MASK_KEYS,
)
BLOCK: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True, kw_only=True)
class _Fused:
    """The fused states. `normed`: the last layer's state is read after the final norm."""

    ids: tuple[int, ...] | None
    normed: bool = False
    has_fc: bool = True


def spec_of(
    config: Mapping[str, Any], file: Path, shapes: Shapes | None = None, width: int | None = None
) -> Eagle3Spec:
    """Return the spec of a head from its native config and the shapes of its tensors.

    Args:
        shapes: shapes by published name; without them the config alone is read.
        width: hidden size of the target; the fusion's width is a multiple of it.

    Raises:
        CheckpointError: naming the key that has a wrong type, contradicts the tensors, or is not supported.
    """
    fields, shapes = Fields(config, str(file)), shapes or {}
    layer = _layer(fields, file, shapes)
    columns = shapes.get("lm_head.weight", shapes.get("d2t", ()))
    told = fields.integer("draft_vocab_size", None, low=1) or layer.vocab_size
    target_width = fields.integer("target_hidden_size", None, low=1) or width or layer.hidden_size
    fused = _fused(fields, file, shapes, target_width)
    nested = fields.section("eagle_config", None) or Fields({}, str(file))
    return Eagle3Spec(
        layer=layer,
        draft_vocab_size=columns[0] if columns else told,
        target_hidden_size=target_width,
        layer_ids=fused.ids,
        reads_normed=fused.normed,
        has_fc=fused.has_fc,
        norm_before_residual=any(one.flag("norm_before_residual", None) for one in (fields, nested)),
        norm_before_fc=any(one.flag("norm_before_fc", None) for one in (fields, nested))
        or "input_norm.weight" in shapes,
        fc_norm=bool(fields.flag("fc_norm", None)) or "fc_norm.0.weight" in shapes,
        norm_output=bool(fields.flag("norm_output", None)),
    )


def _fused(fields: Fields, file: Path, shapes: Shapes, width: int) -> _Fused:
    nested = fields.section("eagle_config", None) or Fields({}, str(file))
    named = _named_layers(fields, nested)
    uses_final = (
        nested.flag("use_aux_hidden_state", None) is False or fields.flag("use_aux_hidden_state", None) is False
    )
    fc = shapes.get("fc.weight")
    if uses_final and (fc is None or fc[-1:] == (width,)):
        return _Fused(ids=(), normed=True, has_fc=fc is not None)
    count = _num_fused(fc, width, file) if fc is not None else len(named.ids or ()) or NUM_FEATURE_LAYERS
    # the width of fc.weight counts the fused states; the list must agree
    if named.ids is not None and len(named.ids) != count:
        raise CheckpointError(
            f"{file} names {len(named.ids)} layers, but its fc.weight fuses {count} states; correct the list"
        )
    if named.ids is None and count != NUM_FEATURE_LAYERS:
        raise CheckpointError(f"{file} fuses {count} states but does not name their layers; add {LAYER_IDS}")
    return named


def _num_fused(fc: tuple[int, ...], width: int, file: Path) -> int:
    if len(fc) != 2 or fc[1] < width or fc[1] % width:
        raise CheckpointError(
            f"fc.weight beside {file} has shape {fc}, whose columns are no multiple of the target's hidden size "
            f"{width}; load the head with its own target"
        )
    return fc[1] // width


def _named_layers(fields: Fields, nested: Fields) -> _Fused:
    """Return the layers that the config names; None for the default."""
    for one in (fields, nested):
        for key in (LAYER_IDS, "aux_hidden_state_layer_ids"):
            if ids := one.integers(key, None, low=0, high=10_000):
                return _Fused(ids=tuple(ids))
        if ids := one.integers(TARGET_LAYER_IDS, None, low=0, high=10_000):
            return _Fused(ids=tuple(layer + 1 for layer in ids), normed=True)
    return _Fused(ids=None)


def _layer(fields: Fields, file: Path, shapes: Shapes) -> DecoderSpec:
    """Return the decoder layers, with the number, sizes and biases that their tensors have."""
    family = fields.get("model_type")
    if family not in LLAMA_LIKE:
        raise CheckpointError(
            f"{file} has model_type {shown_json(family)}; heads of type llama, qwen2, qwen3 and mistral are read"
        )
    known = {key: value for key, value in fields.plain().items() if key not in UNREAD}
    count, told = num_layers(shapes), fields.integer("num_hidden_layers", None)
    # many configs of a head of one layer copy the target's number; those of several layers say their own
    if count > 1 and told not in (None, count):
        raise CheckpointError(f"{file} has num_hidden_layers {told}, but its tensors are of {count} layers; correct it")
    known |= {"model_type": family or "llama", "num_hidden_layers": count}
    if shapes:
        known |= layer_sizes(shapes, fields.integer("num_attention_heads", low=1, high=2**16))
    # `_windows` obeys them, in every family
    windowed = ("sliding_window", "use_sliding_window") if fields.get("layer_types") else ()
    filled = filled_config(known, family or "llama", file, own=(*OWN, *windowed), partial=True)
    reason = is_supported(filled)
    if reason is None and any("mlp." in name and name.endswith(".bias") for name in shapes):
        reason = "its MLP has biases"
    if reason is not None:
        raise CheckpointError(f"{file} describes a layer that cannot be run: {reason}; give another head")
    spec = DecoderSpec.from_config(filled)
    spec = replace(spec, tie_word_embeddings=False, windows=_windows(fields, file, spec), mlp_bias=False)
    if not shapes:
        return spec
    return replace(  # the stored biases and norms decide, whatever the config says
        spec,
        qkv_bias=any(f"{LAYER}{name}.bias" in shapes for name in BLOCK),
        o_bias=f"{LAYER}self_attn.o_proj.bias" in shapes,
        qk_norm=spec.qk_norm or any(f"{LAYER}self_attn.{part}_norm.weight" in shapes for part in "qk"),
    )


def _windows(fields: Fields, file: Path, spec: DecoderSpec) -> tuple[int | None, ...]:
    """Return the sliding window of each layer, None where it holds every position."""
    # a list of more layers is a copy of the target's
    kinds = (fields.texts("layer_types", None) or ())[: spec.num_layers]
    windows: tuple[int | None, ...] = spec.windows
    if kinds:
        if len(kinds) < spec.num_layers:
            raise CheckpointError(
                f"{file} has layer_types for {len(kinds)} layers, but its tensors are of {spec.num_layers}; correct it"
            )
        if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
            raise CheckpointError(
                f"{file}: layer_types holds {min(unknown)!r}, which is not supported; give another head"
            )
        size = fields.integer("sliding_window", low=1) if "sliding_attention" in kinds else None
        windows = tuple(size if kind == "sliding_attention" else None for kind in kinds)
    return tuple(None if window is None or window >= spec.max_position_embeddings else window for window in windows)
