"""Contamination: was a drafter trained on the prompts it is tested on? The 13-gram check.

A drafter that has seen an evaluation prompt, or an answer to it, guesses better than it will in use. An evaluation text
*overlaps* if at least one run of 13 words stands in the training texts too (the length that GPT-3's authors used, arXiv
2005.14165, appendix C). Words are runs of letters and digits after Unicode normalisation (NFKC) and case folding, so
punctuation, spacing and case do not hide a copy. A text of fewer than 13 words overlaps if all its words stand in the
training texts in a row; of fewer than 5, it is not judged, for such a run is no evidence. Languages that are written
without spaces are not split into words, so the check is blind there. Training texts are streamed.

Training looks for all prompts of the benchmark in what it reads, and what it found travels with the checkpoint:

    training.json    "overlap": {"share": 0.0, "num_prompts": 140, "prompts": [], "words": 13}

Example: `overlap(["The quick brown fox jumps."], ["Look, the QUICK brown fox jumps over the dog"]).share` is 1.0.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from outrider.data.texts import Texts
from outrider.data.workloads import CATEGORIES, load_category
from outrider.errors import ConfigError
from outrider.formats.store import TRAINING
from outrider.records.json_fields import read_json

__all__ = ["NGRAM", "Overlap", "Sought", "find_contamination", "overlap", "recorded_contamination", "words_of"]

NGRAM = 13
SHORTEST = 5
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Evaluation texts that share an n-gram with training texts.

    num_judged  evaluation texts that are long enough
    indices     numbers of the texts that overlap
    length      words of the runs that were compared
    share       overlapping part of the judged texts; None where none was judged
    """

    num_texts: int
    num_judged: int
    num_training_texts: int
    indices: tuple[int, ...]
    length: int

    @property
    def share(self) -> float | None:
        return len(self.indices) / self.num_judged if self.num_judged else None


def words_of(text: str) -> list[str]:
    """
    >>> words_of("Don't STOP, snake_case!")
    ['don', 't', 'stop', 'snake', 'case']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def overlap(evaluation: Sequence[str], training: Iterable[str], *, length: int = NGRAM) -> Overlap:
    """Find the evaluation texts that share a run of `length` words with any training text.

    Raises:
        ConfigError: if `length` is below 5.
    """
    sought = Sought(evaluation, length=length)
    found: set[int] = set()
    num_training = 0
    for text in training:
        num_training += 1
        found |= sought.indices_in(text)
    return Overlap(
        num_texts=len(evaluation),
        num_judged=sum(len(words_of(text)) >= SHORTEST for text in evaluation),
        num_training_texts=num_training,
        indices=tuple(sorted(found)),
        length=length,
    )


Run = tuple[str, ...]


@final
class Sought:
    """The runs of words of evaluation texts, ready to be looked for in one training text after another.

    Raises:
        ConfigError: if `length` is below 5.
    """

    def __init__(self, evaluation: Sequence[str], *, length: int = NGRAM) -> None:
        if length < SHORTEST:
            raise ConfigError(f"length={length} must be at least {SHORTEST}; shorter runs are common by chance")
        self._sought = _runs_sought(evaluation, length)

    def indices_in(self, text: str) -> set[int]:
        """Return the evaluation texts that overlap with this training text."""
        words, found = words_of(text), set[int]()
        for run, owners in self._sought.items():
            for words_in_a_row in _runs(words, run) & owners.keys():
                found.update(owners[words_in_a_row])
        return found


def _runs_sought(evaluation: Sequence[str], length: int) -> dict[int, dict[Run, list[int]]]:
    """Return each run and the texts it stands in, by length of the run."""
    sought: dict[int, dict[Run, list[int]]] = {}
    for index, text in enumerate(evaluation):
        words = words_of(text)
        run = min(length, len(words))  # a short text is looked for as a whole
        for words_in_a_row in _runs(words, run) if run >= SHORTEST else ():
            sought.setdefault(run, {}).setdefault(words_in_a_row, []).append(index)
    return sought


def _runs(words: list[str], length: int) -> set[Run]:
    return set(zip(*(words[start:] for start in range(length)), strict=False))


DECODED = 256
"""Texts that become words at a time."""


def find_contamination(texts: Texts, tokenizer: Any) -> dict[str, Any]:
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


def recorded_contamination(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the contamination that training recorded beside a checkpoint, if any."""
    path = checkpoint / TRAINING
    found = read_json(path).get("overlap") if path.is_file() else None
    return found if isinstance(found, dict) else None
