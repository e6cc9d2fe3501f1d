"""The scheme by which a published checkpoint is quantised: the `quantization_config` of its `config.json`.

    compressed-tensors   pack-quantized (4 or 8 bits) and int-quantized (8 bits), in groups or with one scale per row
    AWQ                  4 bits, version GEMM
    GPTQ                 4 or 8 bits, formats gptq and gptq_v2, without act-order

Groups have 32, 64 or 128 features, or are whole rows. A config says little more than that: which modules are quantised
is seen from their tensors. Everything that would change the numbers in another way is refused by name: other methods,
activations quantised with fixed scales, a quantised cache, sparsity, rotations.

Example: `{"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}` has sizes `{(4, 128)}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["QUANTIZATION", "QuantScheme", "quant_scheme"]

QUANTIZATION: Final = "quantization_config"
GROUPS: Final = (32, 64, 128)
CT_FORMATS: Final = {"pack-quantized": (4, 8), "int-quantized": (8,)}
"""Formats of compressed-tensors that are read, with their bits."""


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """A scheme that is read.

    method       "compressed-tensors", "awq" or "gptq"
    sizes        pairs of a code's bits and the features with one scale (None: a whole row); empty if tensors decide
    zero_shift   number added to stored zero points: 1 in GPTQ's first format
    act_order    True if a map from features to groups must be there
    is_symmetric   True if zero points may be missing
    """

    method: str
    sizes: frozenset[tuple[int, int | None]]
    zero_shift: int = 0
    act_order: bool = False
    is_symmetric: bool = False


class _UnreadError(Exception):
    """A scheme that is not read; the message is the middle of a sentence."""


def quant_scheme(config: Mapping[str, Any], where: str = "config.json") -> QuantScheme | str | None:
    """Return the scheme of a `config.json`, the reason (the middle of a sentence) why it is not read, or None for none.

    Args:
        where: the file, for messages.

    Raises:
        CheckpointError: for a value of a wrong type.
    """
    section = Fields(config, where).section(QUANTIZATION, None)
    if section is None:
        return None
    method = section.text("quant_method", None)
    try:
        if method is None:
            raise _UnreadError(f"its {QUANTIZATION} names no quant_method")
        if method not in READERS:
            raise _UnreadError(f"its weights are quantised by {shown_json(method)}, which is not read")
        return READERS[method](section)
    except _UnreadError as reason:
        return str(reason)


def _awq(section: Fields) -> QuantScheme:
    bits = section.integer("bits", section.integer("w_bit", 4))
    if bits != 4:
        raise _UnreadError(f"its AWQ weights have {bits} bits, not 4")
    version = section.text("version", section.text("format", "gemm"))
    if version.lower() != "gemm":
        raise _UnreadError(f"its AWQ weights have the layout {shown_json(version)}, not GEMM")
    backend = section.text("backend", "autoawq")
    if backend == "llm-awq":
        raise _UnreadError("its AWQ weights have the layout of llm-awq, not GEMM")
    group = section.integer("group_size", section.integer("q_group_size", 128))
    return QuantScheme(method="awq", sizes=frozenset({(4, _group(group, "AWQ"))}))


def _gptq(section: Fields) -> QuantScheme:
    layout = section.text("checkpoint_format", section.text("format", "gptq"))
    if layout not in ("gptq", "gptq_v2") or section.flag("is_marlin_format", False):
        name = "marlin" if layout in ("gptq", "gptq_v2") else layout
        raise _UnreadError(f"its GPTQ weights have the layout {shown_json(name)}, not gptq or gptq_v2")
    for key in ("adapter", "rotation", "lora"):
        if section.get(key):
            raise _UnreadError(f"its GPTQ weights have {shown_json(section[key])} as {key}, which is not read")
    bits = section.integer("bits")
    if bits not in (4, 8):
        raise _UnreadError(f"its GPTQ weights have {bits} bits, not 4 or 8")
    size = (bits, _group(section.integer("group_size", -1), "GPTQ"))
    # overrides per module: their tensors' shapes tell what holds
    sizes = frozenset() if section.section("dynamic", None) else frozenset({size})
    return QuantScheme(
        method="gptq",
        sizes=sizes,
        zero_shift=1 if layout == "gptq" else 0,
        act_order=section.flag("desc_act", False),
    )


def _compressed(section: Fields) -> QuantScheme:
    layout = section.text("format")
    for key in ("kv_cache_scheme", "transform_config"):
        if section.get(key):
            raise _UnreadError(f"it has a {key}, which is not read")
    sparsity = section.section("sparsity_config", None)
    if sparsity and sparsity.text("format", "dense") != "dense":
        raise _UnreadError(f"its weights are sparse ({shown_json(sparsity.get('format'))}), which is not read")
    groups = section.section("config_groups")
    if not groups:
        raise _UnreadError("its config_groups are empty")
    sizes = {_compressed_size(groups.section(name), layout) for name in groups}
    symmetric = [groups.section(name).section("weights").flag("symmetric", True) for name in groups]
    return QuantScheme(method="compressed-tensors", sizes=frozenset(sizes), is_symmetric=any(symmetric))


def _compressed_size(group: Fields, whole: str) -> tuple[int, int | None]:
    layout = group.text("format", whole)
    if layout not in CT_FORMATS:
        raise _UnreadError(f"its weights have the format {shown_json(layout)}, not {' or '.join(CT_FORMATS)}")
    _check_activations(group)
    weights = group.section("weights")
    bits, kind = weights.integer("num_bits"), weights.text("type", "int")
    if kind != "int" or bits not in CT_FORMATS[layout]:
        raise _UnreadError(
            f"its weights are of type {shown_json(kind)} with {bits} bits in {layout}, which is not read"
        )
    order = weights.get("actorder")
    if order not in (None, False, "weight", "static"):
        raise _UnreadError(f"its weights have act-order ({shown_json(order)}), which is not read")
    group_size = weights.integer("group_size", None)
    strategy = weights.text("strategy", "channel" if group_size in (None, -1) else "group")
    if strategy == "channel":
        return bits, None
    if strategy != "group":
        raise _UnreadError(f"its scales have the strategy {shown_json(strategy)}, not group or channel")
    return bits, _group(weights.integer("group_size"), "compressed-tensors")


def _check_activations(group: Fields) -> None:
    """Refuse activations with fixed scales; int8 activations with a scale made at run time are what we compute with."""
    if group.get("output_activations"):
        raise _UnreadError("its output activations are quantised, which is not read")
    inputs = group.section("input_activations", None)
    if not inputs:
        return
    kind, bits = inputs.text("type", "int"), inputs.integer("num_bits", 8)
    if inputs.get("dynamic") is not True:
        raise _UnreadError("its activations are quantised statically, which is not read")
    if kind != "int" or bits != 8:
        raise _UnreadError(f"its activations are of type {shown_json(kind)} with {bits} bits, which is not read")


def _group(size: int, method: str) -> int | None:
    if size == -1:
        return None
    if size not in GROUPS:
        raise _UnreadError(f"its {method} groups have {size} features, not 32, 64 or 128")
    return size


READERS: Final = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}
