"""Measure the decoder's CPU operations: bandwidth and arithmetic per shape, and a whole simulated forward.

    python benchmarks/ops.py [--dtype bf16|fp32] [--rows 1,2,4,8] [--repeats 9] [--forward-only]

The shapes are SmolLM2-135M's. Each repeat runs every contender once, in turn, so that a noisy neighbour disturbs all
alike; the median over repeats is printed. As many copies of a weight are used in turn as exceed the last-level cache,
as in a real forward. GB/s counts bytes of weights, GFLOP/s counts two per weight and row. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from outrider.ops.base import AttentionShape, Ops, Packed, Rope
from outrider.ops.cpu import CpuOps
from outrider.placement import Placement

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
CACHE_BYTES = 128e6
HEAD_PARTS = 12
LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCABULARY = 30, 9, 3, 64, 576, 1536, 49152

WEIGHTS = LAYERS * ((HEADS + 2 * KV_HEADS) * HEAD_DIM * HIDDEN + HIDDEN**2 + 3 * INNER * HIDDEN) + VOCABULARY * HIDDEN


def medians(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return seconds per call of each contender, interleaved."""
    for contender in contenders.values():
        contender()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in times.items()}


def measure_shape(ops: Ops, dtype: torch.dtype, name: str, rows: int, repeats: int) -> dict[str, float]:
    """Return seconds per product of the shape, ours and PyTorch's, over weights outside the caches."""
    outputs, F = SHAPES[name]
    weight = torch.randn(outputs, F).to(dtype)
    copies = max(1, round(CACHE_BYTES / weight.nbytes))
    ours = [
        ops.pack_gate_up(*(weight[: outputs // 2], weight[outputs // 2 :])) if name == "gate_up" else ops.pack(weight)
        for _ in range(copies)
    ]
    theirs = [weight.clone() for _ in range(copies)]
    x, residual, norm = torch.randn(rows, F), torch.zeros(rows, outputs), torch.ones(F)
    x_theirs = x.to(dtype)
    calls: dict[str, Callable[[Packed], object]] = {
        "gate_up": lambda packed: ops.gate_up(x, norm, 1e-5, packed),
        "o": lambda packed: ops.project_add(x, packed, residual),
        "down": lambda packed: ops.project_add(x, packed, residual),
    }
    call = calls.get(name, lambda packed: ops.norm_project(x, norm, 1e-5, packed))

    def run_ours() -> None:
        for packed in ours:
            call(packed)

    def run_theirs() -> None:
        for weight in theirs:
            linear(x_theirs, weight)

    seconds = medians({"ours": run_ours, "torch": run_theirs}, repeats)
    return {contender: total / copies for contender, total in seconds.items()}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The packed weights and the cache of one simulated layer."""

    qkv: Packed
    o: Packed
    gate_up: Packed
    down: Packed
    keys_CHSD: Tensor
    values_CHSD: Tensor


def _random(dtype: torch.dtype, *size: int) -> Tensor:
    weights = torch.randn(*size) * size[-1] ** -0.5
    return weights.to(dtype)


class Forward:
    """A whole decoder with random weights: 30 layers and the head, over `cached` positions of one slot.

    A `resident` one does the same arithmetic on the weights of one layer and a twelfth of the head, again and again, so
    that they stay in the last-level cache: what is left is the time that no memory, however fast, would take away.
    """

    def __init__(self, ops: Ops, dtype: torch.dtype, cached: int, *, resident: bool) -> None:
        self.ops, self.cached = ops, cached
        self.heads = HEAD_PARTS if resident else 1
        size = (1, KV_HEADS, cached + 512, HEAD_DIM)
        self.layers = [
            Layer(
                qkv=ops.pack(_random(dtype, (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)),
                o=ops.pack(_random(dtype, HIDDEN, HEADS * HEAD_DIM)),
                gate_up=ops.pack_gate_up(_random(dtype, INNER, HIDDEN), _random(dtype, INNER, HIDDEN)),
                down=ops.pack(_random(dtype, HIDDEN, INNER)),
                keys_CHSD=_random(dtype, *size),
                values_CHSD=_random(dtype, *size),
            )
            for _ in range(1 if resident else LAYERS)
        ] * (LAYERS if resident else 1)
        self.head = ops.pack(_random(dtype, VOCABULARY // self.heads, HIDDEN))
        self.norm = torch.ones(HIDDEN)
        angles = torch.outer(torch.arange(cached + 512), 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
        self.rope = Rope(cos_PD=angles.cos(), sin_PD=angles.sin())
        self.shape = AttentionShape(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5)
        self.seconds = {"linear": 0.0, "attention": 0.0, "head": 0.0}

    def __call__(self, rows: int) -> None:
        ops, norm = self.ops, self.norm
        positions = torch.arange(self.cached, self.cached + rows)[None]
        placement = Placement(
            slots_B=torch.tensor([0]),
            lengths_B=torch.tensor([self.cached]),
            positions_BM=positions,
            write_BM=positions,
            mask_BMT=None,
            limit=self.cached + rows,
        )
        x = torch.randn(rows, HIDDEN)
        attention_s = 0.0
        begin = time.perf_counter()
        for layer in self.layers:
            qkv = ops.norm_project(x, norm, 1e-5, layer.qkv)
            start = time.perf_counter()
            out = ops.attend(qkv, self.shape, self.rope, layer.keys_CHSD, layer.values_CHSD, placement)
            attention_s += time.perf_counter() - start
            ops.project_add(out, layer.o, x)
            ops.project_add(ops.gate_up(x, norm, 1e-5, layer.gate_up), layer.down, x)
        middle = time.perf_counter()
        for _ in range(self.heads):
            ops.norm_project(x, norm, 1e-5, self.head)
        end = time.perf_counter()
        self.seconds = {"linear": middle - begin - attention_s, "attention": attention_s, "head": end - middle}


def measure_forwards(ops: Ops, dtype: torch.dtype, repeats: int, cached: int) -> dict[str, dict[int, dict[str, float]]]:
    """Return median milliseconds of a whole forward and of its parts."""
    forwards = {
        "memory": Forward(ops, dtype, cached, resident=False),
        "cache": Forward(ops, dtype, cached, resident=True),
    }
    cells = {(place, rows): list[dict[str, float]]() for place in forwards for rows in (1, 4, 8, 32, 256)}
    for repeat in range(repeats + 1):
        for (place, rows), samples in cells.items():
            start = time.perf_counter()
            forwards[place](rows)
            total = time.perf_counter() - start
            if repeat:
                samples.append({"total": total, **forwards[place].seconds})
    medians: dict[str, dict[int, dict[str, float]]] = {place: {} for place in forwards}
    for (place, rows), samples in cells.items():
        medians[place][rows] = {part: 1e3 * statistics.median(s[part] for s in samples) for part in samples[0]}
    return medians


def print_forwards(forwards: dict[str, dict[int, dict[str, float]]]) -> None:
    one = forwards["memory"][1]["total"]
    for place, cells in forwards.items():
        print(f"forward, weights in {place}")
        for rows, parts in cells.items():
            times = "  ".join(f"{part} {ms:6.2f} ms" for part, ms in parts.items())
            print(f"{rows:8} rows | {times} | {parts['total'] / one:5.2f}x of 1 row from memory")
    first, most = ({rows: c["linear"] + c["head"] for rows, c in forwards["memory"].items()}[rows] for rows in (1, 256))
    weights = 2 * WEIGHTS / (first / 1e3) / 1e9
    arithmetic = 2 * 256 * WEIGHTS / (most / 1e3) / 1e9
    knee = arithmetic / weights
    print(
        f"products: {weights:.1f} GB/s of bf16 weights at 1 row, {arithmetic:.0f} GFLOP/s at 256 rows: "
        f"from {knee:.1f} rows on arithmetic decides, and 8 rows cost at least {max(1.0, 8 / knee):.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,256")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cached", type=int, default=300)
    parser.add_argument("--forward-only", action="store_true")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    ops = CpuOps(dtype)
    results = []
    print(
        f"{'shape':>8} {'rows':>5} | {'us':>8} {'GB/s':>6} {'GFLOP/s':>8} | torch {'us':>8} {'GB/s':>6} {'GFLOP/s':>8}"
    )
    for name in [] if options.forward_only else options.shapes.split(","):
        outputs, F = SHAPES[name]
        for rows in map(int, options.rows.split(",")):
            seconds = measure_shape(ops, dtype, name, rows, options.repeats)
            num_bytes, flops = outputs * F * dtype.itemsize, 2 * outputs * F * rows
            cells = [
                f"{1e6 * s:8.1f} {num_bytes / s / 1e9:6.1f} {flops / s / 1e9:8.1f}"
                for s in (seconds["ours"], seconds["torch"])
            ]
            print(f"{name:>8} {rows:5} | {cells[0]} | torch {cells[1]}", flush=True)
            results.append({"shape": name, "rows": rows, **seconds})
    forwards = measure_forwards(ops, dtype, options.repeats, options.cached)
    print_forwards(forwards)
    print(json.dumps({"dtype": options.dtype, "shapes_s": results, "forward_ms": forwards}))


if __name__ == "__main__":
    main()
