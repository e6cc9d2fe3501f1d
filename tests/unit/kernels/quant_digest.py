"""A digest of products with quantised matrices, straight from their kernel."""

import hashlib
import struct

import numpy as np
import torch

from outrider.kernels.cpu.arena import Arena
from outrider.kernels.cpu.quant_linear import quant_linear, row_bytes
from outrider.kernels.cpu.threads import launch
from outrider.kernels.cpu.vector import WIDTH
from outrider.ops.cpu_quant_packing import packed_matrix
from quantised_cases import F, activations, drawn

HEIGHTS = (1, 5, 13, 33)


def digest(name: str, isa: str) -> str:
    """Return the SHA-256 of products of normalised rows, of several numbers of rows, on one thread."""
    matrix = drawn(name)
    rows = matrix.shape[0]
    starts = range(0, -(-rows // (2 * WIDTH)) * 2 * WIDTH, WIDTH)
    strips = [[(matrix, start, min(rows, start + WIDTH))] if start < rows else [] for start in starts]
    packed = packed_matrix(Arena(), strips, rows, None)
    kernel, norm, found = quant_linear(packed.layout, isa), np.ones(F, np.float32), hashlib.sha256()
    eps = struct.unpack("<q", struct.pack("<d", 1e-5))[0]
    for R in HEIGHTS:
        x_RF, out_RO = activations(R), np.zeros((R, rows), np.float32)
        scratch = torch.empty(R, row_bytes(packed.layout, F), dtype=torch.uint8)
        addresses = (x_RF.ctypes.data, norm.ctypes.data, eps, scratch.data_ptr(), packed.data.data_ptr(), 0, 0)
        sizes = (F, rows, out_RO.ctypes.data, R, 0, len(strips) // 2, 1, 24, rows)
        launch(kernel.address, 1, *addresses, *sizes)
        found.update(out_RO.tobytes())
    return found.hexdigest()
