"""Costs of verifying rows with a mixture of experts: by the bytes that they read, and as measured.

    python benchmarks/experts.py [--layers 6] [--width 1024] [--experts 64] [--chosen 8] [--inner 512] [--repeats 15]

A forward reads each expert once for all rows that chose it, so more rows read more bytes. Rows that choose apart from
each other read 1 - (1 - K / N)^m of the experts, rows that choose alike K of N, however many they are. The weights are
random and larger than any cache. Predicted and measured are forwards of one row:

    predicted   bytes read by m rows, over those of one row
    apart       rows of different random tokens
    alike       rows of one token, which choose the same experts in the first layers, and mostly after them

Example: with 64 experts of which a row takes 8, eight rows read 66 % of the experts, 5.3 times those of one. The last
line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.draft import Draft
from outrider.kernels.torch_threads import num_threads
from outrider.models.spec import DecoderSpec, ExpertSpec, RopeSpec
from outrider.target import TargetSession
from outrider.targets.native import NativeTarget

VOCAB, CONTEXT, MOST_ROWS = 2048, 64, 16
ROWS = (1, 2, 4, 8, 16)


class RandomWeights(Mapping[str, Tensor]):
    """Weights that are drawn when they are packed, so that they are in memory once."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._shapes = spec.weight_shapes()
        self._generator = torch.Generator().manual_seed(0)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        drawn = torch.empty(shape).uniform_(-1.0, 1.0, generator=self._generator)
        return drawn if "embed" in name else drawn * 1.7 * shape[1] ** -0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def spec_of(arguments: argparse.Namespace) -> DecoderSpec:
    experts = ExpertSpec(
        num_experts=arguments.experts, num_chosen=arguments.chosen, inner_size=arguments.inner, normalised=True
    )
    return DecoderSpec(
        family="qwen3_moe",
        vocab_size=VOCAB,
        hidden_size=arguments.width,
        intermediate_size=arguments.width,
        num_layers=arguments.layers,
        num_heads=arguments.width // 64,
        num_kv_heads=max(1, arguments.width // 256),
        head_dim=64,
        rms_norm_eps=1e-6,
        max_position_embeddings=2 * CONTEXT,
        rope=RopeSpec(),
        qk_norm=True,
        tie_word_embeddings=True,
        windows=(None,) * arguments.layers,
        experts=(experts,) * arguments.layers,
    )


def forward_s(session: TargetSession, tokens: list[int]) -> float:
    """Time one forward of a chain behind the context."""
    start = time.perf_counter()
    session.forward([0], tokens[:1], Draft.of_chains([tokens[1:]]))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 6), ("width", 1024), ("experts", 64), ("chosen", 8), ("inner", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    target = NativeTarget.from_weights(
        spec_of(arguments), RandomWeights(spec_of(arguments)), "random experts", torch.bfloat16
    )
    spec, random = target.spec, torch.Generator().manual_seed(1)
    assert spec.mixture is not None
    print(f"{spec.weight_bytes / 1e9:.2f} GB in bf16, {spec.mixture.size / 1e9:.2f} GB of experts", end="; ")
    print(f"memory reads at {memory_bytes_per_s() / 1e9:.1f} GB/s on {num_threads()} threads")
    session = target.open(target.plan(1, CONTEXT + MOST_ROWS, MOST_ROWS))
    session.prefill([0], [torch.randint(VOCAB, (CONTEXT,), generator=random).tolist()])
    seconds: dict[tuple[int, str], list[float]] = {(rows, kind): [] for rows in ROWS for kind in ("apart", "alike")}
    with target.decoding_threads():
        for repeat in range(arguments.repeats + 1):
            for rows, kind in seconds if repeat % 2 else reversed(seconds):
                tokens = torch.randint(VOCAB, (rows,), generator=random).tolist()
                found = forward_s(session, tokens if kind == "apart" else tokens[:1] * rows)
                if repeat:
                    seconds[rows, kind].append(found)
    medians = {point: statistics.median(found) for point, found in seconds.items()}
    lines = []
    print(
        f"{'rows':>4} {'experts read':>12} {'predicted':>9} {'apart':>6} {'alike':>6} {'ms apart':>9} {'ms alike':>9}"
    )
    for rows in ROWS:
        share = spec.mixture.read(rows) / spec.mixture.size
        predicted = spec.bytes_read(rows) / spec.bytes_read(1)
        apart, alike = medians[rows, "apart"], medians[rows, "alike"]
        one = medians[1, "apart"]
        print(
            f"{rows:>4} {share:>12.1%} {predicted:>9.2f} {apart / one:>6.2f} {alike / one:>6.2f}"
            f" {1000 * apart:>9.2f} {1000 * alike:>9.2f}"
        )
        lines.append({"rows": rows, "predicted": predicted, "apart_s": apart, "alike_s": alike})
    print(json.dumps({"benchmark": "experts", "weight_bytes": spec.weight_bytes, "rows": lines}))


if __name__ == "__main__":
    main()
