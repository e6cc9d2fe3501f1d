"""Medusa checkpoints in their two published layouts.

    fasterdecoding   medusa_lm_head.safetensors; config medusa_num_heads, medusa_num_layers, base_model_name_or_path,
                     version "2". Written by the authors' trainer and read by TGI.
                         {head}.{layer}.linear.weight | bias          residual layers        [E, E], [E]
                         {head}.{num_layers}.weight                   output projection      [V, E]
                     Without output projections all heads use the target's.
    vllm             model.safetensors; config model_type medusa, num_heads, num_hidden_layers, hidden_size, vocab_size,
                     truncated_vocab_size, medusa_fc_bias, original_lm_head, max_paths, topk
                         blocks.{head}.layers.{layer}.weight | bias
                         lm_heads.{head}.weight                       or lm_head.weight, once, with original_lm_head
                         token_map                                    target ids of a reduced vocabulary, int64 [K]

The tensors' names decide the layout; a prefix `medusa_heads.` is dropped. Three traps: the authors' configs say 2 heads
for files that hold 5, so the file decides, also on biases; vLLM leaves an output projection that is not stored
uninitialised, so it is stored even if it is the target's; and vLLM cuts a projection of the whole vocabulary to the
rows of the token map, so both sizes are read.

The config's key `outrider` holds measurements of training: `rank_accuracies`, and the tree built from them.

Worked example: Vicuna-7B with 5 heads in the first layout has `0.0.linear.weight` (4096, 4096), `0.0.linear.bias`
(4096,) and `0.1.weight` (32000, 4096).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.store import check_target, write_checkpoint
from outrider.formats.weights import Weights, read_weights
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, MedusaShape, layer_name, output_name
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, read_json
from outrider.target import Target

__all__ = ["LAYOUTS", "Layout", "MedusaCheckpoint", "read_medusa", "write_medusa"]

Layout = Literal["fasterdecoding", "vllm"]
LAYOUTS: Final[tuple[Layout, ...]] = ("fasterdecoding", "vllm")
HEADS_FILE: Final = "medusa_lm_head.safetensors"
LARGEST: Final = 2**24
MOST: Final = 256
"""Most heads, and most layers of a head."""
PREFIX: Final = re.compile(r"medusa_heads?\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class MedusaCheckpoint:
    """Medusa heads, independent of their layout on disk.

    tensors      tensors with the names and shapes of `MedusaShape.tensor_shapes`
    accuracies   accuracy of each rank of each head on held-out text; empty if not measured
    tree         rank paths, parents first; may be empty
    """

    shape: MedusaShape
    layout: Layout
    tensors: Mapping[str, Tensor]
    accuracies: tuple[tuple[float, ...], ...]
    tree: tuple[tuple[int, ...], ...]


class _Stored(NamedTuple):
    """The expected tensors of a file: stored names by our names, shapes and optional tensors by stored name."""

    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    optional: frozenset[str]


def write_medusa(
    directory: Path, shape: MedusaShape, tensors: Mapping[str, Tensor], layout: Layout, provenance: Mapping[str, Any]
) -> None:
    """Write heads and their config.

    Raises:
        ConfigError: if the layout cannot hold a reduced vocabulary.
    """
    if layout == "vllm":
        assert shape.output != "target", "this layout stores every output projection"
        write_checkpoint(directory, tensors, _vllm_config(shape) | {"outrider": dict(provenance)})
        return
    if shape.is_reduced:
        raise ConfigError("the fasterdecoding layout has no reduced vocabulary; use layout=vllm")
    assert shape.output != "one", "this layout leaves a shared projection to the target"
    config = {
        "base_model_name_or_path": provenance["target"],
        "medusa_num_heads": shape.num_heads,
        "medusa_num_layers": shape.num_layers,
        "outrider": dict(provenance),
        "version": "2",
    }
    names = _fasterdecoding_names(shape)
    write_checkpoint(directory, {names[name]: tensor for name, tensor in tensors.items()}, config, HEADS_FILE)


def _vllm_config(shape: MedusaShape) -> dict[str, Any]:
    return {
        "architectures": ["MedusaModel"],
        "hidden_size": shape.hidden_size,
        "max_paths": 64,
        "medusa_fc_bias": shape.bias,
        "model_type": "medusa",
        "num_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "original_lm_head": shape.output != "own",
        "topk": 10,
        "truncated_vocab_size": shape.num_columns,
        "vocab_size": shape.vocab_size,
    }


def _fasterdecoding_names(shape: MedusaShape) -> dict[str, str]:
    """Return the stored name of every tensor."""
    names = {output_name(head): f"{head}.{shape.num_layers}.weight" for head in range(shape.num_heads)}
    for head in range(shape.num_heads):
        for layer in range(shape.num_layers):
            for part in ("weight", "bias"):
                names[layer_name(head, layer, part)] = f"{head}.{layer}.linear.{part}"
    return {name: names[name] for name in shape.tensor_shapes()}


def read_medusa(directory: Path, target: Target) -> MedusaCheckpoint:
    """Read heads for a target.

    Raises:
        CheckpointError: naming the file and what is missing, left over, misshapen or another target's.
    """
    config = read_json(directory / "config.json")
    file = directory / HEADS_FILE
    weights = read_weights(file if file.is_file() else directory)
    place = next((tensor.file for tensor in weights.stored.values()), directory)
    names = {PREFIX.sub("", name, count=1): name for name in weights.stored}
    layout = _layout(names, place)
    check_target(config, target, directory)
    shape = _vllm_shape(config, names, place) if layout == "vllm" else _fasterdecoding_shape(config, names, target)
    stored = _stored(layout, shape, names, weights)
    _check_sizes(shape, stored, weights, target, place)
    weights.check(stored.shapes, stored.optional)
    tensors = {name: weights[on_disk] for name, on_disk in stored.names.items()}
    shape, tensors = _settled(shape, tensors, target, place)
    measured = config.get("outrider")
    measured = measured if isinstance(measured, dict) else {}
    accuracies, tree = _accuracies(measured, shape, directory), _tree(measured, shape, directory)
    return MedusaCheckpoint(shape=shape, layout=layout, tensors=tensors, accuracies=accuracies, tree=tree)


def _layout(names: Mapping[str, str], place: Path) -> Layout:
    if any(name.startswith("model.") for name in names):
        raise CheckpointError(
            f"{place} holds a whole model (Medusa-2), whose backbone was trained with its heads; only heads for an"
            " unchanged target can be lossless, so give a checkpoint with the heads alone"
        )
    if any(name.startswith("blocks.") for name in names):
        return "vllm"
    if any(re.match(r"[0-9]{1,3}\.[0-9]+\.", name) for name in names):
        return "fasterdecoding"
    raise CheckpointError(
        f"{place} holds no Medusa heads: neither 0.0.linear.weight nor blocks.0.layers.0.weight is among its"
        f" {len(names)} tensors; check the path"
    )


def _fasterdecoding_shape(config: Mapping[str, Any], names: Mapping[str, str], target: Target) -> MedusaShape:
    num_stored = _num_stored(names, r"([0-9]{1,3})\.")
    num_layers = _count(config, ("medusa_num_layers", "num_hidden_layers"), 1, MOST)
    return MedusaShape(
        num_heads=max(num_stored, _count(config, ("medusa_num_heads", "num_heads"), num_stored, MOST)),
        num_layers=num_layers,
        hidden_size=target.spec.hidden_size,
        vocab_size=target.spec.vocab_size,
        num_columns=target.spec.vocab_size,
        bias=any(name.endswith(".linear.bias") for name in names),
        output="own" if any(re.fullmatch(rf"\d+\.{num_layers}\.weight", name) for name in names) else "target",
    )


def _vllm_shape(config: Mapping[str, Any], names: Mapping[str, str], place: Path) -> MedusaShape:
    if config.get("logit_scale", 1) != 1:
        scale = shown_json(config["logit_scale"])
        raise CheckpointError(f"{place} wants logit_scale={scale}, which is not read; fold it in")
    shares = bool(Fields(config, str(place)).flag("original_lm_head", None))
    num_stored = _num_stored(names, r"blocks\.([0-9]{1,3})\.")
    vocab_size = _count(config, ("vocab_size",), None)
    return MedusaShape(
        num_heads=_count(config, ("num_heads", "medusa_num_heads"), num_stored, MOST),
        num_layers=_count(config, ("num_hidden_layers", "medusa_num_layers"), 1, MOST),
        hidden_size=_count(config, ("hidden_size",), None),
        vocab_size=vocab_size,
        num_columns=_count(config, ("truncated_vocab_size",), vocab_size),
        bias=any(name.startswith("blocks.") and name.endswith(".bias") for name in names),
        output=("one" if LM_HEAD in names or output_name(0) in names else "target") if shares else "own",
    )


def _num_stored(names: Mapping[str, str], pattern: str) -> int:
    """Return the number of stored heads, from the numbers in their names."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=0)


def _count(config: Mapping[str, Any], keys: tuple[str, ...], default: int | None, most: int = LARGEST) -> int:
    """Return the first of these keys that is present, a whole number above 0."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 1 <= value <= most:
        told = None if value is None else shown_json(value)
        raise CheckpointError(f"the config of these Medusa heads has {key}={told}; it must be a positive number")
    return value


def _stored(layout: Layout, shape: MedusaShape, names: Mapping[str, str], weights: Weights) -> _Stored:
    """Return the expected names and shapes of this file; `names` maps to names with their prefix."""
    shapes = shape.tensor_shapes()
    plain = _fasterdecoding_names(shape) if layout == "fasterdecoding" else {name: name for name in shapes}
    optional: set[str] = set()
    if shape.output == "one" and LM_HEAD not in names:
        plain[LM_HEAD] = output_name(0)
    if layout == "vllm":
        spare = [output_name(head) for head in range(shape.num_heads)] if shape.output == "one" else []
        spare += [] if shape.is_reduced else [TOKEN_MAP]
        optional = {names[name] for name in spare if name in names and name not in plain.values()}
    on_disk = {name: names.get(other, other) for name, other in plain.items()}
    wanted = {on_disk[name]: tensor_shape for name, tensor_shape in shapes.items()}
    whole = (shape.vocab_size, shape.hidden_size)
    for name in _outputs(shape):  # a projection of the whole vocabulary is cut after reading
        if on_disk[name] in weights and weights.shape(on_disk[name]) == whole:
            wanted[on_disk[name]] = whole
    return _Stored(on_disk, wanted, frozenset(optional))


def _outputs(shape: MedusaShape) -> list[str]:
    return [name for name in shape.tensor_shapes() if name.startswith("lm_head")]


def _check_sizes(shape: MedusaShape, stored: _Stored, weights: Weights, target: Target, place: Path) -> None:
    """Refuse heads for a target of other sizes, in one clear sentence."""
    ours = target.spec
    widths, sizes = {shape.hidden_size}, {shape.vocab_size}
    first = stored.names[layer_name(0, 0, "weight")]
    if first in weights:
        widths |= set(weights.shape(first))
    for name in _outputs(shape):
        if not shape.is_reduced and stored.names[name] in weights:
            sizes.add(weights.shape(stored.names[name])[0])
    for found, wanted, what in ((widths, ours.hidden_size, "hidden size"), (sizes, ours.vocab_size, "vocabulary size")):
        if found != {wanted}:
            raise CheckpointError(
                f"{place} holds heads for {what} {max(found - {wanted})}, but target {ours.name} has {wanted};"
                " load them with the target they were trained for"
            )


class _Settled(NamedTuple):
    shape: MedusaShape
    tensors: dict[str, Tensor]


def _settled(shape: MedusaShape, tensors: dict[str, Tensor], target: Target, place: Path) -> _Settled:
    """Cut projections to the token map, and drop a projection that equals the target's head."""
    if shape.is_reduced:
        ids_K = tensors[TOKEN_MAP] = tensors[TOKEN_MAP].to(torch.int64)
        if int(ids_K.min()) < 0 or int(ids_K.max()) >= shape.vocab_size or len(set(ids_K.tolist())) < len(ids_K):
            raise CheckpointError(
                f"token_map in {place} must hold {shape.num_columns} different ids below {shape.vocab_size};"
                " write it again"
            )
        whole = [name for name in _outputs(shape) if len(tensors[name]) == shape.vocab_size]
        return _Settled(shape, tensors | {name: tensors[name][ids_K] for name in whole})
    if shape.output == "one":
        head_VE = target.shared_weights().head_VE.cpu()
        if torch.equal(tensors[LM_HEAD].to(head_VE.dtype), head_VE):
            rest = {name: tensor for name, tensor in tensors.items() if name != LM_HEAD}
            return _Settled(replace(shape, output="target"), rest)
    return _Settled(shape, tensors)


def _accuracies(measured: Mapping[str, Any], shape: MedusaShape, directory: Path) -> tuple[tuple[float, ...], ...]:
    found = measured.get("rank_accuracies", [])
    try:
        accuracies = tuple(tuple(float(share) for share in shares) for shares in found)
    except (TypeError, ValueError, OverflowError):
        accuracies = ((-1.0,),)
    shares = [share for row in accuracies for share in row]
    if (accuracies and len(accuracies) != shape.num_heads) or not all(0 <= share <= 1 for share in shares):
        raise CheckpointError(
            f"rank_accuracies in {directory / 'config.json'} must be {shape.num_heads} lists of shares from 0 to 1;"
            " delete the key to draft with the built-in tree"
        )
    return accuracies


def _tree(measured: Mapping[str, Any], shape: MedusaShape, directory: Path) -> tuple[tuple[int, ...], ...]:
    paths: list[tuple[int, ...]] = [()]
    found = measured.get("tree", [])
    for path in found if isinstance(found, list) else [None]:
        ranks = tuple(path) if isinstance(path, list) and all(isinstance(rank, int) for rank in path) else ()
        if not 1 <= len(ranks) <= shape.num_heads or min(ranks) < 0 or ranks in paths or ranks[:-1] not in paths:
            raise CheckpointError(
                f"tree in {directory / 'config.json'} has {shown_json(path)} where a path of ranks must be, at most"
                f" {shape.num_heads} deep and behind its parent; delete the key to draft with the built-in tree"
            )
        paths.append(ranks)
    return tuple(paths[1:])
