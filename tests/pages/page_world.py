"""The place where the examples of a page run: a directory with whatever their placeholders name.

A page writes MODEL, my_prompts.jsonl or runs/DIRECTORY for what the reader has. Here each is a link to something tiny
and real, made when the first page names it: `MAKERS` lists them. `SMALL` holds the options that make a command of the
pages one of a second; they are added after the command has been read as it is printed.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from page_blocks import ROOT

from outrider.cli import main
from outrider.formats.heads_archive import write_archive
from outrider.formats.locate import gguf_file
from outrider.testing.directory import write_tiny_model

TINY_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32}
PROMPTS = (
    "abc abc abc",
    "xyz xyz xyz",
    "one two one two",
    "no more",
    "a b a b",
    "q",
    "red fox red fox",
    "go on, go on",
)
TARGETS = ("smollm2-135m", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-8B")
"""Targets that are replaced by the tiny one where a command runs; Python blocks get the real embedded target."""

SHORT = ("--target", "MODEL")
SOURCE = ("--source", "conversations.jsonl", "--max-prompt-tokens", "200")
ONE = ("--batches", "1", "--num-prompts", "2")
SMALL: dict[str, tuple[str, ...]] = {
    "generate": ("--max-new-tokens", "8"),
    "chat": ("--max-new-tokens", "8"),
    "bench": (*SHORT, "--categories", "--prompts", "my_prompts.jsonl", "--max-new-tokens", "4", "--repeats", "1", *ONE),
    "profile": SHORT,
    "synthesize": (*SHORT, "--num-prompts", "8", "--max-new-tokens", "12", *SOURCE),
    "train": (*SHORT, "--epochs", "1", "--row-length", "64", "--real-tau-prompts", "1", "--real-tau-tokens", "8"),
    "export": SHORT,
    "quality": (*SHORT, "--num-tokens", "16"),
    "serve": ("--port", "0", "--max-len", "512", "--served-model-name", "smollm2-135m"),
}


class World:
    """What placeholders name, made once and linked into the directory of each page."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def furnish(self, directory: Path, text: str) -> None:
        """Link into the directory whatever the text names."""
        for name in MAKERS:
            if re.search(rf"(?<![\w./-]){re.escape(name.removesuffix('.py'))}(?![\w-]|\.\w)", text):
                self.link(directory, name)

    def link(self, directory: Path, name: str) -> None:
        place = directory / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self.made(name))

    def made(self, name: str) -> Path:
        path = self.home / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](self, path)
        return path

    def run(self, *words: object) -> None:
        assert main([*map(str, words)]) == 0, words


def _model(world: World, path: Path) -> None:
    write_tiny_model(path, max_positions=2048, **TINY_SIZES)


def _gguf(world: World, path: Path) -> None:
    path.symlink_to(gguf_file("smollm2-135m") or "")


def _prompts(world: World, path: Path) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")


def _data(world: World, path: Path) -> None:
    prompts = path.with_name("sources.jsonl")
    prompts.write_text(
        "".join(json.dumps({"prompt": f"{prompt} {turn}"}) + "\n" for prompt in PROMPTS for turn in range(3))
    )
    sizes = ("--max-new-tokens", 12, "--max-prompt-tokens", 200, "--heldout-fraction", 0.25)
    world.run("synthesize", "--target", world.made("MODEL"), "--source", prompts, "--output", path, *sizes)


def _training(world: World, path: Path) -> None:
    sizes = ("--epochs", 1, "--row-length", 64, "--real-tau-prompts", 1, "--real-tau-tokens", 8)
    where = ("--target", world.made("MODEL"), "--data", world.made("data/smollm2"), "--run-dir", path)
    world.run("train", "eagle3", *where, *sizes)
    if not (path / "best").exists():
        (path / "best").symlink_to(path / "final")


def _head(world: World, path: Path) -> None:
    path.symlink_to(world.made("runs/train-eagle3-DATE") / "final")


def _bench(world: World, path: Path) -> None:
    prompts = world.made("my_prompts.jsonl")
    sizes = ("--batches", 1, 2, "--num-prompts", 2, "--max-new-tokens", 4, "--repeats", 1)
    where = ("--target", world.made("MODEL"), "--prompts", prompts, "--run-dir", path, "--categories")
    world.run("bench", *where, "--methods", "ngram", f"eagle3:checkpoint={world.made('DIR')}", *sizes)


def _same_bench(world: World, path: Path) -> None:
    path.symlink_to(world.made("runs/DIRECTORY"))


def _quality(world: World, path: Path) -> None:
    path.symlink_to(ROOT / "docs" / "results" / "quality.jsonl")


def _costs(world: World, path: Path) -> None:
    methods = ("--methods", "ngram", f"eagle3:checkpoint={world.made('DIR')}")
    world.run("profile", "--quick", "--target", world.made("MODEL"), *methods, "--output", path)


def _heads_archive(world: World, path: Path) -> None:
    head = path.with_name("to-archive") / "tiny" / "eagle3"
    head.parent.mkdir(parents=True)
    head.symlink_to(world.made("DIR"))
    write_archive(head.parents[1], path)


def _package(world: World, path: Path) -> None:
    method = (ROOT / "examples" / "outrider-bigram" / "outrider_bigram.py").read_text(encoding="utf-8")
    path.write_text(f"{method}\n\nMyProposer = BigramProposer\n", encoding="utf-8")


MAKERS: dict[str, Callable[[World, Path], None]] = {
    "MODEL": _model,
    "directory": _model,
    "model-Q4_K_M.gguf": _gguf,
    "my_prompts.jsonl": _prompts,
    "mine.jsonl": _prompts,
    "conversations.jsonl": _prompts,
    "data/smollm2": _data,
    "runs/small/data": _data,
    "runs/train-eagle3-DATE": _training,
    "DIR": _head,
    "runs/eagle3/best": _head,
    "runs/DIRECTORY": _bench,
    "runs/chat": _same_bench,
    "runs/editing": _same_bench,
    "docs/results/quality.jsonl": _quality,
    "costs.json": _costs,
    "outrider-heads.zip": _heads_archive,
    "my_package.py": _package,
    "outrider_bigram.py": _package,
}
