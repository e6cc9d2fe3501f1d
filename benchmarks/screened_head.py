"""Savings of a certified screen of the output head: an idea that was tried, and is not built in.

    python benchmarks/screened_head.py [--target gemma3-270m] [--prompts 4] [--tokens 24] [--repeats 25]

Greedy decoding needs only the largest logit. A screen reads a copy W' of the head with fewer bits, and bounds its
error: with a state h, E = W - W', and a basis U of k directions in which earlier states were large,

    s[v] = W'[v] h + (E[v] U) (U^T h)           |W[v] h - s[v]| <= |h - U U^T h| |E[v] - E[v] U U^T| = b[v]

Only tokens with s[v] + b[v] >= max(s - b) can have the largest logit, and they alone need exact logits. So the text
stays the same, whatever the states look like. The mean row of W is taken out first: it moves all logits alike.

Printed are the candidates left on states of greedy answers, with U from answers to other prompts; then
the times of the products, taking turns. The last line is JSON.

Example: of 262,144 tokens, 4 bits and 64 directions leave some hundred.

Shapes: V vocabulary, E hidden size, N states, K directions.
"""

import argparse
import json
import statistics
import time
from itertools import product

import numpy as np
import torch
from torch import Tensor

import outrider
from outrider.data.dialogue import Dialogue
from outrider.data.workloads import CATEGORIES, load_category
from outrider.ops.cpu import CpuOps
from outrider.ops.quantised import QuantFormat, QuantisedMatrix, QuantRows
from outrider.target import Target

GROUP, LONGEST_PROMPT = 32, 200
SHARES = (1.0, 0.9, 0.8)
"""Largest code times its scale, as a share of a group's largest weight, among which the best is taken."""


class RandomCodes(QuantisedMatrix):
    """A matrix whose product takes as long as one of real weights."""

    def __init__(self, num_rows: int, num_features: int, bits: int) -> None:
        self._format = QuantFormat(name=f"{bits} bits", bits=bits, offset=2 ** (bits - 1))  # type: ignore[arg-type]
        codes = np.random.default_rng(0).integers(0, 2**bits, (num_rows, num_features), dtype=np.uint8)
        self._rows = QuantRows(codes_OF=codes, scales_OG=np.full((num_rows, num_features // GROUP), 0.01, np.float16))

    @property
    def format(self) -> QuantFormat:
        return self._format

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, num_features = self._rows.codes_OF.shape
        return num_rows, num_features

    def rows(self, start: int, stop: int) -> QuantRows:
        return QuantRows(codes_OF=self._rows.codes_OF[start:stop], scales_OG=self._rows.scales_OG[start:stop])


def states_of(target: Target, prompts: list[list[int]], num_tokens: int) -> Tensor:
    """Return the states that greedy answers to these prompts were read from, after the final norm, [N, E]."""
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_len=LONGEST_PROMPT + num_tokens + 8)
    last = target.spec.num_layers
    found = []
    for answer in engine.generate(prompts, outrider.SamplingParams(max_tokens=num_tokens)):
        tokens = [*answer.prompt, *answer.tokens]
        [states_NE] = target.open(target.plan(1, len(tokens) + 2, tail=2), (last,)).prefill([0], [tokens])
        assert states_NE is not None
        found.append(states_NE[len(answer.prompt) - 1 : -1].float())
    return torch.cat(found)


def rounded(weight_VE: Tensor, bits: int) -> Tensor:
    """Return the weights rounded to codes of so many bits, by groups of 32."""
    groups_VGX = weight_VE.view(len(weight_VE), -1, GROUP)
    most_VG1, half = groups_VGX.abs().amax(-1, keepdim=True), 2 ** (bits - 1)
    best_VGX, least_VG1 = torch.zeros_like(groups_VGX), torch.full_like(most_VG1, torch.inf)
    for share in SHARES:
        scale_VG1 = (most_VG1 * share / (half - 0.5)).clamp_min(1e-12)
        values_VGX = ((groups_VGX / scale_VG1 - 0.5).round().clamp(-half, half - 1) + 0.5) * scale_VG1
        error_VG1 = (groups_VGX - values_VGX).square().sum(-1, keepdim=True)
        best_VGX = torch.where(error_VG1 < least_VG1, values_VGX, best_VGX)
        least_VG1 = torch.minimum(error_VG1, least_VG1)
    return best_VGX.view_as(weight_VE)


def candidates(head_VE: Tensor, bits: int, basis_EK: Tensor, states_NE: Tensor) -> tuple[Tensor, float]:
    """Return how many tokens are left for each state, and the mean bound; the best token must be among them."""
    screen_VE = rounded(head_VE, bits)
    error_VE = head_VE - screen_VE
    inside_VK, inside_NK = error_VE @ basis_EK, states_NE @ basis_EK
    outside_V = (error_VE - inside_VK @ basis_EK.T).norm(dim=1)
    outside_N = (states_NE - inside_NK @ basis_EK.T).norm(dim=1)
    counts, bounds = [], []
    for state_E, inside_K, outside in zip(states_NE, inside_NK, outside_N, strict=True):
        screened_V, bound_V = screen_VE @ state_E + inside_VK @ inside_K, outside * outside_V
        left_V = screened_V + bound_V >= (screened_V - bound_V).max()
        assert left_V[(head_VE @ state_E).argmax()], "the certificate is wrong"
        counts.append(int(left_V.sum()))
        bounds.append(float(bound_V.mean()))
    return torch.tensor(counts, dtype=torch.float64), statistics.mean(bounds)


def times(num_rows: int, num_features: int, num_directions: int, repeats: int) -> dict[str, dict[int, float]]:
    """Return the median seconds of products, by their weights and the rows of a step."""
    ops = CpuOps(torch.bfloat16, exact=True)
    packed = {f"{bits} bits": ops.pack(RandomCodes(num_rows, num_features, bits)) for bits in (8, 6, 5, 4)}
    packed["directions"] = ops.pack(RandomCodes(num_rows, num_directions, 8))
    others = torch.ones(16 * 2**20)
    found: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in (1, 4, 8)} for name in packed}
    with ops.decoding_threads():
        for _ in range(repeats + 2):
            for rows, name in product((1, 4, 8), packed):
                x_RF = torch.randn(rows, packed[name].in_features)
                others.sum()
                start = time.perf_counter()
                ops.norm_project(x_RF, None, 0.0, packed[name])
                found[name][rows].append(time.perf_counter() - start)
    return {
        name: {rows: statistics.median(some[2:]) for rows, some in by_rows.items()} for name, by_rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=4, help="of each category, for U, and as many to try it on")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--states", type=int, default=100, help="states to try it on")
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    target = outrider.load_target(options.target, weights="stored")
    texts = [load_category(name)[: 2 * options.prompts] for name in CATEGORIES]
    read = [[Dialogue(one).ask(0, target.tokenizer)[:LONGEST_PROMPT] for one in some] for some in texts]
    known_NE = states_of(target, [one for some in read for one in some[: options.prompts]], options.tokens)
    tried_NE = states_of(target, [one for some in read for one in some[options.prompts :]], options.tokens)
    order = torch.randperm(len(tried_NE), generator=torch.Generator().manual_seed(0))
    tried_NE = tried_NE[order[: options.states]]
    head_VE = target.shared_weights().head_VE.float()
    head_VE = head_VE - head_VE.mean(0)
    _, vectors_EE = torch.linalg.eigh((known_NE.T @ known_NE).double())
    basis_EK = vectors_EE.flip(1).float()[:, : options.directions]
    num_rows, num_features = head_VE.shape
    print(f"{options.target}: {num_rows:,} tokens of {num_features} features; {len(tried_NE)} states")
    report: dict[str, object] = {"target": options.target, "weights": target.spec.weights, "screens": []}
    for bits, some_EK in product((4, 5, 6), (basis_EK[:, :0], basis_EK)):
        counts_N, bound = candidates(head_VE, bits, some_EK, tried_NE)
        left = {
            "median": counts_N.median().item(),
            "mean": counts_N.mean().item(),
            "p95": counts_N.quantile(0.95).item(),
        }
        shares = "  ".join(f"{name} {count:8,.0f}" for name, count in left.items())
        print(f"{bits} bits, {some_EK.shape[1]:3} directions: bound {bound:5.2f}, candidates {shares}")
        report["screens"] += [{"bits": bits, "directions": some_EK.shape[1], "bound": bound, **left}]  # type: ignore[operator]
    measured = times(num_rows, num_features, options.directions, options.repeats)
    for name, by_rows in measured.items():
        print(f"{name:10}  " + "  ".join(f"{rows} rows {1e3 * seconds:5.2f} ms" for rows, seconds in by_rows.items()))
    print(json.dumps(report | {"seconds": measured}))


if __name__ == "__main__":
    main()
