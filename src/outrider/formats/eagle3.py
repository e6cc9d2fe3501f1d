"""EAGLE-3 heads on disk: writing the native layout, and reading both layouts.

The native layout (EAGLE, SpecForge, SGLang, vLLM) is a Llama config with `draft_vocab_size` and these tensors:

    fc.weight                       [E, A * target's hidden size]   low, mid, high side by side
    midlayer.{input_layernorm, hidden_norm, post_attention_layernorm}.weight, midlayer.self_attn.*, midlayer.mlp.*
    layers.1.*, ...                 further layers, with the names of plain decoder layers
    norm.weight, lm_head.weight     [E], [K, E]
    d2t  int64 [K]                  token id of column k = k + d2t[k]: an offset, not the id
    t2d  bool [V]                   tokens with a column
    embed_tokens.weight             [V, E], unless the target's is shared
    mask_hidden                     [1, 1, A * target's hidden size], features of masked slots (P-EAGLE)

`eagle3_tensors.py` reads other spellings of tensors, `eagle3_config.py` of config keys; the tensors override keys that
contradict them. The speculators layout (`eagle3_speculators.py`) holds the same tensors under another config.

Of keys that engines read differently, `norm_before_residual` is always written, and layer ids only if they are not the
default: vLLM takes an id as the state before that layer, SGLang as the one after it.

Example: `read_eagle3(directory, target)` of a head for Qwen2.5-7B gives `fc.weight` of shape (3584, 10752).

Shapes: E hidden size of the head, K columns, V vocabulary, A fused states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.eagle3_config import LAYER_IDS, TARGET_LAYER_IDS, spec_of
from outrider.formats.eagle3_speculators import is_speculators, native_of, speculators_of
from outrider.formats.eagle3_tensors import Shapes, canonical_names, column_ids
from outrider.formats.hf_config import config_of, mask_of, names_mask
from outrider.formats.store import check_target, write_checkpoint
from outrider.formats.weights import Weights, read_weights
from outrider.models.eagle3 import LAYER, MASK, Eagle3Spec
from outrider.records.json_fields import Fields, read_json
from outrider.target import Target

__all__ = ["Eagle3Checkpoint", "native_config", "offsets_of", "read_eagle3", "write_native", "write_speculators"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Eagle3Checkpoint:
    """One head, read from any layout.

    spec         sizes and variants
    tensors      trained tensors under their native names, and `embed_tokens.weight` if the head has its own
    ids_K        int64, the token of each column, ascending
    provenance   `outrider` key of the config, empty for foreign files
    """

    spec: Eagle3Spec
    tensors: Mapping[str, Tensor]
    ids_K: Tensor
    provenance: Mapping[str, Any]


def offsets_of(ids_K: Tensor) -> Tensor:
    """Return `d2t` for columns of these tokens."""
    return ids_K - torch.arange(len(ids_K))


def write_native(directory: Path, checkpoint: Eagle3Checkpoint, dtype: torch.dtype) -> None:
    """Write a head into an existing directory in the native layout, weights in `dtype`."""
    write_checkpoint(directory, stored_tensors(checkpoint, dtype), native_config(checkpoint, dtype))


def write_speculators(
    directory: Path,
    checkpoint: Eagle3Checkpoint,
    dtype: torch.dtype,
    *,
    verifier: str,
    architectures: Sequence[str],
    num_tokens: int = 5,
) -> None:
    """Write a head into an existing directory in the speculators layout, weights in `dtype`.

    Args:
        verifier: the target's hub id or directory.
        architectures: the target's classes, such as ["Qwen2ForCausalLM"].
        num_tokens: tokens that an engine drafts by default.
    """
    tensors = {name.replace(LAYER, "layers.0."): tensor for name, tensor in stored_tensors(checkpoint, dtype).items()}
    native = native_config(checkpoint, dtype)
    write_checkpoint(directory, tensors, speculators_of(native, verifier, architectures, num_tokens))


def stored_tensors(checkpoint: Eagle3Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the trained tensors in `dtype`, and both vocabulary maps."""
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    has_column_V = torch.zeros(checkpoint.spec.layer.vocab_size, dtype=torch.bool)
    has_column_V[checkpoint.ids_K] = True
    return tensors | {"d2t": offsets_of(checkpoint.ids_K), "t2d": has_column_V}


def native_config(checkpoint: Eagle3Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """Return the `config.json` of the native layout."""
    spec = checkpoint.spec
    config = config_of(spec.layer, dtype) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": spec.draft_vocab_size,
        "target_hidden_size": spec.target_hidden_size,
        "norm_before_residual": spec.norm_before_residual,
    }
    if spec.mask_id is not None:  # engines look under either key
        config |= {"mask_token_id": spec.mask_id, "pard_token": spec.mask_id}
    for key in ("norm_before_fc", "fc_norm", "norm_output"):
        if getattr(spec, key):
            config[key] = True
    if not spec.has_fc:
        config["eagle_config"] = {"use_aux_hidden_state": False}
    elif spec.reads_normed and spec.layer_ids is not None:
        config[TARGET_LAYER_IDS] = [layer - 1 for layer in spec.layer_ids]
    elif spec.layer_ids is not None:
        config["num_aux_hidden_states"] = spec.num_feature_layers
        config["eagle_config"] = {"use_aux_hidden_state": True, LAYER_IDS: list(spec.layer_ids)}
    return config | ({"outrider": dict(checkpoint.provenance)} if checkpoint.provenance else {})


def read_eagle3(directory: Path, target: Target) -> Eagle3Checkpoint:
    """Read a head in either layout and check that it fits the target.

    Raises:
        CheckpointError: naming the config key or tensor that is missing, extra, misshapen or of another target.
    """
    file = directory / "config.json"
    raw = read_json(file)
    config = Fields(native_of(raw, file) if is_speculators(raw) else raw, str(file))
    check_target(raw, target, directory)
    weights = read_weights(directory)
    names = canonical_names(weights, directory)
    shapes = {name: weights.shape(stored) for name, stored in names.items()}
    _check_width(config, shapes, target, directory)
    spec = spec_of(config, file, shapes, target.spec.hidden_size)
    if not spec.layer_ids and spec.reads_normed:
        spec = replace(spec, layer_ids=(target.spec.num_layers,))
    # only the state after the last layer can be read after the final norm
    spec = replace(spec, reads_normed=spec.reads_normed and target.spec.num_layers in (spec.layer_ids or ()))
    spec = _sized(spec, config.integer("vocab_size", None, low=1), shapes, target, directory)
    if MASK in names:
        if not names_mask(config):
            raise CheckpointError(
                f"{file} names no token for the slots of {MASK}; add mask_token_id, as it was trained"
            )
        spec = replace(spec, mask_id=mask_of(config, file, target.spec.vocab_size))
    tensors = _tensors(spec, weights, names, directory)
    maps = {name: weights.integers(names[name]) for name in ("d2t", "t2d") if name in names}
    ids_K = column_ids(maps.get("d2t"), maps.get("t2d"), spec.draft_vocab_size, spec.layer.vocab_size, str(directory))
    return Eagle3Checkpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance=raw.section("outrider", {}))


def _check_width(config: Fields, shapes: Shapes, target: Target, directory: Path) -> None:
    """Refuse a head for a target of another width, in one clear sentence."""
    told, found = config.integer("target_hidden_size", None, low=1), target.spec.hidden_size
    fc = shapes.get("fc.weight", ())
    fused = {told} if told is not None else {fc[0]} if len(fc) == 2 and fc[1] % found else {found}
    if fused != {found}:
        raise CheckpointError(_other(directory, "hidden size", fused.pop(), target, found))


def _other(directory: Path, what: str, ours: object, target: Target, theirs: int) -> str:
    return (
        f"{directory} was made for a target with {what} {ours}, but {target.spec.name} has {theirs}; "
        "load it with its own target"
    )


def _sized(spec: Eagle3Spec, told: int | None, shapes: Shapes, target: Target, directory: Path) -> Eagle3Spec:
    """Check sizes against the target's; `told` is the config's vocabulary size, in some files the number of columns."""
    found = target.spec
    shown = [shapes[name][0] for name in ("embed_tokens.weight", "t2d") if shapes.get(name)]
    vocab_size = (
        shown[0] if shown and told in (None, spec.draft_vocab_size) else found.vocab_size if told is None else told
    )
    if vocab_size != found.vocab_size:
        raise CheckpointError(_other(directory, "vocabulary size", vocab_size, target, found.vocab_size))
    for layer in spec.layer_ids or ():
        if not 0 <= layer <= found.num_layers:
            raise CheckpointError(
                f"{directory} reads the state before layer {layer}, but {found.name} has layers 0 to "
                f"{found.num_layers - 1}; load it with its own target"
            )
    if spec.draft_vocab_size > vocab_size:
        raise CheckpointError(
            f"{directory} has {spec.draft_vocab_size} columns, more than its {vocab_size} tokens; "
            "check that config.json belongs to these weights"
        )
    return replace(spec, layer=replace(spec.layer, vocab_size=vocab_size))


def _tensors(spec: Eagle3Spec, weights: Weights, names: Mapping[str, str], directory: Path) -> dict[str, Tensor]:
    shapes = spec.shapes() | {
        "embed_tokens.weight": (spec.layer.vocab_size, spec.layer.hidden_size),
        "d2t": (spec.draft_vocab_size,),
        "t2d": (spec.layer.vocab_size,),
    }
    optional = {"embed_tokens.weight", "t2d"}
    if spec.draft_vocab_size == spec.layer.vocab_size:
        optional |= {"d2t", "lm_head.weight"}
    # tensors that `canonical_names` left out may be present
    unused = [name for name in weights.stored if name not in names.values()]
    weights.check(
        {names.get(name, name): shape for name, shape in shapes.items()},
        {*unused, *(names.get(name, name) for name in optional)},
    )
    width, wide = spec.layer.hidden_size, spec.target_hidden_size
    for name in ("embed_tokens.weight", *(["fc.weight"] if not spec.has_fc else []), "lm_head.weight"):
        if width != wide and name not in names:
            raise CheckpointError(
                f"{directory} has no {name}, and its hidden size {width} differs from the target's {wide}, so that "
                f"the target's {'states' if name == 'fc.weight' else name.partition('.')[0]} cannot be shared"
            )
    kept = [name for name in shapes if name not in ("d2t", "t2d") and name in names]
    return {name: weights[names[name]] for name in kept}
