"""Parts of a decoder's shape that have switches of their own: rotary positions, and mixtures of experts.

Example: `RopeSpec(type="linear", factor=2.0)` turns every plane half as fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedConfig

__all__ = ["ExpertSpec", "RopeSpec", "Temperature"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Scaling of rotary frequencies; `rope.py` holds the formulas.

    `type` is one of default, linear, llama3, yarn, dynamic and longrope. `attention_factor`, `mscale` and
    `mscale_all_dim` are None where the file leaves the choice to the formula. LongRoPE has a divisor per plane:
    `short_factor` up to the original context, `long_factor` beyond. Of a head only the first `partial_rotary_factor`
    turns.
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
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    partial_rotary_factor: float = 1.0

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
            short_factor=tuple(map(float, rope.get("short_factor") or ())),
            long_factor=tuple(map(float, rope.get("long_factor") or ())),
            partial_rotary_factor=real.get("partial_rotary_factor", 1.0),
        )


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """The mixture of experts in the place of a layer's MLP.

    A row goes through the `num_chosen` of `num_experts` MLPs, each `inner_size` wide, that its router finds most
    probable, and adds their outputs times their probabilities, which are divided by their sum if `normalised`.

    Llama 4 multiplies the input of an expert instead, by the sigmoid of its logit (`gated_input`), and every row also
    goes through one more MLP, `shared_size` wide.
    """

    num_experts: int
    num_chosen: int
    inner_size: int
    normalised: bool = True
    gated_input: bool = False
    shared_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Factors of queries that grow with the position p: 1 + scale * log(1 + floor((p + 1) / step))."""

    step: int
    scale: float
