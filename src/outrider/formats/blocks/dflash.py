"""DFlash networks on disk: reading both layouts (`dflash_config.py`), and writing them.

    fc.weight                                     [E, A * target's hidden size]
    hidden_norm.weight, norm.weight               [E]
    layers.{i}.{input_layernorm, post_attention_layernorm}.weight, layers.{i}.self_attn.*, layers.{i}.mlp.*
    embed_tokens.weight, lm_head.weight           only where they are not the target's: [V, E], [K, E]
    d2t, t2d                                      only with fewer columns than tokens, as in EAGLE-3's layouts
    mask_embedding                                [E], in some files, in place of the mask token's row

A prefix `model.` is read as none. The speculators library stores copies of the target's embedding and output head,
which are read as the network's own.

Example: `read_dflash(directory, target).spec.block_size` of a published network is 16.

Shapes: E hidden size, K columns, V vocabulary, A fused states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.blocks.dflash_config import KIND, LAYER_CONFIG, SCALES, SECOND, SECTION, native_of, spec_of
from outrider.formats.eagle3 import offsets_of
from outrider.formats.eagle3_tensors import column_ids
from outrider.formats.hf_config import config_of
from outrider.formats.store import check_target, write_checkpoint
from outrider.formats.weights import Weights, read_weights
from outrider.models.blocks.dflash import DFlashSpec
from outrider.records.json_fields import Fields, read_json
from outrider.target import Target

__all__ = ["DFlashCheckpoint", "native_config", "read_dflash", "write_native", "write_speculators"]

EMBEDDING, HEAD, MASK = "embed_tokens.weight", "lm_head.weight", "mask_embedding"
UNUSED: Final = ("verifier_lm_head.", "verifier_norm.")


@dataclass(frozen=True, kw_only=True, eq=False)
class DFlashCheckpoint:
    """One network, read from any layout.

    tensors      those of `spec.shapes()`, and its own embedding, output head and mask embedding where it has them
    ids_K        int64, the token of each column, ascending
    provenance   `outrider` key of the config, empty for foreign files
    """

    spec: DFlashSpec
    tensors: Mapping[str, Tensor]
    ids_K: Tensor
    provenance: Mapping[str, Any]

    @property
    def has_head(self) -> bool:
        """True if it has an output head of its own."""
        return HEAD in self.tensors


def read_dflash(directory: Path, target: Target) -> DFlashCheckpoint:
    """Read a network in either layout and check that it fits the target.

    Raises:
        CheckpointError: naming the config key or tensor that is missing, extra, misshapen or of another target.
    """
    file = directory / "config.json"
    raw = read_json(file)
    config = Fields(native_of(raw, file), str(file)) if KIND in raw else raw
    check_target(raw, target, directory)
    weights = read_weights(directory)
    names = _names(weights, directory)
    shapes = {name: weights.shape(stored) for name, stored in names.items()}
    spec = spec_of(config, file, shapes, target.spec.num_layers)
    _check_sizes(spec, names, target, directory)
    width, vocab_size = spec.decoder.hidden_size, spec.decoder.vocab_size
    optional = {EMBEDDING: (vocab_size, width), HEAD: (spec.draft_vocab_size, width), MASK: (width,)}
    maps = {"d2t": (spec.draft_vocab_size,), "t2d": (vocab_size,)}
    needed = {} if spec.draft_vocab_size == vocab_size else {"d2t": maps["d2t"]}
    wanted = spec.shapes() | optional | maps
    unused = [stored for stored in weights.stored if stored not in names.values()]
    weights.check(
        {names.get(name, name): shape for name, shape in wanted.items()},
        {*unused, *(names.get(name, name) for name in (*optional, *maps) if name not in needed)},
    )
    found = {name: weights.integers(names[name]) for name in maps if name in names}
    return DFlashCheckpoint(
        spec=spec,
        tensors={name: weights[names[name]] for name in (*spec.shapes(), *optional) if name in names},
        ids_K=column_ids(found.get("d2t"), found.get("t2d"), spec.draft_vocab_size, vocab_size, str(directory)),
        provenance=raw.section("outrider", {}),
    )


def _names(weights: Weights, directory: Path) -> dict[str, str]:
    """Return the stored name of each tensor by its published name."""
    found: dict[str, str] = {}
    for stored in weights.stored:
        name = stored.removeprefix("model.")
        if name.startswith(UNUSED) or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in found:
            raise CheckpointError(f"{directory} holds {found[name]} and {stored}, which are one tensor; drop one")
        found[name] = stored
    return found


def _check_sizes(spec: DFlashSpec, names: Mapping[str, str], target: Target, directory: Path) -> None:
    decoder, found = spec.decoder, target.spec
    for name, ours, theirs in (
        ("hidden size", spec.target_hidden_size, found.hidden_size),
        ("vocabulary size", decoder.vocab_size, found.vocab_size),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{directory} was made for a target with {name} {ours}, but {found.name} has {theirs}; "
                "load it with its own target"
            )
    if spec.mask_id >= found.vocab_size:
        raise CheckpointError(
            f"{directory} names mask token {spec.mask_id}, which is not one of the {found.vocab_size} tokens of "
            f"{found.name}; load it with its own target"
        )
    if spec.draft_vocab_size > decoder.vocab_size:
        raise CheckpointError(
            f"{directory} has {spec.draft_vocab_size} columns, more than its {decoder.vocab_size} tokens; "
            "check that config.json belongs to these weights"
        )
    missing = [name for name in (EMBEDDING, HEAD) if name not in names]
    if decoder.hidden_size != found.hidden_size and missing:
        raise CheckpointError(
            f"{directory} has no {missing[0]}, and its hidden size {decoder.hidden_size} differs from the target's "
            f"{found.hidden_size}, so that the target's cannot be shared"
        )


def write_native(directory: Path, checkpoint: DFlashCheckpoint, target_layers: int, dtype: torch.dtype) -> None:
    """Write a network into an existing directory in the authors' layout, or DeepSpec's keys in it for a Markov head."""
    write_checkpoint(directory, _stored(checkpoint, dtype), native_config(checkpoint, target_layers, dtype))


def write_speculators(
    directory: Path,
    checkpoint: DFlashCheckpoint,
    dtype: torch.dtype,
    *,
    verifier: str,
    architectures: Sequence[str],
    target_layers: int,
) -> None:
    """Write a network into an existing directory in the speculators layout, weights in `dtype`.

    Args:
        verifier: the target's hub id or directory.
        architectures: the target's classes, such as ["Qwen3ForCausalLM"].
    """
    spec, native = checkpoint.spec, native_config(checkpoint, target_layers, dtype)
    if any(key in native[SECTION] for key in SCALES):
        raise CheckpointError(f"the speculators layout has no keys for scales ({', '.join(SCALES)}); write the other")
    outer = {"architectures", "block_size", "num_target_layers", "is_causal", "sample_from_anchor", "outrider", SECTION}
    outer |= {"markov_rank", "markov_head_type"}
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": spec.block_size - spec.first_slot,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    config: dict[str, Any] = {
        "architectures": ["DFlashSpeculator"],
        KIND: "dflash",
        "speculators_version": "0.9.0",
        "draft_vocab_size": spec.draft_vocab_size,
        "block_size": spec.block_size,
        "target_hidden_size": spec.target_hidden_size,
        "aux_hidden_state_layer_ids": list(spec.layer_ids),
        "mask_token_id": spec.mask_id,
        "sample_from_anchor": spec.drafts_at_root,
        "sliding_window_non_causal": not any(spec.causal),
        LAYER_CONFIG: {key: value for key, value in native.items() if key not in outer},
        "speculators_config": {
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
    }
    if native.get("is_causal"):
        config["is_causal"] = True
    if spec.markov_rank:
        config |= {KIND: "dspark", "architectures": ["DSparkSpeculator"]}
        config |= {key: native[key] for key in ("markov_rank", "markov_head_type")}
        config |= {
            "enable_confidence_head": bool(spec.confidence_inputs),
            "confidence_head_with_markov": spec.confidence_inputs > spec.decoder.hidden_size,
        }
    if spec.selector_rank:
        config |= {KIND: "dflash2", "architectures": native["architectures"]}
        config |= {key: native[SECTION][key] for key in SECOND}
    config["speculators_config"]["algorithm"] = config[KIND]
    config |= {"outrider": dict(checkpoint.provenance)} if checkpoint.provenance else {}
    write_checkpoint(directory, _stored(checkpoint, dtype), config)


def _stored(checkpoint: DFlashCheckpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors in `dtype`, and both vocabulary maps where there are fewer columns than tokens."""
    spec = checkpoint.spec
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    if spec.draft_vocab_size == spec.decoder.vocab_size:
        return tensors
    has_column_V = torch.zeros(spec.decoder.vocab_size, dtype=torch.bool)
    has_column_V[checkpoint.ids_K] = True
    return tensors | {"d2t": offsets_of(checkpoint.ids_K), "t2d": has_column_V}


def native_config(checkpoint: DFlashCheckpoint, target_layers: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the `config.json` of the authors' layout."""
    spec = checkpoint.spec
    kinds = ["full_attention" if window is None else "sliding_attention" for window in spec.decoder.windows]
    section: dict[str, Any] = {
        "mask_token_id": spec.mask_id,
        "target_layer_ids": [layer - 1 for layer in spec.layer_ids],
    }
    if spec.selector_rank:
        sizes = (spec.conv_kernel_size, spec.conv_group_size, spec.selector_rank, spec.selector_top_k)
        section |= dict(zip(SECOND, sizes, strict=True))
    scales = dict(zip(SCALES, (spec.embedding_scale, spec.output_scale, spec.softcap), strict=True))
    section |= {key: scale for key, scale in scales.items() if scale != (0.0 if key == SCALES[-1] else 1.0)}
    config = config_of(spec.decoder, dtype) | {
        "architectures": ["DFlash2DraftModel" if spec.selector_rank else "DFlashDraftModel"],
        "block_size": spec.block_size,
        "num_target_layers": target_layers,
        "layer_types": kinds,
        SECTION: section,
    }
    if spec.drafts_at_root:
        config["sample_from_anchor"] = True
    if spec.markov_rank:
        config |= {"markov_rank": spec.markov_rank, "markov_head_type": "vanilla"}
    if spec.causal != tuple(window is not None for window in spec.decoder.windows):
        config["is_causal"] = all(spec.causal)
    return config | ({"outrider": dict(checkpoint.provenance)} if checkpoint.provenance else {})
