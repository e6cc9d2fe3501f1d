"""Measure what a run holds in memory, against its plan, and whether that stays flat.

    python benchmarks/memory.py [--methods none ngram ...] [--batch 4] [--max-len 1024] [--tokens 64] [--steps 10000]

Every figure comes from a process of its own (Linux):

    baseline   resident memory once all modules are imported, a tiny model has been decoded with the method's example
               in the same dtype, and the tokenizer is loaded; no weights of the target yet
    planned    `MemoryPlan`: weights of target and proposer and the cache of `batch` slots of `max_len` positions;
               cache that no request reaches is never touched, so not all of it becomes resident
    peak       the largest resident memory from then on, less the baseline: loading the target, opening the engine,
               reading prompts until every slot is full
    session    the largest `Session.num_bytes`; the peak is compared with planned + session
    per token  bytes by which the session's memory grows for each token of text (`bench.engine_contender`)

Then the same methods run `steps` steps of continuous traffic on a tiny target: resident memory, live tensors and the
session's own account are sampled, and the largest growth after the first tenth is printed. The last line is JSON.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from outrider.bench.engine_contender import session_bytes_per_token
from outrider.engine import Engine
from outrider.formats.locate import locate
from outrider.formats.tokenizer import load_tokenizer
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import REGISTRY, proposer_class
from outrider.proposers.method_spec import load_method, method_specs
from outrider.sampling import SamplingParams
from outrider.targets import DTYPES, load_target
from outrider.testing import tiny_target
from outrider.testing.traffic import drive

METHODS = ("none", "ngram", "suffix", "draft_model:layers=0,1,2,8,9,10,11,20,21,24,28,29,num_nodes=2")
MB, NUM_SAMPLES = 1e6, 40


def resident(name: str) -> int:
    """Read a line of this process's status, in bytes: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def settle() -> int:
    """Give back what is free, forget the peak so far, and say what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def peak(options: argparse.Namespace) -> dict[str, Any]:
    """Run one method once on the real target."""
    dtype = DTYPES[options.dtype]
    tiny = tiny_target(dtype=dtype)
    choice = method_specs([options.method])[0]
    example = proposer_class(choice.name).example(tiny, 1)
    Engine(tiny, example, max_batch=2).generate([[1, 2, 3] * 4, [4]], SamplingParams(max_tokens=8))
    del tiny, example
    libraries = settle()
    tokenizer = load_tokenizer(locate(options.target))
    baseline = settle()
    del tokenizer
    target = load_target(options.target, dtype=options.dtype, device="cpu")
    loaded_peak, loaded = resident("VmHWM") - baseline, settle() - baseline
    proposer = load_method(choice, target)
    sessions: list[int] = [0]

    def record(item: StepRecord | PrefillRecord) -> None:
        sessions.append(engine.session.num_bytes)

    engine = Engine(target, proposer, max_batch=options.batch, max_len=options.max_len, record=record)
    prompts = [text_of(number, options.max_len - options.tokens) for number in range(2 * options.batch)]
    engine.generate(prompts, SamplingParams(max_tokens=options.tokens, ignore_eos=True))
    most = max(loaded_peak, resident("VmHWM") - baseline)
    plan = engine.memory
    weights = plan.target_weight_bytes + plan.proposer_weight_bytes
    return {
        "method": options.method,
        "baseline_bytes": baseline,
        "tokenizer_bytes": baseline - libraries,
        "weight_bytes": weights,
        "cache_bytes": plan.cache.num_bytes,
        "load_peak_bytes": loaded_peak,
        "loaded_bytes": loaded,
        "peak_bytes": most,
        "peak_over_plan": most / (weights + plan.cache.num_bytes + max(sessions)),
        "session_bytes": max(sessions),
        "target_bytes_per_token": plan.cache.bytes_per_token,
        "session_bytes_per_token": session_bytes_per_token(target, proposer),
    }


def text_of(number: int, length: int) -> list[int]:
    """Return token ids without meaning, different for every request."""
    draw = torch.Generator().manual_seed(number)
    return [int(token) for token in torch.randint(100, 40_000, (length,), generator=draw)]


def flatness(options: argparse.Namespace) -> dict[str, Any]:
    """Run many steps of one method's example on a tiny target."""
    target = tiny_target(dtype=torch.float32)
    name = options.method.partition(":")[0]
    engine = Engine(target, proposer_class(name).example(target, 1), max_batch=4)
    every = max(1, options.steps // NUM_SAMPLES)
    samples: list[tuple[int, int, int]] = []
    for _ in range(NUM_SAMPLES):
        drive(engine, every, forget=False)
        gc.collect()
        kinds = Counter(map(type, gc.get_objects()))
        tensors = sum(count for kind, count in kinds.items() if issubclass(kind, torch.Tensor))
        samples.append((resident("VmRSS"), tensors, engine.session.num_bytes))
    first = samples[NUM_SAMPLES // 10]
    growth = [max(sample[place] for sample in samples[NUM_SAMPLES // 10 :]) - first[place] for place in range(3)]
    return {
        "method": name,
        "steps": engine.num_steps,
        "resident_growth_bytes": growth[0],
        "tensor_growth": growth[1],
        "session_growth_bytes": growth[2],
        "last_resident_growth_bytes": samples[-1][0] - first[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-len", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--part", choices=("peak", "flatness"), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(peak(options) if options.part == "peak" else flatness(options)))
        return
    peaks, flat = [], []
    for method in options.methods:
        row = run("peak", method, options)
        peaks.append(row)
        print(
            f"{row['method'][:24]:24} baseline {row['baseline_bytes'] / MB:6.0f} MB (tokenizer "
            f"{row['tokenizer_bytes'] / MB:.0f})   weights {row['weight_bytes'] / MB:6.1f}   "
            f"cache {row['cache_bytes'] / MB:6.1f}   loading "
            f"{row['load_peak_bytes'] / MB:6.1f}   peak {row['peak_bytes'] / MB:6.1f} "
            f"= {row['peak_over_plan']:.2f} x plan   session {row['session_bytes'] / MB:6.2f} "
            f"({row['session_bytes_per_token']:.0f} B a token; target {row['target_bytes_per_token']})",
            flush=True,
        )
    names = list(dict.fromkeys([method.partition(":")[0] for method in options.methods] + list(REGISTRY)))
    for name in names if options.steps else []:
        row = run("flatness", name, options)
        flat.append(row)
        print(
            f"{row['method']:12} {row['steps']} steps: largest growth {row['resident_growth_bytes'] / MB:6.2f} MB "
            f"resident, {row['tensor_growth']} tensors, {row['session_growth_bytes']} B in the session",
            flush=True,
        )
    print(json.dumps({"peaks": peaks, "flatness": flat}))


def run(part: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a fresh process."""
    given = {name: value for name, value in vars(options).items() if name not in ("methods", "part", "method")}
    flags = [flag for name, value in given.items() for flag in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, "--part", part, "--method", method, *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
