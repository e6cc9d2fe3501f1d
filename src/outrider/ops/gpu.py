"""The back end of a GPU, and the check that its kernels are right.

Triton kernels are the default; plain PyTorch with its fused attention is the alternative. Both repeat their forwards
from CUDA graphs, which share one pool per device. OUTRIDER_GPU_OPS=triton or torch chooses, and OUTRIDER_CUDA_GRAPHS=0
turns graphs off. Kernels are compiled for the GPU at hand, so before the first use they are compared with the
reference there: a GPU on which they are wrong is refused with an error, rather than used for wrong text.
"""

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from outrider import env as variables
from outrider.errors import ConfigError
from outrider.ops.base import AttentionShape, Ops, Rope
from outrider.ops.graphs import default_graph_pool
from outrider.ops.torch import TorchOps
from outrider.placement import Placement

__all__ = ["compare", "gpu_ops"]


@lru_cache
def gpu_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """Return the back end that the environment chooses, by default Triton where it is installed.

    Raises:
        ConfigError: if the chosen one is not installed, or if the kernels are wrong on this GPU.
    """
    has_triton = find_spec("triton") is not None
    name = variables.gpu_ops() or ("triton" if has_triton and dtype != torch.float64 else "torch")
    graphs = default_graph_pool(device)
    if name == "torch":
        return TorchOps(dtype, device, fused=True, graphs=graphs)
    if name != "triton" or not has_triton:
        raise ConfigError(f"OUTRIDER_GPU_OPS={name!r} is not a back end that is installed; use 'triton' or 'torch'")
    from outrider.ops.triton import TritonOps

    ops = TritonOps(dtype, device, graphs=graphs)
    difference = compare(ops, device)
    if not difference < 0.05:
        raise ConfigError(
            f"the Triton kernels differ from the reference by {difference:.3g} on {device}; set OUTRIDER_GPU_OPS=torch"
        )
    return ops


@torch.inference_mode()
def compare(ops: Ops, device: torch.device) -> float:
    """Return the largest error of one attention call: two slots, three rows, 28 query and 4 key heads."""
    generator = torch.Generator().manual_seed(0)
    B, M, H, G, D, S = 2, 3, 28, 4, 128, 300

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, ops.activation_dtype)

    lengths_B = torch.tensor([250, 7], device=device)
    at_BM = lengths_B[:, None] + torch.arange(M, device=device)
    mask_BMT = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], device=device).bool().expand(B, M, M).contiguous()
    slots_B = torch.tensor([1, 0], device=device)
    placement = Placement(
        slots_B=slots_B, lengths_B=lengths_B, positions_BM=at_BM, write_BM=at_BM, mask_BMT=mask_BMT, limit=253
    )
    shape = AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5)
    angles_PD = torch.outer(torch.arange(S).float(), 10000.0 ** -(torch.arange(0, D, 2).float() / D)).to(device)
    qkv_RQ, keys_CHSD, values_CHSD = randn(B * M, (H + 2 * G) * D), randn(2, G, S, D), randn(2, G, S, D)
    results = []
    for back, dtype in ((ops, ops.activation_dtype), (TorchOps(torch.float64, device), torch.float64)):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        rope = Rope(cos_PD=angles_PD.cos().to(wide), sin_PD=angles_PD.sin().to(wide))
        cache = (keys_CHSD.to(dtype, copy=True), values_CHSD.to(dtype, copy=True))
        results.append(back.attend(qkv_RQ.to(dtype), shape, rope, *cache, placement).double())
    return float((results[0] - results[1]).abs().max())
