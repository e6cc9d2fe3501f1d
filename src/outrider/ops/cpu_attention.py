"""The attention kernel's launches, and their arguments: with scratch it attends, without it only fills the cache.

Example: 4 rows of 9 heads on 2 threads of a cache of 100 positions take lines of scores of 192 numbers each.
"""

import torch
from torch import Tensor

from outrider.kernels.cpu.attention import MAX_HEAD_DIM, MAX_ROWS, POSITIONS, attention, scores_in, scratch_size
from outrider.kernels.cpu.cached.kinds import BF16, CODES, PLAIN, SCALE_BYTES
from outrider.kernels.cpu.softmax import MAX_HEADS
from outrider.ops.base import AttentionShape, HeadNorm, Rope
from outrider.ops.cpu_placement import address, bits_of, floats, placement_shape
from outrider.ops.cpu_products import Launch
from outrider.placement import Placement

__all__ = ["PLACED", "attention_launch"]

CACHED = {torch.float32: PLAIN, torch.bfloat16: BF16, torch.int8: CODES}
PLACED = 10
"""The first of the arguments that differ from step to step: the numbers of a placement."""
TASKS_PER_THREAD = 3


def attention_launch(
    qkv_RQ: Tensor,
    out_RO: Tensor | None,
    shape: AttentionShape,
    rope: Rope,
    keys_CHSD: Tensor,
    values_CHSD: Tensor,
    placement: Placement,
    placed: tuple[int, ...],
    head_norm: HeadNorm | None,
    threads: int,
    *,
    is_recorded: bool = False,
) -> Launch:
    """Return the launch that writes keys and values and, with `out_RO`, attends.

    Args:
        placed: the addresses of the placement.
        is_recorded: leave the scratch out: a graph has one for all its layers.
    """
    B, M, T = placement_shape(placement)
    H, G, D, S = shape.num_heads, shape.num_kv_heads, shape.head_dim, keys_CHSD.shape[2]
    assert qkv_RQ.shape == (B * M, (H + 2 * G) * D), f"{tuple(qkv_RQ.shape)} for {B * M} rows of {H} + 2 * {G} heads"
    kind = checked_cache(keys_CHSD, values_CHSD, D)
    scratch, row, heads, height = None, 0, 0, 0
    if out_RO is not None:
        row, heads = scores_in(placement.limit), min(MAX_HEADS, H // G) if threads <= B * M * G else 1
        height = max(1, min(MAX_ROWS, B * M * G // (TASKS_PER_THREAD * threads)))
        if not is_recorded:
            scratch = torch.empty(scratch_size(threads, height, heads, row), dtype=torch.float32)
    return Launch(
        attention.address,
        (qkv_RQ, out_RO, rope.cos_PD, rope.sin_PD, keys_CHSD, values_CHSD, scratch),
        (
            floats(qkv_RQ),
            floats(out_RO),
            floats(rope.cos_PD),
            floats(rope.sin_PD),
            floats(None if head_norm is None else head_norm.query_D),
            floats(None if head_norm is None else head_norm.key_D),
            bits_of(0.0 if head_norm is None else head_norm.eps),
            bits_of(shape.scale),
            address(keys_CHSD.transpose(-1, -2), keys_CHSD.dtype),
            address(values_CHSD, keys_CHSD.dtype),
            *placed,
            B,
            M,
            T,
            H,
            G,
            D,
            S,
            kind,
            shape.sliding_window or -(shape.chunk or 0),  # chunks have the other sign
            0 if scratch is None else scratch.data_ptr(),
            row,
            heads,
            height,
        ),
    )


def checked_cache(keys_CHSD: Tensor, values_CHSD: Tensor, head_dim: int) -> int:
    """Return the kernels' number for what a cache holds, once its sizes are what they take."""
    kind, positions = CACHED[keys_CHSD.dtype], keys_CHSD.shape[2]
    assert head_dim <= MAX_HEAD_DIM, f"head size {head_dim} exceeds {MAX_HEAD_DIM}"
    assert keys_CHSD.shape == values_CHSD.shape, "keys and values differ in shape"
    stored = head_dim + (SCALE_BYTES if kind == CODES else 0)
    assert keys_CHSD.shape[3] == stored, f"{keys_CHSD.shape[3]} numbers a head"
    assert positions % POSITIONS == 0, f"a cache of {positions} positions, not of a multiple of {POSITIONS}"
    return kind
