"""EAGLE-3 heads on disk: the native layout, and the reading of both layouts.

The native layout (EAGLE, SpecForge, SGLang, vLLM) is a Llama config with `draft_vocab_size` and these tensors:

    fc.weight                       [E, A * target's hidden size]   low, mid, high side by side
    midlayer.{input_layernorm, hidden_norm, post_attention_layernorm}.weight, midlayer.self_attn.*, midlayer.mlp.*
    norm.weight, lm_head.weight     [E], [K, E]
    d2t  int64 [K]                  token id of column k = k + d2t[k]: an offset, not the id
    t2d  bool [V]                   which tokens have a column
    embed_tokens.weight             [V, E], only where the target's embedding is not shared

`layers.0.` is read for `midlayer.`, a leading `model.` is dropped, and `aux_norm_{low,mid,high}` are the `fc_norm`s of
older files. The speculators layout (`eagle3_speculators.py`) holds the same tensors under another config.

What engines disagree on is written out: `norm_before_residual` always; the layer ids only where they are not the
default, since vLLM takes an id as the state before that layer and SGLang as the state after it.

Example: `read_eagle3(directory, target)` of a head for Qwen2.5-7B gives `fc.weight` of shape (3584, 10752).

Shapes: E hidden size of the head, K columns, V vocabulary, A fused states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.eagle3_speculators import is_speculators, native_of, speculators_of
from outrider.formats.hf_config import config_of
from outrider.formats.store import check_target, read_json, write_checkpoint
from outrider.models.eagle3 import LAYER, Eagle3Spec
from outrider.models.spec import FAMILIES, DecoderSpec, is_supported
from outrider.models.weights import Weights, read_weights
from outrider.target import Target

__all__ = ["Eagle3Checkpoint", "native_config", "offsets_of", "read_eagle3", "write_native", "write_speculators"]

UNPREFIXED = ("lm_head.weight", "d2t", "t2d")
OLD_NORMS = {f"fc_norm.{tap}.weight": f"aux_norm_{name}.weight" for tap, name in enumerate(("low", "mid", "high"))}
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True, kw_only=True, eq=False)
class Eagle3Checkpoint:
    """One head, whichever layout it came in.

    spec         its sizes and variants
    tensors      the trained tensors under their native names, and `embed_tokens.weight` if it has its own
    ids_K        int64, the token of each column, ascending
    provenance   the config's `outrider` key, empty for foreign files
    """

    spec: Eagle3Spec
    tensors: Mapping[str, Tensor]
    ids_K: Tensor
    provenance: Mapping[str, Any]


def offsets_of(ids_K: Tensor) -> Tensor:
    """d2t of columns that stand for these tokens."""
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
    """The trained tensors in `dtype`, and both vocabulary maps."""
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    has_column_V = torch.zeros(checkpoint.spec.layer.vocab_size, dtype=torch.bool)
    has_column_V[checkpoint.ids_K] = True
    return tensors | {"d2t": offsets_of(checkpoint.ids_K), "t2d": has_column_V}


def native_config(checkpoint: Eagle3Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` of the native layout."""
    spec = checkpoint.spec
    config = config_of(spec.layer, dtype) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": spec.draft_vocab_size,
        "target_hidden_size": spec.target_hidden_size,
        "norm_before_residual": spec.norm_before_residual,
    }
    for key in ("norm_before_fc", "fc_norm", "norm_output"):
        if getattr(spec, key):
            config[key] = True
    if spec.layer_ids is not None:
        config["num_aux_hidden_states"] = spec.num_taps
        config["eagle_config"] = {"use_aux_hidden_state": True, LAYER_IDS: list(spec.layer_ids)}
    return config | ({"outrider": dict(checkpoint.provenance)} if checkpoint.provenance else {})


def read_eagle3(directory: Path, target: Target) -> Eagle3Checkpoint:
    """Read a head in either layout and check that it fits the target.

    Raises:
        CheckpointError: naming the config key or tensor that is missing, extra, misshapen or of another target.
    """
    file = directory / "config.json"
    raw = read_json(file)
    config = native_of(raw, file) if is_speculators(raw) else raw
    spec = spec_of(config, file)
    check_target(raw, target, directory)
    _check_sizes(spec, target, directory)
    weights = read_weights(directory)
    names = _stored_names(spec, weights)
    if spec.num_taps == len(OLD_NORMS) and any(name in weights for name in OLD_NORMS.values()):
        spec = replace(spec, fc_norm=True)
        names |= OLD_NORMS
    tensors = _tensors(spec, weights, names, directory)
    ids_K = _ids(spec, weights, names, directory)
    return Eagle3Checkpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance=raw.get("outrider") or {})


def spec_of(config: Mapping[str, Any], file: Path) -> Eagle3Spec:
    """What a native config says."""
    layer = _layer(config, file)
    nested = config.get("eagle_config") or {}
    if nested.get("use_aux_hidden_state") is False:
        raise CheckpointError(
            f"{file} sets use_aux_hidden_state to false, which makes it an EAGLE-1 head; give an EAGLE-3 checkpoint"
        )
    layer_ids = config.get(LAYER_IDS) or nested.get(LAYER_IDS)
    num_taps = config.get("num_aux_hidden_states")
    if layer_ids is not None and num_taps not in (None, len(layer_ids)):
        raise CheckpointError(f"{file} names {len(layer_ids)} layers but sets num_aux_hidden_states to {num_taps}")
    if layer_ids is None and num_taps not in (None, 3):
        raise CheckpointError(f"{file} fuses {num_taps} states but does not name their layers; add {LAYER_IDS}")
    return Eagle3Spec(
        layer=layer,
        draft_vocab_size=config.get("draft_vocab_size") or layer.vocab_size,
        target_hidden_size=config.get("target_hidden_size") or layer.hidden_size,
        layer_ids=None if layer_ids is None else tuple(layer_ids),
        norm_before_residual=bool(config.get("norm_before_residual", False)),
        norm_before_fc=bool(config.get("norm_before_fc") or nested.get("norm_before_fc")),
        fc_norm=bool(config.get("fc_norm")),
        norm_output=bool(config.get("norm_output")),
    )


def _layer(config: Mapping[str, Any], file: Path) -> DecoderSpec:
    family, num_layers = config.get("model_type"), config.get("num_hidden_layers", 1)
    if family not in ("llama", "qwen3"):
        raise CheckpointError(f"{file} has model_type {family!r}; heads of type llama and qwen3 are read")
    if num_layers != 1:
        raise CheckpointError(
            f"{file} has {num_layers} layers; heads of one layer are run, since engines differ on what more layers do"
        )
    known = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "architectures")}
    try:
        filled = FAMILIES[family].from_dict({**known, "num_hidden_layers": 1})
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a valid {family} config: {' '.join(str(error).split())}") from error
    reason = is_supported(filled)
    if reason is None and getattr(filled, "mlp_bias", False):
        reason = "its MLP has biases (mlp_bias)"
    if reason is not None:
        raise CheckpointError(f"{file} describes a layer that cannot be run: {reason}; give another head")
    return replace(DecoderSpec.from_config(filled), tie_word_embeddings=False, windows=(None,))


def _check_sizes(spec: Eagle3Spec, target: Target, directory: Path) -> None:
    found = target.spec
    for name, ours, theirs in (
        ("hidden size", spec.target_hidden_size, found.hidden_size),
        ("vocabulary size", spec.layer.vocab_size, found.vocab_size),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{directory} was made for a target with {name} {ours}, but {found.name} has {theirs}; "
                "load it with its own target"
            )
    for layer in spec.layer_ids or ():
        if not 0 <= layer < found.num_layers:
            raise CheckpointError(
                f"{directory} reads the state before layer {layer}, but {found.name} has layers 0 to "
                f"{found.num_layers - 1}; load it with its own target"
            )
    if spec.draft_vocab_size > spec.layer.vocab_size:
        raise CheckpointError(
            f"{directory} has draft_vocab_size {spec.draft_vocab_size}, more than its {spec.layer.vocab_size} tokens; "
            "check its config.json"
        )


def _stored_names(spec: Eagle3Spec, weights: Weights) -> dict[str, str]:
    """How this file spells each tensor."""
    prefix = "model." if "model.fc.weight" in weights else ""
    layer = "layers.0." if any(name.startswith(f"{prefix}layers.0.") for name in weights) else LAYER

    def spelled(name: str) -> str:
        if name in UNPREFIXED:
            return name
        return prefix + (layer + name.removeprefix(LAYER) if name.startswith(LAYER) else name)

    return {name: spelled(name) for name in (*spec.shapes(), "embed_tokens.weight", "d2t", "t2d")}


def _tensors(spec: Eagle3Spec, weights: Weights, names: Mapping[str, str], directory: Path) -> dict[str, Tensor]:
    shapes = spec.shapes() | {
        "embed_tokens.weight": (spec.layer.vocab_size, spec.layer.hidden_size),
        "d2t": (spec.draft_vocab_size,),
        "t2d": (spec.layer.vocab_size,),
    }
    optional = {"embed_tokens.weight", "t2d"}
    if spec.draft_vocab_size == spec.layer.vocab_size:
        optional |= {"d2t", "lm_head.weight"}
    weights.check({names[name]: shape for name, shape in shapes.items()}, {names[name] for name in optional})
    if spec.layer.hidden_size != spec.target_hidden_size and names["embed_tokens.weight"] not in weights:
        raise CheckpointError(
            f"{directory} has no embed_tokens.weight, and its hidden size {spec.layer.hidden_size} differs from the "
            f"target's {spec.target_hidden_size}, so that the target's embedding cannot be shared"
        )
    kept = [name for name in shapes if name not in ("d2t", "t2d") and names[name] in weights]
    return {name: weights[names[name]] for name in kept}


def _ids(spec: Eagle3Spec, weights: Weights, names: Mapping[str, str], directory: Path) -> Tensor:
    vocab_size = spec.layer.vocab_size
    ids_K = torch.arange(spec.draft_vocab_size)
    if names["d2t"] in weights:
        ids_K = ids_K + weights[names["d2t"]].to(torch.int64)
    low, high = int(ids_K.min()), int(ids_K.max())
    if low < 0 or high >= vocab_size:
        raise CheckpointError(
            f"d2t of {directory} points to token {high if high >= vocab_size else low}, outside the vocabulary of "
            f"{vocab_size}; it must hold offsets, token id = column + d2t[column]"
        )
    if len(set(ids_K.tolist())) < len(ids_K):
        raise CheckpointError(f"d2t of {directory} gives two columns the same token; it must hold offsets")
    if names["t2d"] in weights:
        has_column_V = weights[names["t2d"]].bool()
        if int(has_column_V.sum()) != len(ids_K) or not bool(has_column_V[ids_K].all()):
            raise CheckpointError(f"t2d of {directory} marks other tokens than d2t; one of both is of another head")
    return ids_K
