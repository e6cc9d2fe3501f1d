"""Rotary position embeddings: the table of angles, for every frequency scaling the family uses.

A head of size D is D/2 planes; at position p plane i is turned by `p * f_i`, with `f_i = theta^(-2i/D)`
(RoFormer, Su et al. 2021, section 3.4.2). Longer contexts rescale the frequencies:

    linear    f_i / s                                              (position interpolation, Chen et al. 2023)
    llama3    f_i where the wavelength is short, f_i / s where it is long, blended between   (Llama 3.1 release)
    yarn      the same with a ramp over i, and cos and sin times 0.1 ln s + 1  (Peng et al. 2023, section 3.4)
    longrope  f_i / s_i, and cos and sin times sqrt(1 + ln s / ln original); others for longer texts (Ding et al. 2024)
    dynamic   plain while the text fits in `max_position_embeddings`; beyond it f_i change as the text grows

Where frequencies would change under cached keys, longer tables are refused.
The arithmetic is in fp32 and in the order `transformers` uses, so that tables are equal bit for bit.

Example: D = 4, theta = 10 000 gives f = (1, 0.01); at p = 3 the angles are (3, 0.03, 3, 0.03).
"""

import math
import threading
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from outrider.errors import CapacityError
from outrider.models.spec import DecoderSpec, RopeSpec, Temperature
from outrider.ops.base import Rope

__all__ = [
    "KeptRope",
    "RopeFrequencies",
    "RopeTables",
    "reach",
    "rope_frequencies",
    "rope_tables",
]


class RopeFrequencies(NamedTuple):
    """Angles per position, fp32 of shape (D/2,), and the factor that cos and sin are multiplied with."""

    inv_freq: Tensor
    attention_factor: float


class RopeTables(NamedTuple):
    """cos and sin of every position's angles (P, D), for D rotated numbers; the second half repeats the first."""

    cos_PD: Tensor
    sin_PD: Tensor


def rope_tables(
    spec: DecoderSpec, num_positions: int, device: torch.device | str = "cpu", beyond: int = 0
) -> RopeTables:
    """Return tables for the positions of a text; cast them to the model's dtype, as `transformers` does.

    Args:
        beyond: further positions that decide no text: scratch rows of a step, or all positions of a draft head.

    Raises `CapacityError` for dynamic scaling and longrope beyond `DecoderSpec.max_positions`.
    """
    if spec.rope.type == "longrope" and num_positions > spec.max_positions:
        raise CapacityError(
            f"{num_positions} positions exceed the original context of {spec.max_positions}, beyond which longrope"
            " would change cached keys; ask for fewer positions"
        )
    if spec.rope.type == "dynamic" and num_positions > spec.max_position_embeddings:
        raise CapacityError(
            f"{num_positions} positions exceed max_position_embeddings {spec.max_position_embeddings}, beyond which"
            " dynamic rope scaling would change cached keys; ask for fewer positions"
        )
    frequencies = rope_frequencies(spec)
    positions = torch.arange(num_positions + beyond, device=device).float()
    angles = positions[:, None] * frequencies.inv_freq.to(device)
    angles_PD = torch.cat((angles, angles), dim=-1)
    if spec.interleaved:  # heads are normalised before the rotation, so it has to keep lengths in fp64 too
        angles_PD = angles_PD.double()
    factor = frequencies.attention_factor
    return RopeTables(angles_PD.cos() * factor, angles_PD.sin() * factor)


def reach(spec: DecoderSpec) -> int:
    """Return how many positions a decoder is made for: its own number, or what YaRN stretches the original ones to."""
    rope = spec.rope
    if rope.type == "longrope":
        return spec.max_positions
    stretched = int(rope.factor * rope.original_max_position_embeddings) if rope.type == "yarn" else 0
    return max(spec.max_position_embeddings, stretched)


@final
class KeptRope:
    """The tables of one model as its back end reads them, for as many positions as the longest cache has.

    Earlier tables are kept beside longer ones, since graphs hold their addresses. Several threads may call it at once.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        device: torch.device,
        activation_dtype: torch.dtype,
        temperature: Temperature | None = None,
    ) -> None:
        self._spec = spec
        self._temperature = temperature
        self._device = device
        self._dtype = torch.promote_types(activation_dtype, torch.float32)
        self._made: list[Rope] = []
        self._lock = threading.Lock()

    def reaching(self, num_positions: int, beyond: int = 0) -> Rope:
        """Return tables for at least that many positions; see `rope_tables`."""
        with self._lock:
            if not self._made or self._made[-1].cos_PD.shape[0] < num_positions + beyond:
                # both halves of a table are equal, and back ends read one; what does not rotate turns by no angle
                half, still = self._spec.rotary_dim // 2, (self._spec.head_dim - self._spec.rotary_dim) // 2
                tables = rope_tables(self._spec, num_positions, self._device, beyond)
                cos_PD, sin_PD = (table[:, :half].to(self._dtype) for table in tables)
                cos_PD, sin_PD = pad(cos_PD, (0, still), value=1.0), pad(sin_PD, (0, still))
                growth_P = self._growth(len(cos_PD))
                self._made.append(Rope(cos_PD=cos_PD.contiguous(), sin_PD=sin_PD.contiguous(), growth_P=growth_P))
            return self._made[-1]

    def _growth(self, num_positions: int) -> Tensor | None:
        """Return the factors of queries; None if all of them are 1."""
        if self._temperature is None or num_positions < self._temperature.step:
            return None
        steps_P = torch.floor((torch.arange(num_positions, device=self._device).float() + 1) / self._temperature.step)
        return (torch.log1p(steps_P) * self._temperature.scale + 1).to(self._dtype)


def rope_frequencies(spec: DecoderSpec) -> RopeFrequencies:
    """Return the frequencies of one head after scaling."""
    rope, dim = spec.rope, spec.rotary_dim
    plain = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    match rope.type:
        case "default" | "dynamic":
            return RopeFrequencies(plain, 1.0)
        case "linear":
            return RopeFrequencies(plain / rope.factor, 1.0)
        case "llama3":
            return RopeFrequencies(_llama3(plain, rope), 1.0)
        case "longrope":
            divisors = torch.tensor(rope.short_factor, dtype=torch.float)
            periods = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
            return RopeFrequencies(1.0 / (divisors * periods), _longrope_attention_factor(rope))
    assert rope.type == "yarn", f"is_supported lets no rope_type {rope.type!r} through"
    return RopeFrequencies(_yarn(rope, dim), _yarn_attention_factor(rope))


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    wavelengths = 2 * math.pi / plain
    longest = rope.original_max_position_embeddings / rope.low_freq_factor
    shortest = rope.original_max_position_embeddings / rope.high_freq_factor
    # Long wavelengths are scaled, short ones kept, those between blended.
    scaled = torch.where(wavelengths > longest, plain / rope.factor, plain)
    turns = rope.original_max_position_embeddings / wavelengths
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where((wavelengths >= shortest) & (wavelengths <= longest), blended, scaled)


def _yarn(rope: RopeSpec, dim: int) -> Tensor:
    periods = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
    low, high = _yarn_dimension(rope.beta_fast, rope, dim), _yarn_dimension(rope.beta_slow, rope, dim)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_dimension(num_turns: float, rope: RopeSpec, dim: int) -> float:
    """Return the dimension whose plane turns `num_turns` times over the original context (YaRN, equation 17)."""
    turns = rope.original_max_position_embeddings / (num_turns * 2 * math.pi)
    return (dim * math.log(turns)) / (2 * math.log(rope.theta))


def _yarn_attention_factor(rope: RopeSpec) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(rope.factor, rope.mscale_all_dim)
    return _yarn_scale(rope.factor, 1.0)


def _longrope_attention_factor(rope: RopeSpec) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
