"""The five operations a Llama-family decoder is made of, behind one seam.

A decoder layer is five fused steps; everything between them is a tensor handed on:

    qkv   = norm_project(x, input_norm, eps, qkv_weight)          RMSNorm, then one matrix product
    o     = attend(qkv, ...)                                      rotate, write the cache, read the cache
    x     = project_add(o, o_weight, x)                           residual + product
    h     = gate_up(x, post_norm, eps, gate_up_weight)            silu(gate) * up
    x     = project_add(h, down_weight, x)

with RMSNorm(x) = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions in
the half-rotation convention (Su et al. 2021, arXiv:2104.09864; the halves of a head are the two coordinates) and
grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

Two back ends implement the seam: `TorchOps` (plain PyTorch, any device and dtype, the reference) and `CpuOps` (compiled
kernels, bf16 or fp32 weights, fp32 activations), whose rows are bit-exact whatever else is in the call.

Worked example of the cache and mask: a slot holds 5 committed tokens in positions 0..4 (`length` 5) and the call brings
M = 3 rows: the root and two sibling nodes. They are written to positions 5, 6, 7. Row 2 (the second sibling) sees
positions 0..4, 5 and 7, so its mask row over the tail is [True, False, True]; its rotary position is 6, not 7.

Legend: R rows of the call (B * M), B slots, M rows of one slot, T tail positions, S cached positions, P rotary
positions, F input features, O output features, I inner features, H heads, D head size, Q = (H + 2 * Hkv) * D, C slots
of the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outrider.placement import Placement

__all__ = [
    "AttentionShape",
    "GraphBody",
    "GraphCache",
    "HeadNorm",
    "Ops",
    "Packed",
    "Result",
    "Rope",
]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight in the layout its back end reads fastest; made by `Ops.pack`, read only by the back end that made it."""

    in_features: int
    out_features: int
    num_bytes: int
    data: Tensor
    bias: Tensor | None
    scales: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What is the same for every call of one layer's attention. `scale` multiplies the scores (usually D ** -0.5).

    `sliding_window` w hides the committed position p from a row at position i when i - p >= w.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """RMSNorm over each query and key head before rotation (Qwen3). Weights are [D] in the activation dtype."""

    query_D: Tensor
    key_D: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary tables [P, D / 2] in the activation dtype (fp32 for low-precision activations), any scaling included."""

    cos_PD: Tensor
    sin_PD: Tensor


class Result(NamedTuple):
    """What a replayed body gives: logits [R, V] and features [R, T], each None if it was not asked for."""

    logits_RV: Tensor | None
    features_RT: Tensor | None


GraphBody = Callable[[Tensor, Placement], Result]


class GraphCache(dict[Hashable, Any]):
    """Recorded bodies of one cache, by key; filled by a back end.

    Args:
        reuse_logits: on the CPU logits share one buffer and are valid until a body is repeated again. One buffer serves
            all, where new ones for every call would leave holes of some megabytes in memory and have to be mapped.
            Otherwise they are the caller's own.
    """

    def __init__(self, *, reuse_logits: bool = False) -> None:
        super().__init__()
        self._reuse_logits = reuse_logits
        self._logits_buffer = self._scratch = torch.empty(0, dtype=torch.float32)

    def scratch(self, count: int) -> Tensor:
        """At least that many fp32 numbers, which all bodies share: they run one after the other."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.float32)
        return self._scratch

    def logits(self, R: int, V: int) -> Tensor:
        """Where R rows of logits go, fp32 [R, V]."""
        if not self._reuse_logits:
            return torch.empty(R, V, dtype=torch.float32)
        if self._logits_buffer.numel() < R * V:
            self._logits_buffer = torch.empty(R * V, dtype=torch.float32)
        return self._logits_buffer[: R * V].view(R, V)


class Ops(ABC):
    """The operations of the native decoder. Activations are contiguous 2-D tensors of `activation_dtype`."""

    @property
    @abstractmethod
    def activation_dtype(self) -> torch.dtype:
        """The dtype of the residual stream and of every result."""

    @abstractmethod
    def pack(self, weight_OF: Tensor, bias_O: Tensor | None = None) -> Packed:
        """Lay out a projection once, at load time. The source tensors may be freed afterwards."""

    def narrow(self) -> "Ops":
        """What packs the weights of a drafter for this back end: in fewer bytes where it can compute with them.

        A drafter's numbers may be a little off, since the target has the last word; what it reads is what it costs.
        """
        return self

    @abstractmethod
    def unpack(self, packed: Packed) -> Tensor:
        """The weight [O, F] that was given to `pack`, in the dtype of this back end."""

    @abstractmethod
    def pack_gate_up(self, gate_IF: Tensor, up_IF: Tensor) -> Packed:
        """Lay out the two halves of a gated MLP for `gate_up`; the result has 2 * I output features."""

    @abstractmethod
    def embed(self, table_VF: Tensor, tokens_R: Tensor) -> Tensor:
        """Rows of an embedding table, or of activations, as activations: a new tensor [R, F]."""

    @abstractmethod
    def norm_project(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        """RMSNorm (left out where `norm_F` is None), then the projection with its bias: a new tensor [R, O]."""

    @abstractmethod
    def project_add(self, x_RF: Tensor, packed: Packed, residual_RO: Tensor) -> None:
        """Add the projection of `x_RF` to `residual_RO` in place."""

    @abstractmethod
    def gate_up(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        """RMSNorm, both projections, silu(gate) * up: a new tensor [R, I]. `packed` is from `pack_gate_up`."""

    @abstractmethod
    def attend(
        self,
        qkv_RQ: Tensor,
        shape: AttentionShape,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
        head_norm: HeadNorm | None = None,
    ) -> Tensor:
        """Split, normalise and rotate the heads, write keys and values, attend: a new tensor [R, H * D].

        Row r = b * M + m. Keys and values are one layer's cache, contiguous (keys perhaps transposed), written in place
        in the cache's own dtype. A row that sees nothing gives zeros. Uninitialised cache memory must hold finite
        numbers.
        """

    @abstractmethod
    def collect(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, out_RT: Tensor, column: int) -> None:
        """Copy `x_RF`, or its RMSNorm, into the columns of `out_RT` from `column` on."""

    @property
    def transposes_keys(self) -> bool:
        """Whether `attend` reads keys that lie transposed in memory; see `CachePlan.transposed_keys`."""
        return False

    @property
    def static_shapes(self) -> bool:
        """Whether forwards are recorded for fixed shapes: padding then costs little, and a new shape a graph."""
        return False

    def next_tokens(
        self, logits_RK: Tensor, ids_K: Tensor | None, embedding_VE: Tensor, tokens_R: Tensor, out_RE: Tensor
    ) -> None:
        """Choose the most probable token of each row, for a body that reads what it chose.

        Args:
            ids_K: the tokens of the columns; None if column k is token k.
            embedding_VE: contiguous, in any dtype.
            tokens_R: takes the tokens, int64.
            out_RE: takes their embeddings, in the activation dtype.
        """
        best_R = logits_RK.argmax(-1)
        tokens_R.copy_(best_R if ids_K is None else ids_K[best_R])
        out_RE.copy_(embedding_VE[tokens_R])

    def shifted(self, placement: Placement, by: int) -> Placement:
        """One row for each slot of a chain, `by` positions behind its last one, that sees all before it.

        What is written there earlier in the body counts as committed. `placement.limit` must leave room for it. Rows
        must be written where they stand: at position n of a slot of which n positions are known.
        """
        assert placement.mask_BMT is None, "only chains move on"
        return replace(
            placement,
            lengths_B=placement.write_BM[:, -1] + by,
            positions_BM=placement.positions_BM[:, -1:] + by,
            write_BM=placement.write_BM[:, -1:] + by,
        )

    def decoding_threads(self) -> AbstractContextManager[None]:
        """What a caller holds during many calls in a row; see `Target.decoding_threads`. Here nothing."""
        return nullcontext()

    def replay(
        self, graph_cache: GraphCache, key: Hashable, body: GraphBody, x_RF: Tensor, placement: Placement
    ) -> Result:
        """`body(x_RF, placement)`, perhaps by repeating what an earlier call with an equal key did on the same shapes.

        The body must consist of operations of this class alone, on `x_RF`, on tensors that it makes and on tensors that
        live at least as long as `graph_cache`. It asks nothing of the placement but to hand it on. Here it is simply
        called.

        Args:
            key: with the placement's shape [B, M] it must fix what the body does, and how many rows `x_RF` has. These
                need not be B * M: a body of two inputs gets them one below the other, and takes them apart itself.
        """
        return body(x_RF, placement)
