"""Measurements for a quiet machine: decoding with each head, and the steps of both trainers.

Decoding is a run of `outrider bench` on held-out prompts of the data: plain decoding and all heads take turns, so that
a drift of the machine meets all. The trainers take a few steps each, one after the other, with the same threads: time
per token, without start-up, validation and checkpoints, as each of them counts it.

Example: `decode({"ours": a, "theirs": b}, data, work, "smollm2-135m", 16)` gives three rows.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outrider.bench.benchmark import benchmark
from outrider.bench.config import BenchConfig
from outrider.errors import RunError
from outrider.records.files import write_text
from outrider.results.rows import to_json

__all__ = ["WORKER", "decode", "held_out_prompts", "steps_of_ours", "steps_of_theirs", "worker"]

WORKER = Path(__file__).with_name("speculators_run.py")
SIZES = ("--draft-vocab-size=8192", "--total-seq-len=1024")
"""Columns, and tokens of a step, which on a CPU has masks of that many rows by three times as many columns."""
HASH_BITS = 63


def held_out_prompts(data: Path, num_prompts: int) -> list[str]:
    """Return the first user messages of the first held-out conversations of a data set."""
    fraction = json.loads((data / "manifest.json").read_text())["settings"]["heldout_fraction"]
    found: list[str] = []
    for shard in sorted(data.glob("shard-*.jsonl")):
        for row in map(json.loads, shard.read_text().splitlines()):
            if int(row["prompt_hash"], 16) < int(fraction * 2**HASH_BITS):
                found.append(next(message["content"] for message in row["messages"] if message["role"] == "user"))
    return found[:num_prompts]


def decode(heads: Mapping[str, Path], data: Path, work: Path, target: str, num_prompts: int) -> dict[str, Any]:
    """Measure plain decoding and all heads on held-out prompts, and go on where an earlier call was stopped."""
    prompts = work / "held-out.jsonl"
    rows = [json.dumps({"prompt": prompt}) for prompt in held_out_prompts(data, num_prompts)]
    write_text(prompts, "\n".join(rows) + "\n")
    config = BenchConfig(
        target=target,
        methods=tuple(f"eagle3:checkpoint={directory},num_nodes=2" for directory in heads.values()),
        categories=(),
        prompts=(str(prompts),),
        num_prompts=num_prompts,
        max_new_tokens=64,
        repeats=3,
        traces=0,
    )
    report: dict[str, Any] = json.loads(to_json(benchmark(config, work / "decode")))
    return report


def steps_of_ours(options: Sequence[str], num_tokens: int, threads: int) -> dict[str, float]:
    """Train for about `num_tokens` tokens; return tokens and seconds."""
    with tempfile.TemporaryDirectory(prefix="other-trainer-") as scratch:
        command = [sys.executable, "-m", "outrider", "train", "eagle3", *options, "--max-tokens", str(num_tokens)]
        command += ["--run-dir", f"{scratch}/run"]
        _run(command, threads)
        summary = json.loads(Path(scratch, "run", "summary.json").read_text())
    return {"tokens": summary["tokens"], "seconds": summary["seconds"]}


def steps_of_theirs(python: Path, work: Path, verifier: Path, num_steps: int, threads: int) -> dict[str, float]:
    """Train for `num_steps` steps in one epoch; return tokens and seconds."""
    with tempfile.TemporaryDirectory(prefix="other-trainer-") as scratch:
        told = worker(python, work, Path(scratch), verifier, threads, ["--epochs=1", f"--max-steps={num_steps}"])
    return {"tokens": told["tokens"], "seconds": told["seconds"]}


def worker(
    python: Path, work: Path, output: Path, verifier: Path, threads: int, options: Sequence[str]
) -> dict[str, Any]:
    """Run `speculators` in its own environment on the converted data; return what it tells at its end."""
    command = [str(python), str(WORKER), str(work / "converted"), str(output), str(verifier), str(threads)]
    command += [*SIZES, *options]
    told: dict[str, Any] = json.loads(_run(command, threads).splitlines()[-1])
    return told


def _run(command: Sequence[str], threads: int) -> str:
    """Run a command and return what it prints.

    Raises:
        RunError: with its last line, if it fails.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "OUTRIDER_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"{' '.join(command[:4])} ... ended with status {done.returncode}: {last}")
    return done.stdout
