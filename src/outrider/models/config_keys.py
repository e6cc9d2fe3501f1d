"""Checks of a decoder's `config.json`: the types of its keys, and keys that change the numbers.

`transformers` keeps every key and uses those of the family's class. A key of another family (Granite's
`logits_scaling`, Cohere's `logit_scale`) or of another engine would silently change nothing, although its author meant
it to. So each key is one of these:

    a field of the family's class          read by `spec.py`, or passed to the hf target
    a name that cannot change numbers      ignored: `transformers_version`, `is_llama_config`, dropout, initialisation
    a name that can, with a neutral value  ignored: a multiplier of 1, a window of null
    a name that can, with another value    refused by name

Example: a llama config with `"attention_multiplier": 0.0156` is refused; with 1.0 it is read.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["check_eos", "check_keys", "check_rope", "check_types"]

REQUIRED_SIZES: Final = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**16,
}
OTHER_SIZES: Final = {
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**30,
    "original_max_position_embeddings": 2**30,
    "sliding_window": 2**30,
    "num_experts": 2**16,
    "num_local_experts": 2**16,
    "num_experts_per_tok": 2**16,
    "moe_intermediate_size": 2**24,
    "decoder_sparse_step": 2**16,
    "intermediate_size_mlp": 2**24,
    "attention_chunk_size": 2**30,
    "interleave_moe_layer_step": 2**16,
    "no_rope_layer_interval": 2**16,
    "floor_scale": 2**30,
}
FLAGS: Final = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob")
LLAMA4_FLAGS: Final = ("use_qk_norm", "attn_temperature_tuning")
LAYERED: Final = ("gemma3_text",)
"""Families with rotary settings per kind of layers."""
LAYER_KINDS: Final = {"full_attention", "sliding_attention"}
ROPE_NUMBERS: Final = {
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "partial_rotary_factor",
}
ROPE_OTHERS: Final = {
    *("type", "rope_type", "rope_theta", "original_max_position_embeddings", "truncate"),
    *("short_factor", "long_factor", "mrope_section", "finetuned"),
}
ROPE_SCALES: Final = (
    "factor",
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
)
CHANGES: Final = re.compile(
    "scal(e|ing|ar)|multiplier|factor|softcap|norm|rope|rotary|theta|window|alibi|residual|clip|clamp|expert|moe|lora"
    "|adapter|quant|compression|mup|sink|ntk|yarn|activation|base$|layer_types|attention_chunk|mlp_type|attn_type"
    "|cross_attention|pruned|ssm|mamba|conv|router|per_layer|kv_shared|causal"
)
HARMLESS: Final = re.compile(
    "dropout|init|loss|coef|implementation|flash|fused|version|unsloth|neftune|train|std|grad|dtype|cache|token|name"
    "|_kwargs|label|infer|fla_|memory|^_"
)
NEUTRAL: Final[tuple[object, ...]] = (None, False, 0, 1, "", "none", "default", "silu", "swish", "swiglu", "rmsnorm")
FOREIGN: Final = 'remove the key if it means nothing here, or pass backend="hf" to run what transformers makes of it'


def check_types(config: Fields, *, partial: bool = False) -> None:
    """Refuse a config whose values have other types than the family's, or lie out of range.

    Args:
        partial: the shape may be left out, as in the config of a draft head.
    """
    check_rope(config)
    for name, high in (REQUIRED_SIZES | OTHER_SIZES).items():
        config.integer(name, None, low=1, high=high)
    for name in () if partial else REQUIRED_SIZES:
        config.integer(name)
    config.integer("max_window_layers", None, low=0)
    config.number("rms_norm_eps", None, low=0.0, high=1.0)
    for name in FLAGS:
        config.flag(name, None)
    if config.get("model_type") == "llama4_text":
        for name in LLAMA4_FLAGS:
            config.flag(name, None)
        config.number("attn_scale", None)
        config.integers("moe_layers", None, low=0)
        config.integers("no_rope_layers", None, low=0, high=1)
    config.text("hidden_act", None)
    config.text("hidden_activation", None)
    config.number("query_pre_attn_scalar", None, above=0.0)
    config.texts("layer_types", None)
    config.integers("mlp_only_layers", None, low=0)
    config.texts("architectures", None)
    config.section("quantization_config", None)
    config.text("dtype", None)
    config.text("torch_dtype", None)
    check_eos(config)


def check_eos(config: Fields) -> list[int]:
    """Return the ids that end a text: one, a list, or none."""
    if isinstance(config.get("eos_token_id"), list):
        return config.integers("eos_token_id")
    one = config.integer("eos_token_id", None)
    return [] if one is None else [one]


def check_rope(config: Fields) -> None:
    """Refuse rotary settings of other types, unknown ones, and two that disagree."""
    config.number("rope_theta", None, above=1.0)
    config.number("rope_local_base_freq", None, above=1.0)
    config.number("partial_rotary_factor", None, above=0.0, high=1.0)
    old, new = config.section("rope_scaling", None), config.section("rope_parameters", None)
    for name, rope in (("rope_scaling", old), ("rope_parameters", new)):
        if rope is not None and config.get("model_type") in LAYERED and {*rope} <= LAYER_KINDS:
            for kind in rope:
                _check_rope_section(config, f"{name}.{kind}", rope.section(kind))
        elif rope is not None:
            _check_rope_section(config, name, rope)
    # `rope_scaling` is the older name of the section; a file may hold both.
    if old and new and (left := _rule(old)) != (right := _rule(new)):
        key = next(key for key in sorted(left | right) if left.get(key) != right.get(key))
        raise config.error(
            f"{config.where}: rope_scaling.{key} is {shown_json(left.get(key))} but rope_parameters.{key} is"
            f" {shown_json(right.get(key))}; keep the right one of the two sections"
        )
    _check_theta(config, old, new)


def _check_rope_section(config: Fields, name: str, rope: Fields) -> None:
    for key, value in rope.items():
        if isinstance(value, Mapping):
            raise config.error(
                f"{config.where}: {rope.name(key)} is a section of its own: rotary settings per layer type are not"
                f" supported; write one {name} for all layers"
            )
        if key not in ROPE_NUMBERS | ROPE_OTHERS and not _is_neutral(value):
            raise config.error(
                f"{config.where}: {rope.name(key)} is {shown_json(value)}, which is not supported; {FOREIGN}"
            )
    for key in sorted(ROPE_NUMBERS):
        rope.number(key, None, above=-math.inf if key.startswith("mscale") else 0.0)
    rope.number("rope_theta", None, above=1.0)
    rope.integer("original_max_position_embeddings", None, low=1, high=2**30)
    rope.flag("truncate", None)
    rope.array("short_factor", None)
    rope.array("long_factor", None)
    kinds = [kind for kind in (rope.text("rope_type", None), rope.text("type", None)) if kind is not None]
    if len(set(kinds)) > 1 and "mrope" not in kinds:
        raise config.error(f"{config.where}: {name} has rope_type {kinds[0]!r} but type {kinds[1]!r}; keep one of them")
    if kinds and kinds[0] in ("linear", "dynamic"):
        rope.number("factor")
    scales = [key for key in ROPE_SCALES if not _is_neutral(rope.get(key))]
    if scales and (not kinds or kinds[0] == "default"):
        found = f"rope_type is {kinds[0]!r}" if kinds else "there is no rope_type"
        raise config.error(
            f"{config.where}: {rope.name(scales[0])} is {shown_json(rope[scales[0]])} but {found}; name the type of"
            " scaling, such as linear or yarn"
        )
    low, high = rope.number("low_freq_factor", None), rope.number("high_freq_factor", None)
    if low is not None and high is not None and low > high:
        raise config.error(
            f"{config.where}: {rope.name('low_freq_factor')} {low:g} must not be above high_freq_factor {high:g}"
        )


def _check_theta(config: Fields, *sections: Fields | None) -> None:
    """Refuse two different thetas: `transformers` takes the section's, other engines the one outside."""
    inner = [rope.number("rope_theta", None) for rope in sections if rope]
    thetas = {theta for theta in [config.number("rope_theta", None), *inner] if theta is not None}
    if len(thetas) > 1:
        raise config.error(
            f"{config.where}: rope_theta stands there as {' and as '.join(f'{theta:g}' for theta in sorted(thetas))};"
            " keep the right one"
        )


def _rule(rope: Fields) -> dict[str, Any]:
    """Return a rotary section in one spelling, without theta and null."""
    rule = {"rope_type": rope.get("rope_type", rope.get("type", "default"))} | dict(rope)
    return {key: value for key, value in rule.items() if value is not None and key not in ("type", "rope_theta")}


def check_keys(raw: Fields, own: Collection[str], config: Any, theta: object) -> None:
    """Refuse a key that is not the family's, can change the numbers, and has a value that would.

    Args:
        own: the keys of the family.
        config: the file as `transformers` reads it.
        theta: its rotary base.
    """
    ignored = {"rope_scaling", "rope_theta", "partial_rotary_factor", "per_layer_config", "quantization_config"}
    meaningless = _meaningless_values(raw, config, theta)
    for key, value in raw.items():
        # A key is judged by its name: only one that can change the numbers is refused.
        if key in own or key in ignored or HARMLESS.search(key) or not CHANGES.search(key):
            continue
        if not _is_neutral(value) and value not in meaningless.get(key, ()):
            raise raw.error(
                f"{raw.where}: {raw.name(key)} is {shown_json(value)}, which a {config.model_type} model does not obey;"
                f" {FOREIGN}"
            )


def _meaningless_values(raw: Fields, config: Any, theta: object) -> Mapping[str, tuple[object, ...]]:
    """Return per key the values that do not change what the family does."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    eps, has_norm = config.rms_norm_eps, config.model_type in ("qwen3", "qwen3_moe", "gemma3_text")
    scales = ("attention_multiplier", "attention_scale", "attn_scale", "softmax_scale")
    bases = ("rotary_emb_base", "rope_base", "rotary_base", "rope_freq_base")
    norms = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon")
    return {
        **dict.fromkeys(scales, (head_dim**-0.5,)),
        **dict.fromkeys(bases, (theta,)),
        **dict.fromkeys(norms, (eps,)),
        **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), (has_norm,)),
        **dict.fromkeys(("query_pre_attn_scalar", "rotary_dim"), (head_dim,)),
        "is_causal": (True,),
        "layer_types": (["full_attention"] * config.num_hidden_layers,),
        "sliding_window": (raw.get("sliding_window"),) if raw.get("use_sliding_window") is False else (),
        "max_window_layers": (raw.get("max_window_layers"),),
    }


def _is_neutral(value: object) -> bool:
    if isinstance(value, list | Mapping):
        return not value
    return value is not True and any(value == neutral for neutral in NEUTRAL)
