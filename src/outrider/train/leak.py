"""Whether the benchmark's prompts stand in training texts: written down by training, told by every benchmark.

A drafter that has read the very prompts it is measured on looks better than it is. So training looks for them in all
that it read (a run of 13 words, see `outrider.bench.overlap`), and what was found travels with the checkpoint:

    training.json    "overlap": {"share": 0.0, "num_prompts": 140, "prompts": [], "words": 13}

Example: `recorded_overlap(Path("checkpoints/smollm2-135m/eagle3"))` is that record, or None where there is none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outrider.bench.overlap import NGRAM, overlap
from outrider.bench.workloads import CATEGORIES, load_category
from outrider.formats.store import read_json
from outrider.train.card import TRAINING
from outrider.train.texts import Texts

__all__ = ["find_overlap", "recorded_overlap"]

DECODED = 256
"""Texts that become words at a time."""


def find_overlap(texts: Texts, tokenizer: Any) -> dict[str, Any]:
    """Look for every conversation of our workloads in the texts; reads all of them."""
    owners = [(one.id, turn) for name in CATEGORIES for one in load_category(name) for turn in one.turns]
    found = overlap([turn for _, turn in owners], _words_in(texts, tokenizer))
    prompts = sorted({owners[index][0] for index in found.indices})
    count = len({id for id, _ in owners})
    return {"share": len(prompts) / count, "num_prompts": count, "prompts": prompts, "words": NGRAM}


def _words_in(texts: Texts, tokenizer: Any) -> Any:
    for start in range(0, len(texts), DECODED):
        some = [texts.example(at).tokens_T.tolist() for at in range(start, min(start + DECODED, len(texts)))]
        yield from tokenizer.batch_decode(some, skip_special_tokens=True)


def recorded_overlap(checkpoint: Path) -> Mapping[str, Any] | None:
    """What training wrote down beside a checkpoint."""
    path = checkpoint / TRAINING
    found = read_json(path).get("overlap") if path.is_file() else None
    return found if isinstance(found, dict) else None
