"""The sizes and variants of a Llama-family decoder, read from its `config.json`.

Llama 2/3, SmolLM2 (a Llama), Qwen2/2.5, Qwen3 and Mistral are one network with a few switches: which projections have
a bias, whether queries and keys are normalised per head, which layers see only a window, which have a mixture of
experts, and how rotary frequencies are scaled. `DecoderSpec` names those switches; the native decoder is written
against it and never sees a raw config.

`transformers` fills in what a file leaves out (its config classes carry each family's defaults, and read both the old
`rope_theta` + `rope_scaling` and the newer `rope_parameters`); this module then either states the network exactly or
says in one sentence why it cannot, in which case the slower Hugging Face target runs the model instead.

Example: SmolLM2-135M has 30 layers, 9 query heads and 3 key/value heads of size 64, so
`DecoderSpec.from_config_file(directory).weight_shapes()["model.layers.0.self_attn.k_proj.weight"] == (192, 576)`.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from transformers import GenerationConfig, PreTrainedConfig

from outrider.errors import CheckpointError, as_error
from outrider.models.config_keys import check_eos, check_keys, check_types
from outrider.models.support import FAMILIES, head_dim_of, is_supported, ropes_of
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields, read_json

__all__ = ["FAMILIES", "DecoderSpec", "ExpertSpec", "RopeSpec", "filled_config", "is_supported", "read_config"]

OLD_KEYS = {
    "gemma3_text": frozenset({"rope_local_base_freq", "sliding_window_pattern"}),
    "qwen3_moe": frozenset({"num_experts", "num_local_experts"}),
}
"""Other spellings that a family's class still reads."""


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Scaling of rotary frequencies; `rope.py` holds the formulas.

    `type` is one of default, linear, llama3, yarn and dynamic. `attention_factor`, `mscale` and `mscale_all_dim` are
    YaRN's and None where the file leaves the choice to the formula.
    """

    type: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_config(cls, config: PreTrainedConfig, rope: Mapping[str, Any]) -> Self:
        """Read a normalised config's rotary parameters, a flat dict with `rope_type` and `rope_theta`."""
        original = rope.get("original_max_position_embeddings")
        # tensors take no integer of more than 64 bits
        real = {key: float(value) for key, value in rope.items() if isinstance(value, int | float)}
        stretched = config.max_position_embeddings / original if original else 1.0
        return cls(
            type=rope["rope_type"],
            theta=real["rope_theta"],
            factor=real.get("factor", stretched),
            original_max_position_embeddings=original or config.max_position_embeddings,
            low_freq_factor=real.get("low_freq_factor", 1.0),
            high_freq_factor=real.get("high_freq_factor", 4.0),
            attention_factor=real.get("attention_factor"),
            beta_fast=real.get("beta_fast") or 32.0,
            beta_slow=real.get("beta_slow") or 1.0,
            mscale=real.get("mscale"),
            mscale_all_dim=real.get("mscale_all_dim"),
            truncate=rope.get("truncate", True),
        )


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """The mixture of experts in the place of a layer's MLP.

    A row goes through the `num_chosen` of `num_experts` MLPs, each `inner_size` wide, that its router finds most
    probable, and adds their outputs times their probabilities, which are divided by their sum if `normalised`.
    """

    num_experts: int
    num_chosen: int
    inner_size: int
    normalised: bool = True


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A decoder of the Llama family, complete: with this and the weights its logits are determined.

    `windows` has one entry per layer: None for full attention, else `w`, where a query at position `q` sees the keys
    at positions `q - w + 1 .. q`. `eos_ids` are all ids that end a text, the generation config's first.

    Gemma 3: embeddings are multiplied by `embed_scale`, the weights of norms lack `norm_offset`, the outputs of
    attention and MLP are normalised (`post_norms`), layers with a window have rotary positions of their own
    (`local_rope`), and scores are multiplied by `attention_scale` (None: head_dim ** -0.5).

    Phi-3 stores queries, keys and values as one matrix, and gate and up as another (`fused`).

    `experts` has one entry per layer, None for a plain MLP; it is empty in a model without mixtures of experts.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...]
    eos_ids: tuple[int, ...] = ()
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embed_scale: float = 1.0
    norm_offset: float = 0.0
    post_norms: bool = False
    local_rope: RopeSpec | None = None
    attention_scale: float | None = None
    experts: tuple[ExpertSpec | None, ...] = ()
    fused: bool = False

    @classmethod
    def from_config_file(cls, path: str | Path) -> Self:
        """Read a model directory, or its `config.json`; a `generation_config.json` beside it adds end-of-text ids.

        Raises `CheckpointError` when the file is missing, is not JSON, or describes a decoder outside the family.
        """
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        generation = file.with_name("generation_config.json")
        eos = check_eos(read_json(generation)) if generation.is_file() else None
        return cls.from_config(read_config(file), GenerationConfig(eos_token_id=eos))

    @classmethod
    def from_values(cls, config: Mapping[str, Any], where: str | Path, eos_ids: Collection[int] = ()) -> Self:
        """Read the content of a `config.json`; `where` names its source in messages.

        Args:
            eos_ids: end-of-text ids of the generation config.

        Raises:
            CheckpointError: for a decoder outside the family.
        """
        filled = _family_config(config, where)
        reason = is_supported(filled)
        if reason is not None:
            raise CheckpointError(f"{where} cannot run on the native decoder: {reason}; use the original checkpoint")
        return cls.from_config(filled, GenerationConfig(eos_token_id=list(eos_ids) or None))

    @classmethod
    def from_config(cls, config: PreTrainedConfig, generation: GenerationConfig | None = None) -> Self:
        """Read a `transformers` config object; raises `CheckpointError` with the reason when unsupported."""
        reason = is_supported(config)
        if reason is not None:
            raise CheckpointError(
                f'this model cannot run on the native decoder: {reason}; use the hf target (backend="hf")'
            )
        family = config.model_type
        is_gemma = family == "gemma3_text"
        bias = family in ("llama", "qwen3", "qwen3_moe", "gemma3_text") and config.attention_bias
        eos = _ids(generation.eos_token_id if generation else None) + _ids(config.eos_token_id)
        return cls(
            family=family,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim_of(config),
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope=RopeSpec.from_config(config, _rope_of(config)),
            tie_word_embeddings=config.tie_word_embeddings,
            qkv_bias=bias or family == "qwen2",
            o_bias=bias,
            mlp_bias=family == "llama" and config.mlp_bias,
            qk_norm=family in ("qwen3", "qwen3_moe") or is_gemma,
            windows=_windows(config),
            eos_ids=tuple(dict.fromkeys(eos)),
            fused=family == "phi3",
            experts=_experts(config) if family == "qwen3_moe" else (),
            **(_gemma(config) if is_gemma else {}),
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor under its Hugging Face name; linear weights are (out, in)."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            own = self._layer_shapes(self.experts_of(layer))
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def dense(self) -> Self:
        """Return the same decoder with a plain MLP in every layer, and a matrix for each projection."""
        family = "llama" if self.fused else self.family.removesuffix("_moe")
        return replace(self, family=family, experts=(), fused=False)

    def of_layers(self, layers: Sequence[int]) -> Self:
        """Return the decoder that has only these layers, in that order."""
        return replace(
            self,
            num_layers=len(layers),
            windows=tuple(self.windows[layer] for layer in layers),
            experts=tuple(self.experts_of(layer) for layer in layers) if self.experts else (),
        )

    def experts_of(self, layer: int) -> ExpertSpec | None:
        """Return the experts of a layer, None for a plain MLP."""
        return self.experts[layer] if self.experts else None

    def _layer_shapes(self, experts: ExpertSpec | None) -> dict[str, tuple[int, ...]]:
        width = self.hidden_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attended = {"q": queries, "k": keys, "v": keys}
        linears = {f"self_attn.{name}_proj": (rows, width, self.qkv_bias) for name, rows in attended.items()}
        linears["self_attn.o_proj"] = (width, queries, self.o_bias)
        for mlp in ["mlp."] if experts is None else [f"mlp.experts.{one}." for one in range(experts.num_experts)]:
            inner = self.intermediate_size if experts is None else experts.inner_size
            linears[f"{mlp}gate_proj"] = linears[f"{mlp}up_proj"] = (inner, width, self.mlp_bias)
            linears[f"{mlp}down_proj"] = (width, inner, self.mlp_bias)
        if self.fused:
            linears = {name: linears[name] for name in ("self_attn.o_proj", "mlp.down_proj")}
            linears["self_attn.qkv_proj"] = (queries + 2 * keys, width, False)
            linears["mlp.gate_up_proj"] = (2 * self.intermediate_size, width, False)
        if experts is not None:
            linears["mlp.gate"] = (experts.num_experts, width, False)
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{name}.bias"] = (rows,)
        if self.post_norms:
            shapes |= dict.fromkeys(("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"), (width,))
        if self.qk_norm:
            shapes |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        return shapes


def read_config(path: str | Path) -> PreTrainedConfig:
    """Read a `config.json` of a supported family as a `transformers` config; no code from the directory is ever run.

    Raises `CheckpointError` when the file is missing, broken, or of another family.
    """
    return _family_config(read_json(Path(path)), path)


def _family_config(values: Mapping[str, Any], path: str | Path) -> PreTrainedConfig:
    raw = values if isinstance(values, Fields) else Fields(values, str(path))
    family = raw.text("model_type", "None")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{path} has model_type {shown_json(family)}; the native decoder runs {', '.join(FAMILIES)}"
        )
    return filled_config(raw, family, path)


def filled_config(
    values: Mapping[str, Any], family: str, path: str | Path, *, own: Collection[str] = (), partial: bool = False
) -> PreTrainedConfig:
    """Return the content of a `config.json` as a family's `transformers` config.

    Args:
        own: further keys that the caller obeys.
        partial: the shape may be left out, as in the config of a draft head.

    Raises:
        CheckpointError: for a value of another type, and for a key that is not obeyed but changes the numbers.
    """
    raw = Fields(values, f"{path} is not a valid {family} config", remedy="check it against the original")
    check_types(raw, partial=partial)
    with as_error(CheckpointError, raw.where, raw.remedy):
        config = FAMILIES[family].from_dict(deepcopy(raw.plain()))
        config.standardize_rope_params()  # as the model does again, with a context that stands outside the section
        rope = _rope_of(config)
        if rope.get("rope_theta") is None:
            raise raw.error(f"{raw.where}: rope_theta is null but must be a number above 1; {raw.remedy}")
        known = frozenset(FAMILIES[family]().to_dict()) | OLD_KEYS.get(family, frozenset()) | set(own)
        check_keys(raw, known, config, rope.get("rope_theta"))
    return config


def _rope_of(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the rotary parameters of layers with full attention."""
    return ropes_of(config)[0]


def _gemma(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what only Gemma 3 has."""
    return {
        "activation": "gelu_tanh",
        "embed_scale": config.hidden_size**0.5,
        "norm_offset": 1.0,
        "post_norms": True,
        "local_rope": RopeSpec.from_config(config, config.rope_parameters["sliding_attention"]),
        "attention_scale": config.query_pre_attn_scalar**-0.5,
    }


def _experts(config: PreTrainedConfig) -> tuple[ExpertSpec | None, ...]:
    """Return the experts of every layer of a Qwen3 mixture."""
    experts = ExpertSpec(
        num_experts=config.num_experts,
        num_chosen=config.num_experts_per_tok,
        inner_size=config.moe_intermediate_size,
        normalised=config.norm_topk_prob,
    )
    plain, every = config.mlp_only_layers, config.decoder_sparse_step
    layers = range(config.num_hidden_layers)
    found = tuple(None if layer in plain or (layer + 1) % every else experts for layer in layers)
    return found if any(found) else ()


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    if config.model_type == "llama":
        return (None,) * int(config.num_hidden_layers)
    window: int | None = config.sliding_window
    if config.model_type in ("mistral", "qwen3_moe", "phi3"):
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
