"""The commands that are killed, each on a tiny random model, and what must be equal in the end.

A trial has a directory of its own: the command writes to `out` in it, and its cache is beside that.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.kills import pieces
from benchmarks.kills.pieces import Pieces

from outrider.testing.directory import write_tiny_model

__all__ = ["Command", "commands", "prepare"]


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        start: arguments for a place that it writes to.
        content: all that must be equal in the end.
        pieces: what is finished there.
        resume: arguments of a later run; the same where there is none.
    """

    start: Callable[[Path], list[str]]
    content: Callable[[Path], Any]
    pieces: Callable[[Path], Pieces] = lambda place: {}
    resume: Callable[[Path], list[str]] | None = None

    def next(self, place: Path) -> list[str]:
        """Return the arguments of the next run."""
        is_begun = self.resume is not None and (place / "config.json").is_file()
        return self.resume(place) if self.resume is not None and is_begun else self.start(place)


def prepare(root: Path) -> None:
    """Write the models, the prompts and the preset."""
    write_tiny_model(root / "model", dtype=torch.float32)
    write_tiny_model(root / "wide", dtype=torch.bfloat16, hidden_size=32, intermediate_size=64, head_dim=8)
    prompts = [{"id": f"p{number}", "turns": [f"tell me about number {number}, {7 * number}"]} for number in range(24)]
    (root / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    (root / "tiny.toml").write_text(
        f'title = "kills"\ntarget = "{root / "model"}"\ndtype = "float32"\ncategories = []\n'
        f'prompts = ["{root / "p.jsonl"}"]\nmethods = ["draft_model:layers=0,num_nodes=2"]\nmax_new_tokens = 6\n'
        "repeats = 2\nnum_prompts = 8\n",
        encoding="utf-8",
    )


def commands(root: Path) -> dict[str, Command]:
    """Return the commands on material in `root`, in an order in which the earlier ones make what later ones need."""
    target = ["--target", str(root / "model"), "--dtype", "float32"]
    prompts, texts, head = str(root / "p.jsonl"), str(root / "synthesize" / "out"), root / "train" / "out" / "final"
    short = ["--max-new-tokens", "24", "--max-prompt-tokens", "128", "--shard-size", "4"]
    loop = ["--row-length", "128", "--rows", "1", "--epochs", "3", "--checkpoint-every", "4", "--eval-every", "4"]
    loop += ["--heldout-fraction", "0.3", "--features", "cached", "--save-dtype", "float32"]
    loop += ["--real-tau-every", "16", "--real-tau-prompts", "2", "--real-tau-tokens", "8"]
    load = ["--prompts", prompts, "--concurrency", "1", "2", "--time", "2h", "--max-new-tokens", "8"]
    grid = ["--batches", "1", "2", "--rows", "1", "2", "--contexts", "8", "--repeats", "3"]
    grid += ["--methods", "ngram", "draft_model:layers=0,num_nodes=2"]
    checks = ["--prompts", prompts, "--num-prompts", "3", "--max-new-tokens", "12", "--batches", "1", "2"]
    checks += ["--methods", "draft_model:layers=0,num_nodes=2,sampled=true", "--temperatures", "0.7"]
    checks += ["--processors", "none"]
    checks += ["--verification", "coupled", "rejection", "--law-tokens", "72"]
    kinds = ["--num-tokens", "400", "--weights", "stored", "int8", "int4"]

    def training(place: Path) -> list[str]:
        features = str(place.parent / "features")
        return ["train", "medusa", *target, "--data", texts, "--run-dir", str(place), "--feature-dir", features, *loop]

    return {
        "synthesize": Command(
            lambda place: ["synthesize", *target, "--source", prompts, "--output", str(place), *short],
            lambda place: _files(place, "shard-*") | {"totals": _json(place / "manifest.json")["totals"]},
            lambda place: pieces.files(place, "shard-*.safetensors"),  # written behind its .jsonl
        ),
        "train": Command(training, _trained, pieces.steps, lambda place: ["train", "medusa", "--resume", str(place)]),
        "export": Command(
            lambda place: ["export", str(head), *target, "--output", str(place)],
            lambda place: {name: data for name, data in _files(place, "*").items() if name != "serving.json"},
        ),
        "bench": Command(
            lambda place: ["bench", "--preset", str(root / "tiny.toml"), "--run-dir", str(place)],
            _measured,
            lambda place: pieces.lines(place / "units.jsonl"),
        ),
        "tune": Command(
            lambda place: ["tune", str(root / "model"), "--dtype", "float32", *load, "--run-dir", str(place)],
            _tuned,
            pieces.tuned,
        ),
        "quality": Command(
            lambda place: ["quality", "--target", str(root / "wide"), *kinds],
            _judged,
            pieces.judged,
        ),
        "profile": Command(
            lambda place: ["profile", *target, *grid, "--output", str(place.with_name("out.json"))],
            _profiled,
            pieces.profiled,
        ),
        "audit": Command(
            lambda place: ["audit", *target, *checks, "--output", str(place.with_name("out.json"))],
            _audited,
            pieces.audited,
        ),
        "report": Command(
            lambda place: ["report", str(root / "bench" / "out"), "--output", str(place.with_name("out.html"))],
            lambda place: place.with_name("out.html").read_bytes(),
            pieces.page,
        ),
    }


def _trained(place: Path) -> dict[str, Any]:
    summary = _json(place / "summary.json")
    kept = {key: summary[key] for key in ("steps", "tokens", "best_tau", "held_out", "decoded", "loss_curve")}
    names = ("final/model.safetensors", "final/config.json", "best/model.safetensors", "best/config.json")
    return kept | {name: (place / name).read_bytes() for name in names}


def _measured(place: Path) -> Any:
    units = pieces.lines(place / "units.jsonl")
    rows = _json(place / "report.json")["rows"]
    tokens = {name: [answer["tokens"] for answer in unit["answers"]] for name, unit in units.items()}
    return tokens, [[row[key] for key in ("method", "batch", "num_tokens", "tau")] for row in rows]


def _tuned(place: Path) -> Any:
    """Return what no clock has part in: the answers, the replays, and that every text was the target's own."""
    report = _json(place / "report.json")
    kept = [_json(place / "answers.json")["answers"], *_files(place, "[pr]*s.json*").values()]
    answers = {
        (answer["conversation"], answer["turn"]): answer["tokens"]
        for unit in pieces.lines(place / "verify" / "units.jsonl").values()
        for answer in unit["answers"]
    }
    return kept, {row["lossless"] for row in report["rows"]}, answers


def _judged(place: Path) -> Any:
    found = [json.loads(data)["line"] for data in _files(place.parent / "cache" / "quality", "*.json").values()]
    return sorted((line["label"], line["prompts"], line["answers"]) for line in found)


def _profiled(place: Path) -> Any:
    found = _json(place.with_name("out.json"))
    return sorted(found), sorted(found["drafts"]), place.with_name("out.json.unfinished").exists()


def _audited(place: Path) -> Any:
    found = _json(place.with_name("out.json"))
    left = list((place.parent / "cache" / "audits").iterdir())
    return {name: value for name, value in found.items() if name not in ("manifest", "seconds")}, left


def _files(place: Path, pattern: str) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in sorted(place.glob(pattern))}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
