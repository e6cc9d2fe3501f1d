"""Products with quantised matrices, bit for bit against their definition in numpy, on each instruction set at hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outrider.kernels.cpu.isa import ISAS, supported
from outrider.kernels.cpu.quant_layout import Layout
from outrider.ops import cpu_products, cpu_quant_packing
from outrider.ops.cpu import CpuOps
from outrider.ops.cpu_quant_packing import layout_of
from outrider.ops.quantised import dense, dequantised
from outrider.ops.torch import TorchOps
from quantised_cases import FORMATS, ROWS, F, Given, activations, drawn


def fma(a: Any, b: Any, c: Any) -> Any:
    """Fused multiply-add in fp32: in fp64 the product is exact, and rounding the sum to odd makes the second exact."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    is_even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & is_even, odd, total).astype(np.float32)


def defined(matrix: Given, x_RF: NDArray[np.float32]) -> NDArray[np.float32]:
    """The product as `quant_tile.py` and `quant_rows.py` define it."""
    form, rows = matrix.format, matrix.rows(0, matrix.shape[0])
    R = len(x_RF)
    blocks = x_RF.reshape(R, F // 32, 32)
    most = np.abs(blocks).max(2)
    is_zero = most < np.float32(1e-30)
    with np.errstate(divide="ignore", over="ignore"):
        step = np.where(is_zero, np.float32(0), most / np.float32(127))
        inverse = np.where(is_zero, np.float32(0), np.float32(127) / most)
    x_q = np.rint(blocks * inverse[:, :, None]).astype(np.int64).reshape(R, F)
    codes = rows.codes_OF.astype(np.int64)
    numbers = codes - form.offset if form.table is None else np.array(form.table)[codes]
    values = replace(rows, codes_OF=np.ones_like(rows.codes_OF))
    scales = dequantised(replace(form, offset=0, table=None, has_minima=False), replace(values, minima_OG=None))
    minima = None
    if form.has_minima:
        ones = replace(rows, codes_OF=np.zeros_like(rows.codes_OF))
        minima = dequantised(replace(form, offset=0, table=None), ones)
    y = np.zeros((R, matrix.shape[0]), np.float32)
    for group in range(F // form.group):
        span = slice(group * form.group, (group + 1) * form.group)
        here = step[:, span.start // 32, None].astype(np.float32)
        sums = (x_q[:, span] @ numbers[:, span].T).astype(np.float32)
        y = fma(sums * scales[None, :, span.start], np.broadcast_to(here, y.shape), y)
        if minima is not None:
            total = here * x_q[:, span].sum(1, keepdims=True).astype(np.float32)
            y = fma(np.broadcast_to(minima[None, :, span.start], y.shape), np.broadcast_to(total, y.shape), y)
    return y


def equal_bits(left: Any, right: Any) -> bool:
    return bool(np.array_equal(np.asarray(left).view(np.int32), np.asarray(right).view(np.int32)))


def check(names: Sequence[str], heights: Sequence[int]) -> None:
    for name in names:
        packed = CpuOps(torch.bfloat16, threads=2).pack(drawn(name))
        for rows in heights:
            x_RF = activations(rows)
            y_RO = CpuOps(torch.bfloat16, threads=2).norm_project(torch.from_numpy(x_RF), None, 0.0, packed)
            assert equal_bits(y_RO.numpy(), defined(drawn(name), x_RF)), f"{name}, {rows} rows"


@pytest.mark.parametrize("name", FORMATS)
def test_products_have_the_defined_bits(name: str) -> None:
    check([name], (1, 2, 3, 5, 8, 9, 17, 40))


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set_gives_the_same_bits(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa not in supported():
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setattr(cpu_products, "chosen", lambda: isa)
    check(["Q4_1"] if isa == "portable" else ["Q4_1", "Q6_K", "IQ4_NL"], (1, 7))


@pytest.mark.parametrize("name", FORMATS)
def test_unpacking_gives_the_values(name: str) -> None:
    ops, matrix = CpuOps(torch.float32), drawn(name)
    values = dequantised(matrix.format, matrix.rows(0, ROWS))
    assert equal_bits(ops.unpack(ops.pack(matrix)).numpy(), values)
    table = ops.table(matrix)
    assert equal_bits(ops.embed(table, torch.tensor([0, 39, 17])).numpy(), values[[0, 39, 17]])


@pytest.mark.parametrize("name", FORMATS)
def test_the_layout_has_a_code_of_its_own(name: str) -> None:
    layout = layout_of(FORMATS[name])
    assert Layout.of(layout.code) == layout


def test_small_ranges_pack_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CpuOps(torch.bfloat16).pack(drawn("Q4_1"))  # an odd number of strips, and one of padding
    monkeypatch.setattr(cpu_quant_packing, "RANGE_BYTES", 1)
    assert torch.equal(CpuOps(torch.bfloat16).pack(drawn("Q4_1")).data, whole.data)


def test_a_row_does_not_depend_on_the_others() -> None:
    ops, x_RF = CpuOps(torch.bfloat16, threads=2), torch.from_numpy(activations(33))
    packed = ops.pack(drawn("Q4_1"))
    together = ops.norm_project(x_RF, torch.ones(F), 1e-5, packed)
    for row in (0, 7, 32):
        alone = ops.norm_project(x_RF[row : row + 1].contiguous(), torch.ones(F), 1e-5, packed)
        assert torch.equal(alone[0], together[row])


def test_matrices_of_several_kinds_lie_side_by_side() -> None:
    ops = CpuOps(torch.float32, threads=2, exact=True)
    plain = torch.randn(24, F)
    bias = torch.randn(ROWS + 24 + ROWS)
    x_RF = torch.from_numpy(activations(3))
    mixed = ops.pack([drawn("Q4_1"), plain, drawn("Q6_K")], bias)
    parts = [
        ops.pack(drawn("Q4_1"), bias[:ROWS]),
        ops.pack(plain, bias[ROWS : ROWS + 24]),
        ops.pack(drawn("Q6_K"), bias[-ROWS:]),
    ]
    wanted = torch.cat([ops.norm_project(x_RF, None, 0.0, part) for part in parts], dim=1)
    assert torch.equal(ops.norm_project(x_RF, None, 0.0, mixed), wanted)
    assert torch.equal(ops.unpack(mixed), torch.cat([ops.unpack(part) for part in parts]))


@pytest.mark.parametrize("names", [("Q4_1", "Q4_1"), ("Q4_1", "Q8_0")])
def test_gated_halves_are_close_to_the_plain_ones(names: tuple[str, str]) -> None:
    gate, up = drawn(names[0]), drawn(names[1], seed=1)
    x_RF = torch.from_numpy(activations(4)) * 0.1
    ops, plain = CpuOps(torch.float32, threads=2), TorchOps(torch.float32, torch.device("cpu"))
    found = ops.gate_up(x_RF, None, 0.0, ops.pack_gate_up(gate, up))
    wanted = plain.gate_up(x_RF, None, 0.0, plain.pack_gate_up(dense(gate), dense(up)))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # activations are rounded to 8 bits
