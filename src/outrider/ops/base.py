"""The operations of a Llama-family decoder, behind one seam.

A decoder layer is five fused operations:

    qkv   = norm_project(x, input_norm, eps, qkv_weight)          RMSNorm, then one matrix product
    o     = attend(qkv, ...)                                      rotate, write the cache, read the cache
    x     = project_add(o, o_weight, x)                           residual + product
    h     = gate_up(x, post_norm, eps, gate_up_weight)            silu(gate) * up
    x     = project_add(h, down_weight, x)

with RMSNorm(x) = x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467), rotary positions in the half-rotation
convention (arXiv:2104.09864) and grouped-query attention (arXiv:2305.13245).

Worked example of the cache and mask: a slot holds 5 committed tokens in positions 0..4 (`length` 5) and the call has
M = 3 rows: the root and two sibling nodes. They are written to positions 5, 6, 7. Row 2 (the second sibling) sees
positions 0..4, 5 and 7: its mask row is [True, False, True], its rotary position 6.

Legend: R rows of the call (B * M), B slots, M rows of one slot, T tail positions, S cached positions, P rotary
positions, F input features, O output features, I inner features, H heads, D head size, Q = (H + 2 * Hkv) * D, C slots
of the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from outrider.noise import ChainLaws, drawn
from outrider.ops.graphs import alone
from outrider.ops.packed import Mlp, Packed, PackedExperts, Routing
from outrider.ops.quantised import Matrix, dense
from outrider.placement import Placement

__all__ = [
    "Activation",
    "AttentionShape",
    "GraphBody",
    "GraphCache",
    "HeadNorm",
    "Mlp",
    "Ops",
    "Packed",
    "PackedExperts",
    "Result",
    "Rope",
    "Routing",
]


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The constants of one layer's attention. `scale` multiplies the scores (usually D ** -0.5).

    `sliding_window` w hides the committed position p from a row at position i when i - p >= w, and `chunk` c when
    p // c != i // c.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """RMSNorm over each query and key head before rotation (Qwen3). Weights are [D] in the activation dtype."""

    query_D: Tensor
    key_D: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary tables [P, D / 2] in the activation dtype (fp32 for low-precision activations), any scaling included.

    `growth_P` are factors of queries alone, by their position; None for none.
    """

    cos_PD: Tensor
    sin_PD: Tensor
    growth_P: Tensor | None = None


class Result(NamedTuple):
    """The result of a body: logits [R, V] and features [R, T], each None if it was not requested."""

    logits_RV: Tensor | None
    features_RT: Tensor | None


GraphBody = Callable[[Tensor, Placement], Result]


class GraphCache(dict[Hashable, Any]):
    """The recorded bodies of one cache, by key; filled by a back end.

    Args:
        reuse_logits: on the CPU, logits share one buffer and are valid until the next replay. New buffers for every
            call would have to be mapped each time and would fragment the memory. If False, logits belong to the caller.
    """

    def __init__(self, *, reuse_logits: bool = False) -> None:
        super().__init__()
        self._reuse_logits = reuse_logits
        self._logits_buffer = self._scratch = torch.empty(0, dtype=torch.float32)

    def scratch(self, count: int) -> Tensor:
        """Return at least `count` fp32 numbers that all bodies share, since they run one after the other."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.float32)
        return self._scratch

    def logits(self, R: int, V: int) -> Tensor:
        """Return the buffer for R rows of logits, fp32 [R, V]."""
        if not self._reuse_logits:
            return torch.empty(R, V, dtype=torch.float32)
        if self._logits_buffer.numel() < R * V:
            self._logits_buffer = torch.empty(R * V, dtype=torch.float32)
        return self._logits_buffer[: R * V].view(R, V)


Activation = Literal["silu", "gelu_tanh"]
Replay = Callable[[GraphCache, Hashable, GraphBody, Tensor, Placement], Result]
"""Runs a body or repeats its recording; see `Ops.replay`."""


class Ops(ABC):
    """The operations of the native decoder. Activations are contiguous 2-D tensors of `activation_dtype`."""

    _replayer: Replay | None = None
    """The recordings of a GPU's forwards (`ops/graph_buckets.py`), for a back end that makes them."""

    @property
    @abstractmethod
    def activation_dtype(self) -> torch.dtype:
        """The dtype of the residual stream and of every result."""

    @abstractmethod
    def pack(self, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None = None) -> Packed:
        """Lay out a projection once, at load time; several matrices become one, one below the other.

        The sources may be freed afterwards. A back end without kernels for quantised matrices widens them.

        Raises:
            CheckpointError: if a quantised matrix holds scales that are not finite.
        """

    def narrow(self) -> "Ops":
        """Return the operations that pack a drafter's weights, in fewer bytes if this back end can compute with them.

        A drafter may be slightly inexact, since the target verifies its tokens; its speed depends on the bytes it
        reads.
        """
        return self

    @abstractmethod
    def unpack(self, packed: Packed) -> Tensor:
        """Return the weight [O, F] that was given to `pack`, in the dtype of this back end."""

    @abstractmethod
    def pack_gate_up(self, gate_IF: Matrix, up_IF: Matrix) -> Packed:
        """Lay out the two halves of a gated MLP for `gate_up`; the result has 2 * I output features."""

    @abstractmethod
    def pack_experts(
        self, router_NF: Matrix, mlps: Iterable[Mlp], routing: Routing, shared: Mlp | None = None
    ) -> PackedExperts:
        """Lay out a mixture of experts: its router, each expert in turn, and the MLP that all rows go through.

        Raises:
            CheckpointError: as `pack`, and if experts are of different kinds where that is not supported.
        """

    def table(self, table_VF: Matrix) -> "Tensor | Packed":
        """Return an embedding table in a form that `embed` reads; a quantised one is widened without kernels for it."""
        return table_VF if isinstance(table_VF, Tensor) else dense(table_VF).to(self.activation_dtype)

    @abstractmethod
    def embed(self, table_VF: Tensor | Packed, tokens_R: Tensor) -> Tensor:
        """Return rows of an embedding table, or of activations, as activations: a new tensor [R, F]."""

    @abstractmethod
    def norm_project(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        """Apply RMSNorm (unless `norm_F` is None) and the projection with its bias; return a new tensor [R, O]."""

    @abstractmethod
    def project_add(self, x_RF: Tensor, packed: Packed, residual_RO: Tensor) -> None:
        """Add the projection of `x_RF` to `residual_RO` in place."""

    @abstractmethod
    def project_norm_add(self, x_RF: Tensor, packed: Packed, norm_O: Tensor, eps: float, residual_RO: Tensor) -> None:
        """Add the RMSNorm of the projection of `x_RF` to `residual_RO` in place (Gemma 3)."""

    @abstractmethod
    def scale(self, x_RF: Tensor, factor: float) -> None:
        """Multiply `x_RF` by `factor` in place."""

    @abstractmethod
    def grow(self, x_RF: Tensor, num_columns: int, factors_P: Tensor, placement: Placement) -> None:
        """Multiply the first columns of each row by the factor of its position, in place (queries of Llama 4)."""

    @abstractmethod
    def gate_up(
        self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed, activation: Activation = "silu"
    ) -> Tensor:
        """Apply RMSNorm, both projections, and activation(gate) * up; return a new tensor [R, I].

        Args:
            packed: from `pack_gate_up`.
            activation: "silu", or "gelu_tanh", GELU in its tanh form.
        """

    @abstractmethod
    def add_experts(self, x_RF: Tensor, norm_F: Tensor, eps: float, experts: PackedExperts) -> None:
        """Add to each row of `x_RF`, in place, what its experts make of its RMSNorm.

        The experts with the largest logits are chosen, of equal ones the first. Their outputs, times the softmax of the
        logits of all experts, are summed in ascending order of the experts; see `Routing` for other rules.
        """

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
        """Split, normalise and rotate the heads, write keys and values, attend; return a new tensor [R, H * D].

        Row r = b * M + m. Keys and values are one layer's cache, contiguous (keys perhaps transposed), written in place
        in the cache's own dtype; in int8, where `caches_int8`, as `CachePlan` describes it, and all rows read what was
        rounded. A row that sees nothing is zero. Uninitialised cache memory must hold finite numbers.
        """

    @abstractmethod
    def store(
        self,
        qkv_RQ: Tensor,
        shape: AttentionShape,
        rope: Rope,
        keys_CHSD: Tensor,
        values_CHSD: Tensor,
        placement: Placement,
        head_norm: HeadNorm | None = None,
    ) -> None:
        """Write keys and values as `attend` does, for rows whose output nobody reads. Not for recorded bodies."""

    @abstractmethod
    def collect(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, out_RT: Tensor, column: int) -> None:
        """Copy `x_RF`, or its RMSNorm, into the columns of `out_RT` from `column` on."""

    @property
    def transposes_keys(self) -> bool:
        """True if `attend` reads keys that are transposed in memory; see `CachePlan.transposed_keys`."""
        return False

    @property
    def caches_int8(self) -> bool:
        """True if `attend` reads and writes keys and values in int8."""
        return False

    @property
    def static_shapes(self) -> bool:
        """True if forwards are recorded for fixed shapes: padding is then cheap, and a new shape needs a graph."""
        return self._replayer is not None

    def next_tokens(
        self,
        logits_RK: Tensor,
        ids_K: Tensor | None,
        embedding_VE: Tensor | Packed,
        tokens_R: Tensor,
        out_RE: Tensor,
        laws: ChainLaws | None = None,
    ) -> None:
        """Choose the most probable token of each row, or draw it, for a body that reads what it chose.

        Args:
            ids_K: the tokens of the columns; None if column k is token k.
            embedding_VE: contiguous, in any dtype, or packed.
            tokens_R: takes the tokens, int64.
            out_RE: takes their embeddings, in the activation dtype.
            laws: settings of each row's draw; None for the most probable token.
        """
        best_R = logits_RK.argmax(-1) if laws is None else drawn(logits_RK, ids_K, laws)
        tokens_R.copy_(best_R if ids_K is None else ids_K[best_R])
        out_RE.copy_(self.embed(embedding_VE, tokens_R))

    def shifted(self, placement: Placement, by: int) -> Placement:
        """Return a placement of one row per slot of a chain, `by` positions behind its last one, that sees all before.

        What the body wrote there earlier counts as committed. `placement.limit` must leave space for it. Rows must be
        written at their own position: position n of a slot of which n positions are known.
        """
        assert placement.mask_BMT is None, "only chains move on"
        return replace(
            placement,
            lengths_B=placement.write_BM[:, -1] + by,
            positions_BM=placement.positions_BM[:, -1:] + by,
            write_BM=placement.write_BM[:, -1:] + by,
        )

    def decoding_threads(self) -> AbstractContextManager[None]:
        """Return a context manager to hold during decoding; see `Target.decoding_threads`."""
        return nullcontext() if self._replayer is None else alone()

    def replay(
        self, graph_cache: GraphCache, key: Hashable, body: GraphBody, x_RF: Tensor, placement: Placement
    ) -> Result:
        """Return `body(x_RF, placement)`, perhaps by repeating a recorded call with an equal key and the same shapes.

        The body must consist of operations of this class alone, on `x_RF`, on tensors that it makes and on tensors that
        live at least as long as `graph_cache`. It may only pass the placement on. A back end without recordings simply
        calls it.

        Args:
            key: together with the placement's shape [B, M] it must determine what the body does, and how many rows
                `x_RF` has. These need not be B * M: a body of two inputs takes them stacked and splits them itself.
        """
        if self._replayer is None:
            return body(x_RF, placement)
        return self._replayer(graph_cache, key, body, x_RF, placement)
