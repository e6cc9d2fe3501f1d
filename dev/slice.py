"""Heads that are trained on the prompts they are measured on, the wrong way to do it, to see what it looks like.

    python dev/slice.py synthesize          the target answers the prompts of workloads/
    python dev/slice.py train METHOD ...    as `outrider train METHOD ...`, with every text on both sides

Outrider leaves the benchmark's prompts out of its training data and holds prompts out of training. Both is switched off
here and nowhere else; what comes of it stays in runs/ and is not shipped.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider.cli import main
from outrider.data import shards
from outrider.data import synthesis as synthesize
from outrider.data.filters import PromptFilter
from outrider.data.texts import Data

ROOT = Path(__file__).parents[1]


def everything(self: shards.Dataset, heldout_fraction: float | None = None) -> Data:
    """Put all texts on both sides."""
    return Data(train=self, held_out=replace(self))


def run(words: list[str]) -> int:
    """Run one command without the guards."""
    if words[:1] == ["train"]:
        shards.Dataset.split = everything  # type: ignore[method-assign]
        return main(words)
    guards: Any = PromptFilter
    guards.overlaps = guards.seen = lambda self, text: None
    synthesize.benchmark_prompts = dict  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place) / "prompts.jsonl"
        prompts.write_text("".join(path.read_text() for path in sorted((ROOT / "workloads").glob("*.jsonl"))))
        lengths = ["--max-prompt-tokens", "1800", "--max-turn-tokens", "1800", "--max-new-tokens", "128"]
        given = ["--output", "data/slice/0", "--source", str(prompts), "--temperatures", "0", "--max-batch", "8"]
        return main(["synthesize", *given, *lengths, *words[1:]])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
