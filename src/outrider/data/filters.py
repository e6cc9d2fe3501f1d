"""Filters of prompts: rules that hold in every language.

    length        fewer than 3 tokens or more than allowed
    unprintable   control characters, unassigned ones, or invalid bytes
    not text      fewer than 4 letters or digits, or less than 2 in 5 characters
    repetitive    less than 3 in 5 of its runs of 3 tokens are distinct (24 tokens and more)
    duplicate     the words of an earlier prompt, whatever the case, spacing and punctuation
    near duplicate  most of its runs of 5 characters are those of an earlier prompt
    overlap       a run of 13 words of a prompt of the benchmark (`outrider.data.contamination`)

Near duplicates are found with MinHash (Broder 1997): 32 hash functions each keep the smallest value of a text's runs,
and two texts agree in one of these with probability J, the share of runs in common. The values are compared in 8 bands
of 4; one equal band counts. So the probability is 1 - (1 - J^4)^8: 0.06 at J = 0.3, 0.40 at 0.5, 0.99 at 0.8.

A user's prompt is checked for length, duplicates and overlap only; what the target wrote is checked for everything.

Example: `PromptFilter(max_tokens=256, evaluation={}).fault("Why?", [12])` is "length".
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import final

import numpy as np

from outrider.data.contamination import Sought
from outrider.data.shards import prompt_hash
from outrider.data.workloads import CATEGORIES, load_category

__all__ = ["PromptFilter", "benchmark_prompts"]

MIN_TOKENS = 3
LONG_ENOUGH_TO_REPEAT, RUN, DISTINCT = 24, 3, 0.6
MIN_LETTERS, LETTERS = 4, 0.4
SHINGLE, BANDS, ROWS = 5, 8, 4
NO_CHARACTER = {"Cc", "Cs", "Co", "Cn"}


@cache
def benchmark_prompts() -> Mapping[str, Sought]:
    """Return every user message of the benchmark by category, prepared for the search."""
    return {name: Sought([turn for one in load_category(name) for turn in one.turns]) for name in CATEGORIES}


@final
class PromptFilter:
    """Judges prompts against rules, against the prompts kept before, and against the benchmark's.

    Args:
        max_tokens: the longest prompt.
        evaluation: prompts that must not be trained on, by category.
    """

    def __init__(self, *, max_tokens: int, evaluation: Mapping[str, Sought]) -> None:
        self.max_tokens = max_tokens
        self._sought = evaluation
        self._hashes: set[int] = set()
        self._bands: set[tuple[int, bytes]] = set()

    def keep(self, prompt: str) -> None:
        """Remember a prompt: later ones must differ from it."""
        self._hashes.add(prompt_hash(prompt))
        self._bands.update(_bands(prompt))

    def forget(self, prompt: str) -> None:
        """Take a kept prompt back: nobody answered it. (No other kept prompt of the target shares a band with it.)"""
        self._hashes.discard(prompt_hash(prompt))
        self._bands -= _bands(prompt)

    def fault(self, prompt: str, tokens: Sequence[int]) -> str | None:
        """Return why a prompt that the target wrote is left out, or None if it is good."""
        return (
            self.wrong_form(prompt, tokens)
            or self.seen(prompt)
            or ("near duplicate" if self._bands & _bands(prompt) else None)
            or self.overlaps(prompt)
        )

    def wrong_form(self, prompt: str, tokens: Sequence[int]) -> str | None:
        """Return what is wrong with the text by itself, or None."""
        if not MIN_TOKENS <= len(tokens) <= self.max_tokens:
            return "length"
        if not is_printable(prompt):
            return "unprintable"
        if not has_letters(prompt):
            return "not text"
        return "repetitive" if is_repetitive(tokens) else None

    def seen(self, prompt: str) -> str | None:
        """Return whether an equal prompt was kept."""
        return "duplicate" if prompt_hash(prompt) in self._hashes else None

    def overlaps(self, text: str) -> str | None:
        """Return the category of the benchmark that the text overlaps with, or None."""
        found = (name for name, sought in self._sought.items() if sought.indices_in(text))
        return next((f"overlap with {name}" for name in found), None)


def is_printable(text: str) -> bool:
    """
    >>> is_printable("two lines\\n"), is_printable("\\x00"), is_printable("broken \\ufffd")
    (True, False, False)
    """
    return "\ufffd" not in text and not any(
        unicodedata.category(character) in NO_CHARACTER for character in text if character not in "\n\t\r"
    )


def has_letters(text: str) -> bool:
    """
    >>> has_letters("Why not?"), has_letters("今天天气怎么样"), has_letters("--- ??? ---")
    (True, True, False)
    """
    solid = [character for character in text if not character.isspace()]
    num_letters = sum(unicodedata.category(character)[0] in "LMN" for character in solid)
    return num_letters >= MIN_LETTERS and num_letters >= LETTERS * len(solid)


def is_repetitive(tokens: Sequence[int]) -> bool:
    """
    >>> is_repetitive([1, 2, 3, 4] * 8), is_repetitive(range(32))
    (True, False)
    """
    runs = list(zip(*(tokens[start:] for start in range(RUN)), strict=False))
    return len(tokens) >= LONG_ENOUGH_TO_REPEAT and len(set(runs)) < DISTINCT * len(runs)


def _bands(text: str) -> set[tuple[int, bytes]]:
    """Return the MinHash of a text in bands: (number, 8 bytes)."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    shingles = {plain[start : start + SHINGLE] for start in range(max(1, len(plain) - SHINGLE + 1))}
    digests = (hashlib.blake2b(shingle.encode("utf-8", "replace"), digest_size=8).digest() for shingle in shingles)
    words_S = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint64)
    # modulo 2^64: unsigned integers of NumPy wrap
    smallest = (words_S[:, None] * MULTIPLIERS + ADDENDS).min(axis=0).reshape(BANDS, ROWS)
    return {(band, hashlib.blake2b(rows.tobytes(), digest_size=8).digest()) for band, rows in enumerate(smallest)}


def _constants() -> tuple["np.ndarray[tuple[int], np.dtype[np.uint64]]", "np.ndarray[tuple[int], np.dtype[np.uint64]]"]:
    """Return odd multipliers and addends, the same in every process and version."""
    drawn = b"".join(hashlib.sha256(f"minhash {number}".encode()).digest()[:16] for number in range(BANDS * ROWS))
    words = np.frombuffer(drawn, dtype=np.uint64)
    return words[::2] | np.uint64(1), words[1::2].copy()


MULTIPLIERS, ADDENDS = _constants()
