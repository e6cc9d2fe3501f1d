"""Measure the GPU path: plain decoding against the memory's speed, and what a drafted step costs in plain steps.

    python benchmarks/gpu.py [--output runs/gpu] [--size 7b] [--only plain,eagle3] [--steps 40]

A target of the shape of Qwen2.5-7B and drafters of their published shapes, all with random weights made on the device,
so nothing is downloaded. Random drafters are hardly ever right, and that does not matter here: every forward is padded
to its bucket, so a step costs the same whatever is accepted. What such a step is worth is acceptance times these costs;
acceptance is measured elsewhere. Prompts are random tokens, decoding is greedy.

Sections are measured one after another and filed at once, so that a short lease of a GPU is enough: run it again and
it goes on where it stopped. `--device cpu --size tiny` runs all of it in seconds, with eager graphs in place of CUDA
graphs.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.cache import CachePlan
from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.models.eagle3 import Eagle3Head, Eagle3Spec
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.ops import gpu as ops_gpu
from outrider.ops import graphs as graph_module
from outrider.ops.base import AttentionShape, Ops, Rope
from outrider.ops.torch import TorchOps
from outrider.placement import Placement
from outrider.proposer import Proposer
from outrider.proposers.draft_model import DraftModelConfig, DraftModelProposer
from outrider.proposers.eagle3 import Eagle3Config, Eagle3Proposer
from outrider.proposers.none import NoProposer
from outrider.proposers.pard import PardConfig, PardProposer
from outrider.records.provenance import collect_manifest, manifest_to_json
from outrider.sampling import SamplingParams
from outrider.targets.native import NativeTarget

METHODS = {"plain": 0, "eagle3": 2, "pard": 3, "draft_model": 2}
"""Methods and their drafted tokens per step."""
TARGETS = {("eagle3", 1): 1.15, ("pard", 1): 1.2, ("draft_model", 1): 1.35}
MANY_TARGET = 1.3
"""Step cost in plain steps that we want to reach on an H100, at 1 request and at 16."""
PLAIN_SHARE_TARGET = 0.75
WARM_UPS = 6


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shapes of the target, the head's draft vocabulary, and of the small draft model; what is measured."""

    target: DecoderSpec
    draft: DecoderSpec
    draft_vocab: int
    slots: tuple[int, ...]
    contexts: tuple[int, ...]


def decoder(hidden: int, inner: int, layers: int, heads: int, groups: int, vocab: int, tied: bool) -> DecoderSpec:
    return DecoderSpec(
        family="qwen2",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=hidden // heads,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        rope=RopeSpec(theta=1e6),
        tie_word_embeddings=tied,
        qkv_bias=True,
        windows=(None,) * layers,
    )


SIZES = {
    "7b": Size(
        target=decoder(3584, 18944, 28, 28, 4, 152064, False),
        draft=decoder(896, 4864, 24, 14, 2, 152064, True),
        draft_vocab=32000,
        slots=(1, 16),
        contexts=(512, 4096),
    ),
    "1.5b": Size(
        target=decoder(1536, 8960, 28, 12, 2, 151936, True),
        draft=decoder(896, 4864, 24, 14, 2, 151936, True),
        draft_vocab=32000,
        slots=(1, 16),
        contexts=(512, 4096),
    ),
    "tiny": Size(
        target=decoder(64, 96, 3, 4, 2, 160, False),
        draft=decoder(32, 48, 2, 4, 2, 160, True),
        draft_vocab=64,
        slots=(1, 3),
        contexts=(20,),
    ),
}


class RandomWeights(Mapping[str, Tensor]):
    """Weights made on the device when they are asked for; norms are ones."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> None:
        self.shapes, self.device, self.dtype = shapes, device, dtype

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.full(shape, float("norm" in name), device=self.device, dtype=self.dtype)
        return torch.randn(shape, device=self.device, dtype=self.dtype) * 0.02

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Bed:
    """The test bed of one mode ("graphs" or "eager"), built on first use."""

    def __init__(self, size: Size, device: torch.device, mode: str) -> None:
        self.size, self.device, self.mode = size, device, mode
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        os.environ["OUTRIDER_CUDA_GRAPHS"] = str(int(mode == "graphs"))
        graph_module._shared.cache_clear()
        ops_gpu.gpu_ops.cache_clear()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.target = self.model(size.target, "target")

    def model(self, spec: DecoderSpec, name: str) -> NativeTarget:
        pool = graph_module.GraphPool(self.device) if self.mode == "graphs" else None
        ops = TorchOps(self.dtype, graphs=pool) if self.device.type == "cpu" else None
        weights = RandomWeights(spec.weight_shapes(), self.device, self.dtype)
        return NativeTarget.from_weights(spec, weights, name, self.dtype, self.device, ops=ops)

    def proposer(self, method: str) -> Proposer:
        nodes = METHODS[method]
        if method == "plain":
            return NoProposer()
        if method == "eagle3":
            return Eagle3Proposer(self._head(), Eagle3Config(checkpoint="", num_nodes=nodes))
        small = self.model(self.size.draft, method)
        if method == "pard":
            config = PardConfig(checkpoint="", num_nodes=nodes)
            return PardProposer(small, self.size.draft.vocab_size - 1, config, small.spec.weight_bytes)
        return DraftModelProposer(small, DraftModelConfig(checkpoint="random", num_nodes=nodes))

    def _head(self) -> Eagle3Head:
        whole, count = self.size.target, self.size.draft_vocab
        layer = replace(whole, family="llama", num_layers=1, qkv_bias=False, windows=(None,))
        spec = Eagle3Spec(layer=layer, draft_vocab_size=count, target_hidden_size=whole.hidden_size)
        return Eagle3Head(
            spec,
            RandomWeights(spec.shapes(), self.device, self.dtype),
            embedding_VE=self.target.shared_weights().embedding_VE,
            owns_embedding=False,
            ids_K=torch.arange(count) * (whole.vocab_size // count),
            feature_layers=spec.feature_layers(whole.num_layers),
            dtype=self.dtype,
            device=self.device,
        )

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_steps(bed: Bed, method: str, slots: int, context: int, num_steps: int) -> dict[str, Any]:
    """Measure the median step of greedy decoding, its parts, and its memory."""
    proposer = bed.proposer(method)
    steps: list[StepRecord] = []

    def record(item: StepRecord | PrefillRecord) -> None:
        if isinstance(item, StepRecord):
            steps.append(item)

    room = (num_steps + WARM_UPS + 1) * (1 + METHODS[method])
    engine = Engine(
        bed.target, proposer, max_batch=slots, max_len=context + room + 8, prefill_chunk=slots * context, record=record
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(slots):
        prompt = torch.randint(0, bed.target.spec.vocab_size, (context,), generator=generator).tolist()
        engine.add(prompt, SamplingParams(max_tokens=room, ignore_eos=True))
    seconds = []
    with torch.inference_mode(), engine.decoding_threads():
        start = time.perf_counter()
        engine.admit()
        bed.wait()
        prefill_s = time.perf_counter() - start
        for _ in range(WARM_UPS + num_steps):
            start = time.perf_counter()
            engine.step()
            bed.wait()
            seconds.append(time.perf_counter() - start)
    kept = steps[WARM_UPS:]
    parts = {
        part: statistics.median(getattr(step, f"{part}_s") for step in kept)
        for part in ("propose", "verify", "accept", "commit", "host")
    }
    return {
        "step_s": statistics.median(seconds[WARM_UPS:]),
        "parts_s": parts,
        "first_steps_s": sum(seconds[:WARM_UPS]),
        "prefill_s": prefill_s,
        "accepted_per_step": sum(slot.num_accepted for step in kept for slot in step.slots) / (len(kept) * slots),
        "read_bytes": read_bytes(bed.target, engine.memory.cache, slots, context),
        "graph_pool_bytes": pool_bytes(bed),
    }


def read_bytes(target: NativeTarget, cache: CachePlan, slots: int, context: int) -> int:
    """Return the bytes that a plain step must read."""
    table = 0 if target.decoder.spec.tie_word_embeddings else target.decoder.embed_VE.nbytes
    return target.spec.weight_bytes - table + slots * context * cache.bytes_per_token


def pool_bytes(bed: Bed) -> int:
    shared = graph_module.default_graph_pool(bed.device)
    return 0 if shared is None else shared.num_bytes


def measure_bandwidth(bed: Bed, *_: Any) -> dict[str, Any]:
    num_bytes = 2**32 if bed.device.type == "cuda" else 2**22
    return {"bytes_per_s": memory_bytes_per_s(bed.device, num_bytes=num_bytes, passes=15)}


def measure_attention(bed: Bed, slots: int, context: int) -> dict[str, Any]:
    """Measure one layer's attention of three rows, by back end: seconds, and the error."""
    back_ends: dict[str, Ops] = {
        "reference": TorchOps(bed.dtype, bed.device),
        "fused": TorchOps(bed.dtype, bed.device, fused=True),
    }
    if bed.device.type == "cuda":
        from outrider.ops.triton import TritonOps

        back_ends["triton"] = TritonOps(bed.dtype, bed.device)
    return {
        name: {
            "attend_s": time_attention(bed, ops, slots, context),
            "difference": ops_gpu.compare(ops, bed.device),
        }
        for name, ops in back_ends.items()
    }


def time_attention(bed: Bed, ops: Ops, slots: int, context: int) -> float:
    spec, rows, device = bed.size.target, 3, bed.device
    S = context + 64
    at_BM = (torch.full((slots, 1), context) + torch.arange(rows)).to(device)
    placement = Placement(
        slots_B=torch.arange(slots, device=device),
        lengths_B=at_BM[:, 0].contiguous(),
        positions_BM=at_BM,
        write_BM=at_BM,
        mask_BMT=torch.ones(slots, rows, rows, device=device).bool().tril(),
        limit=context + rows,
    )
    shape = AttentionShape(
        num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, scale=spec.head_dim**-0.5
    )
    table_PD = torch.ones(S, spec.head_dim // 2, device=device)
    width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    qkv_RQ = torch.randn(slots * rows, width, device=device).to(bed.dtype)
    cache_2CHSD = torch.randn(2, slots, spec.num_kv_heads, S, spec.head_dim, device=device).to(bed.dtype)
    call = lambda: ops.attend(qkv_RQ, shape, Rope(cos_PD=table_PD, sin_PD=table_PD), *cache_2CHSD, placement)  # noqa: E731
    repeats = 20
    repeated = graph_module.GraphPool(device).record(lambda: [call() for _ in range(repeats)])
    samples = []
    for _ in range(7):
        bed.wait()
        start = time.perf_counter()
        repeated.replay()
        bed.wait()
        samples.append((time.perf_counter() - start) / repeats)
    return statistics.median(samples)


def sections(size: Size, num_steps: int) -> dict[str, tuple[str, Callable[[Bed], dict[str, Any]]]]:
    """Return the measurements by key: the mode and the measurement, quick and important ones first."""
    found: dict[str, tuple[str, Callable[[Bed], dict[str, Any]]]] = {"bandwidth": ("graphs", measure_bandwidth)}
    for mode in ("graphs", "eager"):
        for context in size.contexts:
            for slots in size.slots:
                for method in METHODS:
                    found[f"{method}/{mode}/{slots}/{context}"] = (
                        mode,
                        lambda bed, m=method, s=slots, c=context: measure_steps(bed, m, s, c, num_steps),
                    )
                if mode == "graphs":
                    found[f"attention/{slots}/{context}"] = (
                        mode,
                        lambda bed, s=slots, c=context: measure_attention(bed, s, c),
                    )
    return found


def table(done: Mapping[str, Any], size: Size) -> str:
    """Format measured figures beside the wanted ones."""
    bandwidth = done.get("bandwidth", {}).get("bytes_per_s")
    lines = [f"memory bandwidth {bandwidth / 1e9:.0f} GB/s"] if bandwidth else []
    columns = ("method", "mode", "slots", "context", "step ms", "tok/s", "of bandwidth", "plain steps", "wanted")
    head = "".join(f"{name:>13}" for name in columns)
    lines += [head, "-" * len(head)]
    for key, row in done.items():
        if row.get("step_s") is None:
            continue
        method, mode, slots, context = key.split("/")
        plain = done.get(f"plain/{mode}/{slots}/{context}", {}).get("step_s")
        is_plain, many = method == "plain", int(slots) > 1
        share = f"{row['read_bytes'] / row['step_s'] / bandwidth:.1%}" if is_plain and bandwidth else ""
        rate = f"{int(slots) / row['step_s']:.1f}" if is_plain else ""
        cost = f"{row['step_s'] / plain:.3f}" if plain and not is_plain else ""
        wanted = f"{PLAIN_SHARE_TARGET:.0%}" if is_plain else f"{MANY_TARGET if many else TARGETS[method, 1]:.2f}"
        wanted = wanted if mode == "graphs" and not (is_plain and many) else ""
        cells = (method, mode, slots, context, f"{1e3 * row['step_s']:.3f}", rate, share, cost, wanted)
        lines.append("".join(f"{cell:>13}" for cell in cells))
    for key, row in done.items():
        if key.startswith("attention/"):
            times = ", ".join(
                f"{name} {1e6 * one['attend_s']:.1f} us (off by {one['difference']:.1g})" for name, one in row.items()
            )
            lines.append(f"{key}: {times}")
    failed = [f"{key}: {row['error']}" for key, row in done.items() if "error" in row]
    return "\n".join([*lines, *failed])


def measure(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Fill in what the file lacks, section by section."""
    size, device = SIZES[options.size], torch.device(options.device)
    manifest = json.loads(manifest_to_json(collect_manifest(seed=0, settings=vars(options), workload_hash="random")))
    document = json.loads(file.read_text()) if file.exists() else {"schema": "outrider.gpu/1", "sections": {}}
    document["provenance"] = manifest
    document["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    done, bed = document["sections"], None
    only = [part for part in options.only.split(",") if part]
    for key, (mode, section) in sections(size, options.steps).items():
        if "step_s" in done.get(key, {}) or (key in done and "error" not in done[key]):
            continue
        if only and not any(part in key.split("/") for part in only):
            continue
        print(f"{key} ...", file=sys.stderr, flush=True)
        if bed is None or bed.mode != mode:
            bed = None
            bed = Bed(size, device, mode)
        try:
            done[key] = section(bed)
        except Exception as error:  # one section that fails must not cost the others of a short lease
            done[key] = {"error": f"{type(error).__name__}: {error}"}
        new = file.with_suffix(".new")
        new.write_text(json.dumps(document, indent=1))
        new.replace(file)
        file.with_suffix(".txt").write_text(table(done, size) + "\n")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--only", default="", help="parts of section names, such as plain,graphs,4096")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --size tiny tries the script out")
    file = Path(options.output) / f"{options.size}-{options.device.replace(':', '')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    document = measure(options, file)
    print(table(document["sections"], SIZES[options.size]))
    print(json.dumps({"schema": document["schema"], "file": str(file), "device": document["device"]}))


if __name__ == "__main__":
    main()
