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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import GenerationConfig, PreTrainedConfig

from outrider.cache import CachePlan
from outrider.errors import CheckpointError
from outrider.models.config_keys import check_eos
from outrider.models.families.config import family_config, filled_config, read_config
from outrider.models.families.fields import fields_of, ids_of
from outrider.models.families.parts import ExpertSpec, RopeSpec, Temperature
from outrider.models.support import FAMILIES, is_supported
from outrider.records.json_fields import read_json

__all__ = [
    "FAMILIES",
    "DecoderSpec",
    "ExpertSpec",
    "RopeSpec",
    "Temperature",
    "filled_config",
    "is_supported",
    "read_config",
]

LLAMA4 = "llama4_text"


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

    Llama 4 rotates neighbouring numbers of a head (`interleaved`). Its layers are of two kinds: those that rotate
    (`rotated`), whose queries and keys have unit variance (`unit_heads`), and others, whose queries grow with their
    position (`temperature`). A layer with a chunk c (`chunks`) sees the keys of its position's chunk only: those from
    `q // c * c` on. These tuples have one entry per layer, or are empty.
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
    interleaved: bool = False
    unit_heads: bool = False
    rotated: tuple[bool, ...] = ()
    chunks: tuple[int | None, ...] = ()
    temperature: Temperature | None = None

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
        filled = family_config(config, where)
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
        return cls(**fields_of(config, ids_of(generation.eos_token_id if generation else None)))

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

    @property
    def rotary_dim(self) -> int:
        """The numbers of a head that rotary positions turn, from its first on."""
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def max_positions(self) -> int:
        """The longest text that one set of rotary frequencies serves."""
        is_long = self.rope.type == "longrope"
        original = self.rope.original_max_position_embeddings if is_long else self.max_position_embeddings
        return min(original, self.max_position_embeddings)

    def dense(self) -> Self:
        """Return the same decoder with plain MLPs, a matrix for each projection, and layers that are alike."""
        family = "llama" if self.fused or self.family == LLAMA4 else self.family.removesuffix("_moe")
        rope = replace(self.rope, partial_rotary_factor=1.0)
        if rope.type == "longrope":
            rope = RopeSpec(theta=rope.theta, original_max_position_embeddings=self.max_position_embeddings)
        alike: dict[str, Any] = {"interleaved": False, "unit_heads": False, "rotated": (), "chunks": ()}
        return replace(self, family=family, experts=(), fused=False, rope=rope, temperature=None, **alike)

    def of_layers(self, layers: Sequence[int]) -> Self:
        """Return the decoder that has only these layers, in that order."""
        return replace(
            self,
            num_layers=len(layers),
            windows=tuple(self.windows[layer] for layer in layers),
            experts=tuple(self.experts_of(layer) for layer in layers) if self.experts else (),
            rotated=tuple(self.rotates(layer) for layer in layers) if self.rotated else (),
            chunks=tuple(self.chunk_of(layer) for layer in layers) if self.chunks else (),
        )

    def experts_of(self, layer: int) -> ExpertSpec | None:
        """Return the experts of a layer, None for a plain MLP."""
        return self.experts[layer] if self.experts else None

    def rotates(self, layer: int) -> bool:
        """Return whether a layer has rotary positions."""
        return self.rotated[layer] if self.rotated else True

    def chunk_of(self, layer: int) -> int | None:
        """Return the size of a layer's chunks, None where it sees the whole text."""
        return self.chunks[layer] if self.chunks else None

    @property
    def smallest_chunk(self) -> int | None:
        """The size of the smallest chunks of all layers."""
        return min((chunk for chunk in self.chunks if chunk is not None), default=None)

    def cache_plan(
        self, num_slots: int, capacity: int, tail: int, dtype: torch.dtype, *, transposed_keys: bool
    ) -> CachePlan:
        """Return the plan of a cache for all layers; see `CachePlan`."""
        return CachePlan(
            num_layers=self.num_layers,
            num_slots=num_slots,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            capacity=capacity,
            tail=tail,
            dtype=dtype,
            transposed_keys=transposed_keys,
        )

    @property
    def mlp_name(self) -> str:
        """The name of a layer's MLP in a checkpoint."""
        return "feed_forward" if self.family == LLAMA4 else "mlp"

    @property
    def router_name(self) -> str:
        """The name of a layer's router in a checkpoint."""
        return "feed_forward.router" if self.family == LLAMA4 else "mlp.gate"

    def _layer_shapes(self, experts: ExpertSpec | None) -> dict[str, tuple[int, ...]]:
        width = self.hidden_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attended = {"q": queries, "k": keys, "v": keys}
        linears = {f"self_attn.{name}_proj": (rows, width, self.qkv_bias) for name, rows in attended.items()}
        linears["self_attn.o_proj"] = (width, queries, self.o_bias)
        for mlp, inner in self._mlps(experts):
            linears[f"{mlp}.gate_proj"] = linears[f"{mlp}.up_proj"] = (inner, width, self.mlp_bias)
            linears[f"{mlp}.down_proj"] = (width, inner, self.mlp_bias)
        if self.fused:
            linears = {name: linears[name] for name in ("self_attn.o_proj", "mlp.down_proj")}
            linears["self_attn.qkv_proj"] = (queries + 2 * keys, width, False)
            linears["mlp.gate_up_proj"] = (2 * self.intermediate_size, width, False)
        if experts is not None:
            linears[self.router_name] = (experts.num_experts, width, False)
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

    def _mlps(self, experts: ExpertSpec | None) -> list[tuple[str, int]]:
        """Return the names and inner sizes of a layer's MLPs."""
        if experts is None:
            return [(self.mlp_name, self.intermediate_size)]
        shared = [(f"{self.mlp_name}.shared_expert", experts.shared_size)] if experts.shared_size else []
        return [(f"{self.mlp_name}.experts.{one}", experts.inner_size) for one in range(experts.num_experts)] + shared
