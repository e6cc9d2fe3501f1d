"""The decoder's operations as compiled CPU kernels: weights quantised, in bf16 or in fp32, activations in fp32.

Decoding one row reads every weight once, so it runs at memory speed; a few more rows cost little as long as each weight
is loaded once for all of them. This is what makes verifying a draft cheap.

The bits of an output row depend on that row's input and on what it sees in the cache, never on the other rows of the
call, on the number of threads or on the tiling (see `kernels/cpu/linear.py` and `attention.py`). A draft verified in
one forward therefore gives exactly the logits of decoding token by token.

Engines in several threads share one `CpuOps`; the state of a call belongs to its thread (`Calls`). Kernels are
compiled on first use, for this processor, and kept in numba's cache. Legend in `ops/base.py`.

>>> ops = CpuOps(torch.float32)
>>> eye = ops.pack(torch.eye(2))
>>> ops.norm_project(torch.tensor([[3.0, 4.0]]), None, 0.0, eye).tolist()
[[3.0, 4.0]]
"""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from outrider.env import draft_weights
from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.drawn import drawn_tokens
from outrider.kernels.cpu.greedy import next_tokens, shift
from outrider.kernels.cpu.linear import add_normed, collect, embed, grow, scale
from outrider.kernels.cpu.quant_embed import quant_embed
from outrider.kernels.cpu.rows import ADD, ASSIGN, GATED, GATED_GELU
from outrider.kernels.cpu.threads import launch
from outrider.kernels.torch_threads import lone_torch_thread, num_threads
from outrider.noise import ChainLaws
from outrider.ops.base import Activation, AttentionShape, GraphBody, GraphCache, HeadNorm, Ops, Result, Rope
from outrider.ops.cpu_attention import PLACED, attention_launch
from outrider.ops.cpu_graphs import Calls, CpuGraph, CpuGraphRecorder
from outrider.ops.cpu_packing import Packing, pack_gated, pack_matrices, unpacked
from outrider.ops.cpu_placement import (
    address,
    bits_of,
    checked_addresses,
    floats,
    placement_addresses,
    placement_shape,
)
from outrider.ops.cpu_products import products
from outrider.ops.experts.cpu import expert_launches, pack_mixture
from outrider.ops.packed import Mlp, Packed, PackedExperts, Routing
from outrider.ops.quantised import Matrix
from outrider.placement import Placement

__all__ = ["CpuOps"]

REPLAYED_ROWS = 32  # up to here a forward is short enough for Python to matter, and its buffers are small


@final
class CpuOps(Ops):
    """Weights of `dtype` (bf16 or fp32), or quantised as they are.

    Args:
        threads: by default OUTRIDER_NUM_THREADS, else PyTorch's number.
        exact: pack plain weights without rounding: those that are wider than `dtype` in fp32.
    """

    def __init__(self, dtype: torch.dtype, threads: int | None = None, *, exact: bool = False) -> None:
        self._dtype = dtype
        self._packing = Packing(dtype=dtype, exact=exact)
        self._threads = num_threads() if threads is None else threads
        self._arena = Arena()
        self._calls = Calls()

    @property
    def activation_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def transposes_keys(self) -> bool:
        return True

    @property
    def caches_int8(self) -> bool:
        return True

    def pack(self, weight_OF: Matrix | Sequence[Matrix], bias_O: Tensor | None = None) -> Packed:
        return pack_matrices(self._arena, self._packing, weight_OF, bias_O)

    def pack_gate_up(self, gate_IF: Matrix, up_IF: Matrix) -> Packed:
        return pack_gated(self._arena, self._packing, gate_IF, up_IF)

    def pack_experts(
        self, router_NF: Matrix, mlps: Iterable[Mlp], routing: Routing, shared: Mlp | None = None
    ) -> PackedExperts:
        return pack_mixture(self._arena, self._packing, router_NF, mlps, routing, shared)

    def table(self, table_VF: Matrix) -> Tensor | Packed:
        if isinstance(table_VF, Tensor):
            return table_VF if table_VF.dtype in (torch.bfloat16, torch.float32) else table_VF.float()
        return self.pack(table_VF)

    def narrow(self) -> "CpuOps":
        kind = draft_weights()
        if self._dtype != torch.bfloat16 or kind == "target":
            return self
        packer = copy(self)
        packer._packing = Packing(dtype=self._dtype, rounding="int4" if kind == "int4" else "int8")
        return packer

    def unpack(self, packed: Packed) -> Tensor:
        return unpacked(packed).to(self._dtype)

    def embed(self, table_VF: Tensor | Packed, tokens_R: Tensor) -> Tensor:
        tokens, R = tokens_R.numpy(), len(tokens_R)
        V = table_VF.out_features if isinstance(table_VF, Packed) else len(table_VF)
        F = table_VF.in_features if isinstance(table_VF, Packed) else table_VF.shape[1]
        assert R == 0 or 0 <= tokens.min() <= tokens.max() < V, f"tokens are not within 0..{V - 1}"
        out_RF = torch.empty(R, F, dtype=torch.float32)
        self._embed(table_VF, F, tokens_R, out_RF)
        return out_RF

    def _embed(self, table_VF: Tensor | Packed, F: int, tokens_R: Tensor, out_RF: Tensor) -> None:
        """Look up rows; the tokens of a recorded call may not be known yet."""
        if isinstance(table_VF, Packed):
            kernel, is_bf16, data = quant_embed(table_VF.layout).address, 0, table_VF.data
            table = data.data_ptr()
        else:
            kernel, is_bf16, data = embed.address, int(table_VF.dtype == torch.bfloat16), table_VF
            table = address(data, torch.bfloat16 if is_bf16 else torch.float32)
        arguments = (table, is_bf16, F, address(tokens_R, torch.int64), floats(out_RF), len(tokens_R))
        if self._calls.recorder is None:
            launch(kernel, 1, *arguments)
        else:
            self._calls.recorder.add(kernel, arguments, (data, tokens_R, out_RF))

    def norm_project(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed) -> Tensor:
        out_RO = self._empty(x_RF.shape[0], packed.out_features)
        self._product(x_RF, norm_F, eps, packed, out_RO, ASSIGN)
        return out_RO

    def project_add(self, x_RF: Tensor, packed: Packed, residual_RO: Tensor) -> None:
        self._product(x_RF, None, 0.0, packed, residual_RO, ADD)

    def project_norm_add(self, x_RF: Tensor, packed: Packed, norm_O: Tensor, eps: float, residual_RO: Tensor) -> None:
        R, num_outputs = residual_RO.shape
        out_RO = self._empty(R, num_outputs)
        self._product(x_RF, None, 0.0, packed, out_RO, ASSIGN)
        tensors = (out_RO, norm_O, residual_RO)
        arguments = (floats(out_RO), floats(norm_O), bits_of(eps), num_outputs, floats(residual_RO), R)
        self._run(add_normed.address, tensors, *arguments)

    def scale(self, x_RF: Tensor, factor: float) -> None:
        R, F = x_RF.shape
        self._run(scale.address, (x_RF,), floats(x_RF), bits_of(factor), F, R)

    def grow(self, x_RF: Tensor, num_columns: int, factors_P: Tensor, placement: Placement) -> None:
        (R, F), positions = x_RF.shape, placement_addresses(placement)[2]
        assert placement.positions_BM.numel() == R, f"{R} rows for {tuple(placement.positions_BM.shape)} positions"
        self._run(grow.address, (x_RF, factors_P), floats(x_RF), F, num_columns, floats(factors_P), positions, R)
        self._follow(placement, ((4, 2),))  # the address of positions

    def gate_up(
        self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed, activation: Activation = "silu"
    ) -> Tensor:
        out_RI = self._empty(x_RF.shape[0], packed.out_features // 2)
        self._product(x_RF, norm_F, eps, packed, out_RI, GATED if activation == "silu" else GATED_GELU)
        return out_RI

    def _product(
        self, x_RF: Tensor, norm_F: Tensor | None, eps: float, packed: Packed, out_RO: Tensor, mode: int
    ) -> None:
        for product in products(x_RF, norm_F, eps, packed, out_RO, mode, self._threads, self._empty):
            self._run(product.kernel, product.tensors, *product.arguments)

    def add_experts(self, x_RF: Tensor, norm_F: Tensor, eps: float, experts: PackedExperts) -> None:
        for part in expert_launches(x_RF, norm_F, eps, experts, self._threads, self._empty):
            self._run(part.kernel, part.tensors, *part.arguments)

    def collect(self, x_RF: Tensor, norm_F: Tensor | None, eps: float, out_RT: Tensor, column: int) -> None:
        R, F = x_RF.shape
        assert column + F <= out_RT.shape[1], f"columns {column} to {column + F} of {out_RT.shape[1]}"
        out = floats(out_RT) + 4 * column
        tensors = (x_RF, norm_F, out_RT)
        self._run(collect.address, tensors, floats(x_RF), floats(norm_F), bits_of(eps), F, out, out_RT.shape[1], R)

    def _run(self, kernel: int, tensors: tuple[Tensor | None, ...], *arguments: int) -> None:
        """Launch a kernel on these tensors, or record it."""
        if self._calls.recorder is None:
            launch(kernel, self._threads, *arguments)
        else:
            self._calls.recorder.add(kernel, arguments, tensors)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return lone_torch_thread()

    def replay(
        self, graph_cache: GraphCache, key: Hashable, body: GraphBody, x_RF: Tensor, placement: Placement
    ) -> Result:
        if placement.positions_BM.numel() > REPLAYED_ROWS:
            return body(x_RF, placement)
        key = (key, *placement.positions_BM.shape)
        if key not in graph_cache:
            graph_cache[key] = self._record(graph_cache, body, x_RF, placement)
        graph: CpuGraph = graph_cache[key]
        addresses = checked_addresses(placement, *graph.sizes, graph.num_ahead)
        return graph.run(x_RF, (*addresses, *placement_shape(placement)), graph_cache)

    def _record(self, graph_cache: GraphCache, body: GraphBody, x_RF: Tensor, placement: Placement) -> CpuGraph:
        """Record a body on buffers of its own; attention gets scratch for as many positions as the cache has."""
        recorder = CpuGraphRecorder()
        buffer_RF = x_RF.clone()
        self._calls.recorder = recorder
        try:
            result = body(buffer_RF, placement)
        finally:
            self._calls.recorder = None
        return recorder.graph(self._threads, self._calls.sizes, buffer_RF, result, graph_cache)

    def _empty(self, *shape: int) -> Tensor:
        """Return a buffer for a result: a new one, or while recording the shared one of this shape."""
        recorder = self._calls.recorder
        return torch.empty(shape, dtype=torch.float32) if recorder is None else recorder.empty(*shape)

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
        recorded, placed = self._calls.recorder is not None, self._placed(placement, keys_CHSD, rope)
        out_RO = self._empty(len(qkv_RQ), shape.num_heads * shape.head_dim)
        places = (shape, rope, keys_CHSD, values_CHSD, placement, placed, head_norm, self._threads)
        call = attention_launch(qkv_RQ, out_RO, *places, is_recorded=recorded)
        self._run(call.kernel, call.tensors, *call.arguments)
        self._follow(placement, ((PLACED + number, number) for number in range(8)))
        return out_RO

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
        assert self._calls.recorder is None, "a recorded body attends"
        places = (shape, rope, keys_CHSD, values_CHSD, placement, self._placed(placement, keys_CHSD, rope), head_norm)
        call = attention_launch(qkv_RQ, None, *places, self._threads)
        self._run(call.kernel, call.tensors, *call.arguments)

    def next_tokens(
        self,
        logits_RK: Tensor,
        ids_K: Tensor | None,
        embedding_VE: Tensor | Packed,
        tokens_R: Tensor,
        out_RE: Tensor,
        laws: ChainLaws | None = None,
    ) -> None:
        (R, K), E = logits_RK.shape, out_RE.shape[1]
        assert out_RE.shape == (R, E), f"embeddings of {E} numbers for {tuple(out_RE.shape)}"
        assert tokens_R.shape == (R,), f"{R} rows for {tuple(tokens_R.shape)} tokens"
        assert ids_K is None or ids_K.shape == (K,), "one id per column"
        draws: tuple[int, ...] = ()
        if laws is not None:
            assert laws.numbers_R4.shape == (R, 4), f"{R} rows for {tuple(laws.numbers_R4.shape)} laws"
            ids_K = torch.arange(K) if ids_K is None else ids_K
            draws = (address(laws.numbers_R4, torch.int64), laws.level)
        self._run(
            drawn_tokens.address if draws else next_tokens.address,
            (logits_RK, ids_K, tokens_R, None if laws is None else laws.numbers_R4),
            floats(logits_RK),
            K,
            0 if ids_K is None else address(ids_K, torch.int64),
            address(tokens_R, torch.int64),
            R,
            *draws,
        )
        self._embed(embedding_VE, E, tokens_R, out_RE)

    def shifted(self, placement: Placement, by: int) -> Placement:
        B, M = placement.positions_BM.shape
        assert placement.mask_BMT is None, "only chains move on"
        moved_4B = torch.empty(4, B, dtype=torch.int64)
        slots, _, positions, write, _ = placement_addresses(placement)
        self._run(shift.address, (moved_4B,), slots, write, positions, write, B, by, address(moved_4B, torch.int64), M)
        slots_B, lengths_B, positions_B, write_B = moved_4B
        moved = replace(
            placement,
            slots_B=slots_B,
            lengths_B=lengths_B,
            positions_BM=positions_B[:, None],
            write_BM=write_B[:, None],
        )
        if self._calls.recorder is not None:
            for column, number in enumerate((0, 3, 2, 3)):
                self._calls.recorder.follow(column, number)
            self._calls.recorder.moved.append(moved)
            self._calls.recorder.num_ahead = max(by, self._calls.recorder.num_ahead)
        return moved

    def _follow(self, placement: Placement, places: Iterable[tuple[int, int]]) -> None:
        """Mark arguments of the last kernel, while recording, as numbers of a call's placement."""
        if self._calls.recorder is not None and not self._calls.recorder.knows(placement):
            for column, number in places:
                self._calls.recorder.follow(column, number)

    def _placed(self, placement: Placement, keys_CHSD: Tensor, rope: Rope) -> tuple[int, ...]:
        """Return the addresses of a placement's tensors, checked once for all layers: kernels trust every index."""
        sizes = (keys_CHSD.shape[0], keys_CHSD.shape[2], rope.cos_PD.shape[0])
        if self._calls.placement is not placement or self._calls.sizes != sizes:
            is_known = self._calls.recorder is not None and self._calls.recorder.knows(placement)  # not computed yet
            self._calls.addresses = placement_addresses(placement) if is_known else checked_addresses(placement, *sizes)
            self._calls.placement, self._calls.sizes = placement, sizes
        return self._calls.addresses
