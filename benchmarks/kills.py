"""Kill commands at random moments, run them again, and compare what they leave with an undisturbed run.

    python -m benchmarks.kills [--num 100] [--seed 0] [--commands bench export synthesize train]

Run from the root of a checkout. Every command works on a tiny random model, in a process forked from this one, so that
a trial takes about a second and nearly every kill hits the work itself. A trial kills one to three times with SIGKILL,
SIGTERM or SIGINT, then runs the command to its end. It fails if the end differs from that of an undisturbed run (texts,
weights, decoded tokens), if a signal ends in anything but its own exit status, or if a traceback is printed.

Prints one line per trial that failed, and the counts. Exit status 1 if there was one.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outrider.cli import main as outrider_main
from outrider.cli.commands.train import with_methods
from outrider.testing.directory import write_tiny_model

SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
"""With the status that each shall end a command with."""
LIMIT_S = 600.0


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        start: arguments for a directory that it writes into.
        resume: those of a later run; the same where there is none.
        content: all that must be equal in the end.
    """

    start: Callable[[Path], list[str]]
    content: Callable[[Path], Any]
    resume: Callable[[Path], list[str]] | None = None

    def next(self, place: Path) -> list[str]:
        """Return the arguments of the next run."""
        is_begun = self.resume is not None and (place / "config.json").is_file()
        return self.resume(place) if self.resume is not None and is_begun else self.start(place)


def commands(root: Path) -> dict[str, Command]:
    """Return what is killed, on material that lies in `root`."""
    target = ["--target", str(root / "model"), "--dtype", "float32"]
    texts, run = root / "texts", root / "run"
    short = ["--max-new-tokens", "24", "--max-prompt-tokens", "128", "--shard-size", "4"]
    loop = ["--row-length", "128", "--rows", "1", "--epochs", "3", "--checkpoint-every", "4", "--eval-every", "4"]
    loop += ["--heldout-fraction", "0.3"]
    loop += ["--real-tau-every", "16", "--real-tau-prompts", "2", "--real-tau-tokens", "8", "--save-dtype", "float32"]
    return {
        "synthesize": Command(
            lambda place: ["synthesize", *target, "--source", str(root / "p.jsonl"), "--output", str(place), *short],
            lambda place: _files(place, "shard-*") | {"totals": _json(place / "manifest.json")["totals"]},
        ),
        "train": Command(
            lambda place: (["train", "medusa", *target, "--data", str(texts), "--run-dir", str(place), *loop]),
            _trained,
            lambda place: ["train", "medusa", "--resume", str(place)],
        ),
        "export": Command(
            lambda place: ["export", str(run / "final"), *target, "--output", str(place)],
            lambda place: {name: data for name, data in _files(place, "*").items() if name != "serving.json"},
        ),
        "bench": Command(
            lambda place: ["bench", "--preset", str(root / "tiny.toml"), "--run-dir", str(place)], _measured
        ),
    }


def prepare(root: Path) -> None:
    """Write the model, the prompts and the preset."""
    write_tiny_model(root / "model", dtype=torch.float32)
    prompts = [{"id": f"p{number}", "turns": [f"tell me about number {number}, {7 * number}"]} for number in range(24)]
    (root / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    (root / "tiny.toml").write_text(
        f'title = "kills"\ntarget = "{root / "model"}"\ndtype = "float32"\ncategories = []\n'
        f'prompts = ["{root / "p.jsonl"}"]\nmethods = ["draft_model:layers=0,num_nodes=2"]\nmax_new_tokens = 6\n'
        "repeats = 2\nnum_prompts = 8\n",
        encoding="utf-8",
    )


def started(arguments: Sequence[str], log: Path) -> int:
    """Fork a process that runs the command; return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = outrider_main(list(arguments))
    except KeyboardInterrupt:  # before the command could listen
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def ended(child: int, limit: float) -> int | None:
    """Return the status of a process, or None if it still runs after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def finished(arguments: Sequence[str], log: Path) -> str | None:
    """Run a command to its end; why that failed, or None."""
    status = ended(child := started(arguments, log), LIMIT_S)
    if status is None:
        os.kill(child, signal.SIGKILL)
        ended(child, LIMIT_S)
    return None if status == 0 else f"ended with status {status}: {_last(log)}"


def trial(command: Command, place: Path, seconds: float, rng: random.Random, tally: Counter[str]) -> str | None:
    """Kill a command up to three times and run it to its end; what went wrong, or None."""
    log = place.with_suffix(".log")
    for _ in range(rng.choice((1, 1, 2, 3))):
        number, delay = rng.choice(list(SIGNALS)), rng.uniform(0.0, 1.1 * seconds)
        child = started(command.next(place), log)
        status = ended(child, delay)
        if status is None:
            os.kill(child, number)
            status = ended(child, LIMIT_S)
            tally[number.name] += 1
            if status is None:
                os.kill(child, signal.SIGKILL)
                return f"{number.name} after {delay:.2f} s did not end it"
        if status not in (0, SIGNALS[number], -number):
            return f"{number.name} after {delay:.2f} s ended it with status {status}: {_last(log)}"
        if status == 0:
            break
    if status != 0 and (reason := finished(command.next(place), log)):
        return f"the run after the kill {reason}"
    return f"a traceback: {_last(log)}" if "Traceback" in log.read_text(errors="replace") else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=100, help="trials")
    parser.add_argument("--seed", type=int, default=0, help="the first trial's; the others follow it")
    parser.add_argument("--commands", nargs="+", default=["bench", "export", "synthesize", "train"])
    options = parser.parse_args()
    with_methods()  # imports what a command would
    failures, tally = 0, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        prepare(root)
        known = commands(root)
        wanted, seconds = {}, {}
        for name, place in (("synthesize", "texts"), ("train", "run"), ("export", "export"), ("bench", "bench")):
            start = time.monotonic()
            if reason := finished(known[name].start(root / place), root / f"{name}.log"):
                raise SystemExit(f"{name} undisturbed {reason}")
            wanted[name], seconds[name] = known[name].content(root / place), time.monotonic() - start
        for seed in range(options.seed, options.seed + options.num):
            rng = random.Random(seed)
            name, place = rng.choice(options.commands), root / f"trial{seed}"
            reason = trial(known[name], place, seconds[name], rng, tally)
            if reason is None and known[name].content(place) != wanted[name]:
                reason = "the end differs from an undisturbed run"
            failures += reason is not None
            tally[name] += 1
            if reason is not None:
                print(f"{name} --seed {seed}: {reason}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    print(f"{options.num} trials ({', '.join(f'{count} {name}' for name, count in sorted(tally.items()))}), ", end="")
    print(f"{failures} failures")
    return 1 if failures else 0


def _trained(place: Path) -> dict[str, Any]:
    summary = _json(place / "summary.json")
    kept = {key: summary[key] for key in ("steps", "tokens", "best_tau", "held_out", "decoded", "loss_curve")}
    names = ("final/model.safetensors", "final/config.json", "best/model.safetensors", "best/config.json")
    return kept | {name: (place / name).read_bytes() for name in names}


def _measured(place: Path) -> Any:
    lines = [json.loads(line) for line in (place / "units.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = _json(place / "report.json")["rows"]
    tokens = {line["unit"]: [answer["tokens"] for answer in line["answers"]] for line in lines}
    return len(lines), tokens, [[row[key] for key in ("method", "batch", "num_tokens", "tau")] for row in rows]


def _files(place: Path, pattern: str) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in sorted(place.glob(pattern))}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-2:])[-400:]


if __name__ == "__main__":
    sys.exit(main())
