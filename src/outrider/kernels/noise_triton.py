"""The Gumbel-max draw of `outrider.noise` as one Triton kernel.

In plain PyTorch the hash alone is some twenty passes over rows x vocabulary in 64-bit integers: at 128 requests it took
longer than the forward of a small model. Here a program reads a row of logits once, computes its noise in registers and
keeps the best score of each lane; ties go to the lowest token. The numbers are those of `noise.gumbel`: 32-bit words,
logarithms in fp64.

Shapes: R rows, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["pick"]

GOLDEN = tl.constexpr(0x9E3779B9)
FIRST = tl.constexpr(0x21F0AAAD)
SECOND = tl.constexpr(0x735A2D97)
BLOCK = 2048


@triton.jit
def mix(word):
    word = word ^ (word >> 16)
    word = word * FIRST
    word = word ^ (word >> 15)
    word = word * SECOND
    return word ^ (word >> 15)


@triton.jit  # type: ignore[untyped-decorator]
def pick_row(logits_RV, keys_R2, out_R, V, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    first, second = tl.load(keys_R2 + 2 * row).to(tl.uint32), tl.load(keys_R2 + 2 * row + 1).to(tl.uint32)
    lanes = tl.arange(0, BLOCK)
    best, best_at = tl.full([BLOCK], float("-inf"), tl.float64), lanes
    for start in range(0, V, BLOCK):
        v = start + lanes
        word = mix(mix(((v + 1).to(tl.uint32) * GOLDEN) ^ first) + second)
        uniform = (word.to(tl.float64) + 0.5) / 4294967296.0
        logit = tl.load(logits_RV + row * V + v, mask=v < V, other=float("-inf")).to(tl.float64)
        score = logit - tl.log(-tl.log(uniform))
        best_at = tl.where(score > best, v, best_at)
        best = tl.maximum(score, best)
    top = tl.max(best, 0)
    tl.store(out_R + row, tl.min(tl.where(best == top, best_at, V), 0).to(tl.int64))


def pick(logits_RV: Tensor, keys_R2: Tensor) -> Tensor:
    """Draw as `outrider.noise.pick` does."""
    R, V = logits_RV.shape
    out_R = torch.empty(R, dtype=torch.int64, device=logits_RV.device)
    pick_row[(R,)](logits_RV.contiguous(), keys_R2.contiguous(), out_R, V, BLOCK=BLOCK, num_warps=8)
    return out_R
