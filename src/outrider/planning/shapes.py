"""Reads and operations of a forward pass, from sizes alone.

A row of a forward multiplies every weight once, 2 operations each, and the step reads every weight once for all rows.
Attention reads each slot's cached keys and values: two products over all heads per row and cached token. The experts
read are those that any row chose (`outrider.target.Mixture`).

    weights of a layer = E (H + 2 G) D + H D E + 3 E I
    reads              = weights + slots * context * 2 L G D        in numbers; times their width in bytes
    operations         = rows * (2 weights + 4 L H D context)

A drafter is described in the same terms by a few sizes (`recipes/drafters/published.toml`), each of them the target's
own unless given.

Worked example: Qwen2.5-7B (28 layers, E 3584, I 18944, H 28, G 4, D 128, V 152064) reads 7.07e9 weights, 14.1 GB in
bf16. A pass of an EAGLE-3 head, one layer whose q, k, v read 2 E and 32000 output columns, reads 0.73 GB.

Shapes: E hidden size, I intermediate size, H query heads, G key/value heads, D head size, L layers, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal

from outrider.models.spec import DecoderSpec
from outrider.target import Mixture

__all__ = ["DrafterSizes", "PassShape", "target_pass"]


@dataclass(frozen=True, kw_only=True)
class PassShape:
    """One forward pass, in numbers (not bytes).

    num_read         weights read once per pass, without experts
    num_multiplied   weights that each row multiplies, its experts among them
    kv_per_token     cached numbers that a slot reads per token of context
    attention_flops  operations of a row, per token of context
    mixture          experts, read by rows
    """

    num_read: int
    num_multiplied: int
    kv_per_token: int = 0
    attention_flops: int = 0
    mixture: Mixture | None = None

    @property
    def num_held(self) -> float:
        """All weights, every expert among them."""
        return self.num_read + (0 if self.mixture is None else self.mixture.size)

    def weights_read(self, num_rows: float) -> float:
        """Return the weights that a pass of so many rows reads."""
        return self.num_read + (0 if self.mixture is None else self.mixture.read(num_rows))

    def plus(self, num_read: int, num_multiplied: int | None = None) -> "PassShape":
        """Return the pass with further weights, each multiplied once unless said otherwise."""
        multiplied = num_read if num_multiplied is None else num_multiplied
        return replace(self, num_read=self.num_read + num_read, num_multiplied=self.num_multiplied + multiplied)


def target_pass(spec: DecoderSpec) -> PassShape:
    """Return a forward of the target: its layers and its output head."""
    return _layers(spec, spec.num_layers).plus(spec.vocab_size * spec.hidden_size)


@dataclass(frozen=True, kw_only=True)
class DrafterSizes:
    """A drafter in sizes; a size of 0 stands for the target's own.

    passes             passes in a row: "depth" one per level of the draft, "one", or "none" (a lookup)
    rows               rows of a slot, over all passes: "nodes" one per node, "one" a single row
    num_layers         decoder layers of a pass
    attention_inputs   states that q, k and v of the first layer read side by side
    projection_inputs  states that a projection E x (n E) joins in every pass; 0 for none
    fused_inputs       the same, once per step
    num_heads_out      output heads side by side, each a residual layer E x E before a shared projection; 0 for one
                       plain head
    head_columns       columns of the output projection
    bytes_per_weight   bytes per weight of a drafter in another precision than the target
    lookup_s           seconds per slot and step, for a method that computes nothing
    """

    passes: Literal["depth", "one", "none"]
    rows: Literal["nodes", "one"] = "nodes"
    num_layers: int = 1
    attention_inputs: int = 1
    projection_inputs: int = 0
    fused_inputs: int = 0
    num_heads_out: int = 0
    head_columns: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    bytes_per_weight: float = 0.0
    lookup_s: float = 0.0

    @property
    def is_foreign(self) -> bool:
        """True if the sizes are those of one model, whatever the target."""
        return self.hidden_size > 0

    def of_model(self, model: DecoderSpec) -> "DrafterSizes":
        """Return the same way of drafting, with a draft model of this shape."""
        return replace(self, num_layers=model.num_layers, **{name: getattr(model, name) for name in OWN_SIZES})

    def each_pass(self, target: DecoderSpec) -> PassShape:
        """Return the shape of one pass of drafting."""
        own = self._spec(target)
        width = own.hidden_size
        columns = min(self.head_columns or target.vocab_size, target.vocab_size)
        residuals = self.num_heads_out * width**2
        layers = _layers(own, self.num_layers)
        beside = (self.attention_inputs - 1) * width * (own.num_heads + 2 * own.num_kv_heads) * own.head_dim
        return layers.plus(beside + self.projection_inputs * width**2).plus(
            columns * width + residuals, max(1, self.num_heads_out) * columns * width + residuals
        )

    def once(self, target: DecoderSpec) -> PassShape:
        """Return what is read once per step."""
        size: int = self.fused_inputs * self._spec(target).hidden_size ** 2
        return PassShape(num_read=size, num_multiplied=size)

    def _spec(self, target: DecoderSpec) -> DecoderSpec:
        return replace(target.dense(), **{name: getattr(self, name) for name in OWN_SIZES if getattr(self, name)})


OWN_SIZES = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")


def _layers(spec: DecoderSpec, num_layers: int) -> PassShape:
    """Return plain decoder layers."""
    width, queries, keys = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention = num_layers * (width * (queries + 2 * keys) + queries * width)
    found = [experts for experts in spec.experts if experts is not None]
    mlps = 3 * width * spec.intermediate_size * (num_layers - len(found))
    chosen, mixture = 0, None
    if found:
        one = sum(3 * width * experts.inner_size for experts in found)
        mlps += sum(3 * width * experts.shared_size for experts in found)
        chosen, routers = found[0].num_chosen * one, len(found) * found[0].num_experts * width
        attention += routers
        mixture = Mixture(
            size=found[0].num_experts * one, num_experts=found[0].num_experts, num_chosen=found[0].num_chosen
        )
    return PassShape(
        num_read=attention + mlps,
        num_multiplied=attention + mlps + chosen,
        kv_per_token=2 * num_layers * keys,
        attention_flops=4 * num_layers * queries,
        mixture=mixture,
    )
