"""Suspects that every drafter with decoder layers shares: rotary positions, numbers of heads, norms.

A config is often copied from another model, and converters rearrange query and key rows for the other convention of
rotary pairs, or store norms as differences from 1 (Gemma). The target's own values are the first guess.

    interleaved   pairs (0, 1), (2, 3), ..    (Llama's original files, GGUF)
    halves        pairs (0, D/2), (1, D/2 + 1), ..   (Hugging Face)

Example: a head with `rope_theta` 10000 for a target with 500000 gets the variant "rope base 500000".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from outrider.doctor.variant import Config, Tensors, Variant
from outrider.models.spec import DecoderSpec, RopeSpec

__all__ = ["MOVED_NORMS", "layer_variants", "norm_names", "section_of"]

DEFAULT_BASE: Final = 10_000.0
"""Rope base of a config that names none."""
BASES: Final = (DEFAULT_BASE, 500_000.0, 1_000_000.0)
"""Rope bases of Llama 2, Llama 3 and Qwen, for a target whose own is unknown."""
MOVED_NORMS: Final = 0.3
"""Mean weight below which norms look like differences from 1."""
MOST_LAYERS: Final = 64


def section_of(config: Mapping[str, Any]) -> Any:
    """Return the part of a config that describes the layers: that of the speculators layout, or all of it."""
    inner = config.get("transformer_layer_config")
    return inner if isinstance(inner, dict) else config


def layer_variants(
    config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], target: DecoderSpec | None
) -> Iterator[Variant]:
    """Yield variants of the layers' config and weights.

    Args:
        shapes: shape of every stored tensor.
        target: the target's own sizes; None if they are unknown.
    """
    section = section_of(config)
    yield from _ropes(section, target)
    if target is not None:
        yield from _sizes(section, target)
    yield from _pairs(section, shapes)


def _ropes(section: Mapping[str, Any], target: DecoderSpec | None) -> Iterator[Variant]:
    base, scaling = _base(section), _scaling(section)
    wanted = None if target is None else target.rope.theta
    for value in dict.fromkeys(BASES if wanted is None else (wanted, DEFAULT_BASE)):
        if value != base:
            yield Variant(
                check="rope",
                now=f"rope base {base:g}",
                instead=f"{value:g}" + (", the target's" if value == wanted else ""),
                remedy=f"set rope_theta to {value:g}",
                is_expected=value == wanted,
                config=_setting_base(value),
            )
    ours = None if target is None else _scaling_of(target.dense().rope)
    if ours != scaling:
        yield Variant(
            check="rope",
            now=f"rope scaling {_kind(scaling)}",
            instead=_kind(ours) + (", the target's" if target is not None else ""),
            remedy=f"set rope_scaling to {ours if ours is not None else 'null'}",
            is_expected=target is not None,
            config=_setting_scaling(ours),
        )


def _base(section: Mapping[str, Any]) -> float:
    nested = section.get("rope_parameters")
    places = [nested, section] if isinstance(nested, Mapping) else [section]
    found = next((place["rope_theta"] for place in places if place.get("rope_theta") is not None), DEFAULT_BASE)
    return float(found) if isinstance(found, int | float) else DEFAULT_BASE


def _scaling(section: Mapping[str, Any]) -> Any:
    nested = section.get("rope_parameters")
    if isinstance(nested, Mapping):
        rest = {key: value for key, value in nested.items() if key != "rope_theta"}
        return None if rest.get("rope_type", "default") == "default" else rest
    return section.get("rope_scaling")


def _scaling_of(rope: RopeSpec) -> dict[str, Any] | None:
    if rope.type == "default":
        return None
    names = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate"),
    }
    return {"rope_type": rope.type} | {name: getattr(rope, name) for name in names[rope.type]}


def _kind(scaling: Any) -> str:
    if not isinstance(scaling, Mapping):
        return "none"
    factor = scaling.get("factor")
    return f"{scaling.get('rope_type', scaling.get('type'))}" + (f" of factor {factor:g}" if factor else "")


def _setting_base(value: float) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        section = section_of(config)
        nested = section.get("rope_parameters")
        (nested if isinstance(nested, dict) else section)["rope_theta"] = value

    return change


def _setting_scaling(value: Mapping[str, Any] | None) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        section = section_of(config)
        nested = section.get("rope_parameters")
        if isinstance(nested, dict):
            section["rope_parameters"] = {"rope_theta": _base(section), **(value or {"rope_type": "default"})}
        else:
            section["rope_scaling"] = value

    return change


def _sizes(section: Mapping[str, Any], target: DecoderSpec) -> Iterator[Variant]:
    """Yield the target's numbers of heads and epsilon, where the head has others."""
    heads = {
        "num_attention_heads": target.num_heads,
        "num_key_value_heads": target.num_kv_heads,
        "head_dim": target.head_dim,
    }
    known = {key: section.get(key) for key in heads}
    if any(value is not None and value != heads[key] for key, value in known.items()):
        yield Variant(
            check="attention heads",
            now=f"{known['num_attention_heads']} heads and {known['num_key_value_heads']} for keys",
            instead=f"{target.num_heads} and {target.num_kv_heads}, of {target.head_dim} each, as the target",
            remedy=f"set {', '.join(f'{key} to {value}' for key, value in heads.items())}",
            is_expected=True,
            config=_setting(heads),
        )
    eps = section.get("rms_norm_eps")
    if isinstance(eps, int | float) and eps != target.rms_norm_eps:
        yield Variant(
            check="norm epsilon",
            now=f"rms_norm_eps {eps:g}",
            instead=f"{target.rms_norm_eps:g}, the target's",
            remedy=f"set rms_norm_eps to {target.rms_norm_eps:g}",
            is_expected=True,
            config=_setting({"rms_norm_eps": target.rms_norm_eps}),
        )


def _setting(values: Mapping[str, Any]) -> Callable[[Config], None]:
    return lambda config: section_of(config).update(values)


def _pairs(section: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Iterator[Variant]:
    """Yield both rearrangements of the query and key rows."""
    names = [name for name in shapes if name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"))]
    heads = section.get("num_attention_heads")
    if not names or len(names) > 4 * MOST_LAYERS or type(heads) is not int or heads < 1:
        return
    queries = next((shapes[name][0] for name in names if ".q_proj." in name), 0)
    size = section.get("head_dim") or queries // heads
    if type(size) is not int or size < 4 or size % 2 or any(shapes[name][0] % size for name in names):
        return
    for instead, remedy, is_split in (
        ("interleaved", "rearrange query and key rows from interleaved rotary pairs to halves", True),
        (
            "halves that were rearranged once too often",
            "rearrange query and key rows back, to interleaved pairs",
            False,
        ),
    ):
        yield Variant(
            check="rotary pairs",
            now="the rows of queries and keys hold rotary pairs in halves",
            instead=instead,
            remedy=remedy,
            tensors=_rearranging(names, size, is_split),
        )


def _rearranging(names: Sequence[str], size: int, is_split: bool) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            tensors[name] = rearranged(tensors[name], size, is_split)

    return change


def rearranged(rows: Tensor, size: int, is_split: bool) -> Tensor:
    """Return rows with the pairs of every head of `size` rows in halves instead of interleaved, or the reverse.

    >>> rearranged(torch.tensor([0, 1, 2, 3]), 4, True).tolist()
    [0, 2, 1, 3]
    """
    shape = (size // 2, 2) if is_split else (2, size // 2)
    heads = rows.reshape(-1, *shape, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape).contiguous()


def norm_names(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the names of norms' weights."""
    return [name for name, shape in shapes.items() if len(shape) == 1 and "norm" in name and name.endswith(".weight")]


def moved_norms(names: Sequence[str]) -> Variant:
    """Return the variant whose norms are stored as differences from 1."""

    def change(tensors: Tensors) -> None:
        for name in names:
            tensors[name] = (tensors[name].to(torch.float32) + 1).to(tensors[name].dtype)

    return Variant(
        check="norm weights",
        now="norm weights are factors",
        instead="differences from 1",
        remedy="add 1 to the weights of the norms: they were stored as differences from 1",
        tensors=change,
    )
