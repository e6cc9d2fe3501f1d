"""Medusa heads: each reads the target's last state and guesses a token further ahead (arXiv 2401.10774, section 2.1).

h is the state of the last token that the target has read, after its final norm, from which its own output head predicts
the root. Head d predicts the d-th token after the root, from the same h, independently of the other heads:

    x   = h
    x  += silu(W_dl x + b_dl)          for every residual layer l, mostly one
    logits_d = W_out_d x

Each head has an output projection of its own, or all share one: the target's, then through `Target.project`, or one
stored with the heads. A reduced vocabulary (`token_map`) keeps only some of its rows.

Worked example: text x0 x1 x2, root x3 not yet read. h is that of x2; head 1 guesses x4, head 2 guesses x5.

Legend: R rows, B slots, E hidden size, K output columns, V the target's vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn.functional import silu

from outrider.ops.base import Ops, Packed
from outrider.ops.select import choose_ops

__all__ = ["LM_HEAD", "TOKEN_MAP", "MedusaHeads", "MedusaShape", "Output", "layer_name", "output_name"]

Output = Literal["own", "one", "target"]
"""Owner of the output projections: each head, all heads together, or the target."""

LM_HEAD = "lm_head.weight"
TOKEN_MAP = "token_map"


def layer_name(head: int, layer: int, part: str) -> str:
    """Name a residual layer's weight or bias; heads and layers count from 0."""
    return f"blocks.{head}.layers.{layer}.{part}"


def output_name(head: int) -> str:
    """Name a head's own output projection."""
    return f"lm_heads.{head}.weight"


@dataclass(frozen=True, kw_only=True)
class MedusaShape:
    """The sizes that fix the names and shapes of the tensors. `num_columns` is below `vocab_size` with a token map."""

    num_heads: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_columns: int
    bias: bool
    output: Output

    @property
    def is_reduced(self) -> bool:
        return self.num_columns < self.vocab_size

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor; linear weights are (out, in)."""
        width = self.hidden_size
        parts = {"weight": (width, width)} | ({"bias": (width,)} if self.bias else {})
        shapes: dict[str, tuple[int, ...]] = {
            layer_name(head, layer, part): shape
            for head in range(self.num_heads)
            for layer in range(self.num_layers)
            for part, shape in parts.items()
        }
        names = {"own": [output_name(head) for head in range(self.num_heads)], "one": [LM_HEAD], "target": []}
        shapes |= dict.fromkeys(names[self.output], (self.num_columns, width))
        return shapes | ({TOKEN_MAP: (self.num_columns,)} if self.is_reduced else {})


@final
class MedusaHeads:
    """The heads, packed for the target's device in the target's dtype."""

    def __init__(
        self,
        shape: MedusaShape,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        head_VE: Tensor | None,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        """Pack `weights`, named as in `MedusaShape.tensor_shapes`.

        Args:
            head_VE: the target's output head, where the heads project with some of its rows.
            project: the target's output head as a function of states, for heads that use all of it.
        """
        self.shape = shape
        self.ops: Ops = choose_ops(device, dtype)
        self.ids_K: Tensor | None = weights[TOKEN_MAP].to(device) if shape.is_reduced else None
        heads = range(shape.num_heads)
        self._first = self._pack(weights, heads, 0)  # all heads read the same state: one product
        self._deeper = [[self._pack(weights, [head], layer) for head in heads] for layer in range(1, shape.num_layers)]
        packer = self.ops.narrow()
        self._outputs = [packer.pack(weights[name]) for name in shape.tensor_shapes() if name.startswith("lm_head")]
        if head_VE is not None and self.ids_K is not None:
            self._outputs = [packer.pack(head_VE[self.ids_K.to(head_VE.device)])]
        self._project: Callable[[Tensor], Tensor] = self._own_output(0) if self._outputs else project

    def _pack(self, weights: Mapping[str, Tensor], heads: Sequence[int], layer: int) -> Packed:
        """Pack one layer of some heads, side by side."""
        weight_OE = torch.cat([weights[layer_name(head, layer, "weight")] for head in heads])
        biases = [weights[layer_name(head, layer, "bias")] for head in heads] if self.shape.bias else []
        return self.ops.narrow().pack(weight_OE, torch.cat(biases) if biases else None)

    def _own_output(self, head: int) -> Callable[[Tensor], Tensor]:
        return lambda states_RE: self.ops.norm_project(states_RE, None, 0.0, self._outputs[head])

    @property
    def num_bytes(self) -> int:
        """Memory of the weights that are not the target's."""
        packed = [self._first, *(layer for layers in self._deeper for layer in layers), *self._outputs]
        return sum(part.num_bytes for part in packed)

    @torch.inference_mode()
    def predict(self, states_BE: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Return logits of the first `depths[b]` heads for each slot b.

        Returns:
            One tensor [R, K] per head that is needed at all: its rows are the slots with that depth, in order. A shared
            output projection reads its weights once for all heads.
        """
        rows = [[slot for slot, depth in enumerate(depths) if depth > head] for head in range(max(depths, default=0))]
        if not rows:
            return []
        inner_HBE = self._inner(states_BE.to(self.ops.activation_dtype).contiguous())
        # A head that every slot needs is read without a gather.
        whole = len(states_BE)
        inner = [inner_HBE[head] if len(some) == whole else inner_HBE[head, some] for head, some in enumerate(rows)]
        if self.shape.output == "own":
            return [self._own_output(head)(states_RE) for head, states_RE in enumerate(inner)]
        return list(torch.split(self._project(torch.cat(inner)), [len(some) for some in rows]))

    def _inner(self, states_BE: Tensor) -> Tensor:
        """Run the residual layers of all heads: states [H, B, E]."""
        B, E = states_BE.shape
        added_BHE = silu(self.ops.norm_project(states_BE, None, 0.0, self._first)).view(B, -1, E)
        inner_HBE = (states_BE[:, None] + added_BHE).transpose(0, 1).contiguous()
        for layers in self._deeper:
            for head, layer in enumerate(layers):
                inner_HBE[head] += silu(self.ops.norm_project(inner_HBE[head], None, 0.0, layer))
        return inner_HBE
