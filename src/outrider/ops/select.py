"""The back end for a device and a dtype: compiled CPU kernels, the GPU's, or plain PyTorch."""

import torch

from outrider.ops.base import Ops

__all__ = ["choose_ops"]


def choose_ops(device: torch.device | str, dtype: torch.dtype) -> Ops:
    """Return the fastest back end for weights of `dtype` on `device`."""
    device = torch.device(device)
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float32):
        from outrider.ops.cpu import CpuOps

        return CpuOps(dtype)
    if device.type == "cuda":
        from outrider.ops.gpu import gpu_ops

        return gpu_ops(device, dtype)
    from outrider.ops.torch import TorchOps

    return TorchOps(dtype, device)
