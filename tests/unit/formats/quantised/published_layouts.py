"""Small checkpoints of every published layout, packed here from the descriptions of the formats."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from outrider.formats.hf_config import config_of
from outrider.models.spec import DecoderSpec
from outrider.testing.tiny import tiny_spec, tiny_weights

Ints = NDArray[np.int64]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 40,
}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def words(codes: Ints, bits: int) -> Tensor:
    """32-bit words of the codes along the last axis, low bits first, the last word filled up with zeros."""
    per_word = 32 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_word)])
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // per_word), np.uint32)
    for place in range(per_word):
        packed |= padded[..., place::per_word].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32).copy())


def awq_words(codes: Ints) -> Tensor:
    """Words whose four bits number i hold column AWQ_COLUMNS[i]."""
    packed = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for place, column in enumerate(AWQ_COLUMNS):
        packed |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(packed.view(np.int32).copy())


@dataclass
class Matrix:
    """Codes from 0, zero points and scales of a matrix."""

    codes: Ints  # [O, F]
    zeros: Ints  # [O, G]
    scales: Tensor  # [O, G]
    bits: int

    @property
    def values(self) -> NDArray[np.float64]:
        repeats = self.codes.shape[1] // self.zeros.shape[1]
        scales = self.scales.double().numpy().repeat(repeats, axis=1)
        return (self.codes - self.zeros.repeat(repeats, axis=1)) * scales


def packed_ct(matrix: Matrix, symmetric: bool) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words(matrix.codes, matrix.bits),
        "weight_scale": matrix.scales,
        "weight_shape": torch.tensor(matrix.codes.shape),
    }
    return tensors if symmetric else tensors | {"weight_zero_point": words(matrix.zeros.T, matrix.bits).T.contiguous()}


def int_ct(matrix: Matrix, symmetric: bool) -> dict[str, Tensor]:
    tensors = {"weight": torch.from_numpy((matrix.codes - 128).astype(np.int8)), "weight_scale": matrix.scales}
    zeros = torch.from_numpy((matrix.zeros - 128).astype(np.int8))
    return tensors if symmetric else tensors | {"weight_zero_point": zeros}


def awq(matrix: Matrix, symmetric: bool) -> dict[str, Tensor]:
    return {
        "qweight": awq_words(matrix.codes.T),
        "qzeros": awq_words(matrix.zeros.T),
        "scales": matrix.scales.T.contiguous(),
    }


def gptq(matrix: Matrix, symmetric: bool, shift: int = 1) -> dict[str, Tensor]:
    num_features, num_groups = matrix.codes.shape[1], matrix.zeros.shape[1]
    return {
        "qweight": words(matrix.codes, matrix.bits).T.contiguous(),
        "qzeros": words(matrix.zeros.T - shift, matrix.bits),
        "scales": matrix.scales.T.contiguous(),
        "g_idx": torch.arange(num_features, dtype=torch.int32) // (num_features // num_groups),
    }


def gptq_v2(matrix: Matrix, symmetric: bool) -> dict[str, Tensor]:
    return gptq(matrix, symmetric, shift=0)


def ct_config(layout: str, bits: int, group: int | None, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": None, "dynamic": False}
    weights |= {"strategy": "channel", "group_size": None} if group is None else {"strategy": "group"}
    weights |= {} if group is None else {"group_size": group}
    scheme = {"weights": weights, "input_activations": None, "output_activations": None, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "quantization_status": "compressed",
    }


def awq_config(bits: int, group: int | None, symmetric: bool) -> dict[str, Any]:
    config = {"quant_method": "awq", "bits": bits, "group_size": group or -1, "version": "gemm"}
    return config | {"zero_point": True, "modules_to_not_convert": None}


def gptq_config(bits: int, group: int | None, symmetric: bool, layout: str = "gptq") -> dict[str, Any]:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "desc_act": False, "sym": symmetric}
    return config | {"checkpoint_format": layout, "damp_percent": 0.1, "true_sequential": True}


@dataclass
class Case:
    """A layout with its sizes."""

    layout: str
    bits: int
    group: int | None
    symmetric: bool
    dtype: torch.dtype = torch.float16

    @property
    def config(self) -> dict[str, Any]:
        if self.layout == "awq":
            return awq_config(self.bits, self.group, self.symmetric)
        if self.layout.startswith("gptq"):
            return gptq_config(self.bits, self.group, self.symmetric, self.layout)
        return ct_config(self.layout, self.bits, self.group, self.symmetric)

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.layout}-{self.bits}-{self.group}-{kind}-{str(self.dtype).removeprefix('torch.')}"


PACKERS: dict[str, Callable[[Matrix, bool], dict[str, Tensor]]] = {
    "pack-quantized": packed_ct,
    "int-quantized": int_ct,
    "awq": awq,
    "gptq": gptq,
    "gptq_v2": gptq_v2,
}
CASES = [
    *(Case("pack-quantized", 4, group, symmetric) for group in (32, 64, 128, None) for symmetric in (True, False)),
    *(Case("pack-quantized", 8, group, symmetric) for group in (128, None) for symmetric in (True, False)),
    *(Case("int-quantized", 8, group, symmetric) for group in (64, None) for symmetric in (True, False)),
    *(Case("awq", 4, group, symmetric) for group in (32, 128, None) for symmetric in (True, False)),
    *(Case("gptq", bits, group, symmetric) for bits in (4, 8) for group in (64, None) for symmetric in (True, False)),
    *(Case("gptq_v2", bits, 128, symmetric) for bits in (4, 8) for symmetric in (True, False)),
    *(Case(layout, 4, 32, False, torch.bfloat16) for layout in ("pack-quantized", "awq", "gptq")),
    *(Case(layout, 8, None, True, dtype) for layout in ("int-quantized",) for dtype in (torch.bfloat16, torch.float32)),
]


@dataclass
class Checkpoint:
    """A checkpoint in memory, and the values that its matrices stand for."""

    spec: DecoderSpec
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        directory.mkdir(exist_ok=True)
        save_file(self.tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(self.config))
        return directory


def random_matrix(random: np.random.Generator, shape: tuple[int, ...], case: Case) -> Matrix:
    num_rows, num_features = shape
    num_groups = num_features // (case.group or num_features)
    most = 2**case.bits
    # the first format of GPTQ cannot store a zero point of 0
    zeros = random.integers(1, most, (num_rows, num_groups))
    if case.symmetric:
        zeros[:] = most // 2
    scales = torch.from_numpy(random.uniform(0.001, 0.02, (num_rows, num_groups))).to(case.dtype)
    return Matrix(random.integers(0, most, shape), zeros, scales, case.bits)


def checkpoint(case: Case, seed: int = 0, *, with_head: bool = False, **changes: Any) -> Checkpoint:
    """A random checkpoint; its projections are quantised, and its output head if asked for."""
    spec, random = tiny_spec(**(SIZES | changes)), np.random.default_rng(seed)
    made = Checkpoint(spec, config_of(spec, torch.float16) | {"quantization_config": case.config})
    for name, tensor in tiny_weights(spec, seed).items():
        if "proj.weight" not in name and not (with_head and name == "lm_head.weight"):
            made.tensors[name] = tensor.to(torch.float16)
            continue
        matrix = random_matrix(random, tuple(tensor.shape), case)
        made.matrices[name] = matrix
        module = name.removesuffix(".weight")
        made.tensors |= {
            f"{module}.{part}": made_ for part, made_ in PACKERS[case.layout](matrix, case.symmetric).items()
        }
    return made
