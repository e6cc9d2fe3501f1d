"""The settings of synthesis; `outrider synthesize` takes them as options.

Example: `SynthesisConfig(num_prompts=1000, turns=2)` writes 1000 conversations of at most two turns.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.errors import check_setting

__all__ = ["SELF", "SynthesisConfig"]

SELF = "magpie"
"""The source of prompts that the target writes."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Settings of a data set."""

    source: str = SELF
    """Source of the prompts: magpie (the target writes them too), a JSONL file, or hub:NAME:SPLIT:FIELD."""
    num_prompts: int | None = None
    """Conversations to end with; by default the whole file, or 1000 where the target writes the prompts."""
    num_tokens: int | None = None
    """Stop when the target has written about this many tokens."""
    turns: int | None = None
    """Longest conversation in turns; by default all of a file's, or 1 where the target writes the prompts."""
    system: str | None = None
    """System message; by default the chat template decides, as in the benchmark."""
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    """Temperatures of the answers, in rotation; 0 is greedy."""
    top_p: float = 1.0
    """Top-p of the answers; 1 keeps all tokens."""
    prompt_temperatures: tuple[float, ...] = (0.6, 0.8, 0.9)
    """Temperatures of the prompts that the target writes, drawn at random."""
    prompt_top_p: float = 0.9
    """Top-p of the prompts that the target writes."""
    seed_phrases: Path | None = None
    """File of first words of prompts that the target writes, one a line, for example for another language."""
    max_turn_tokens: int = 384
    """Longest prompt that the target may write, in tokens."""
    max_prompt_tokens: int = 1024
    """Longest conversation that is answered, in tokens, chat template included."""
    max_new_tokens: int = 512
    """Longest answer, in tokens; one that is cut here is kept, without an end-of-text token."""
    shard_size: int = 512
    """Conversations of a shard; an interruption costs at most one shard."""
    heldout_fraction: float = 0.05
    """Part of the prompts that training leaves out, chosen by their hash; recorded in the data set."""
    seed: int = 0
    """Seed of all sampling."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_tokens", "turns", "max_new_tokens", "shard_size"):
            value = getattr(self, name)
            check_setting(self, name, value is None or value >= 1, "at least 1")
        for name in ("max_turn_tokens", "max_prompt_tokens"):
            check_setting(self, name, getattr(self, name) >= 8, "at least 8")
        for name in ("temperatures", "prompt_temperatures"):
            values = getattr(self, name)
            fits = bool(values) and all(value == 0 or 0.01 <= value <= 100 for value in values)
            check_setting(self, name, fits, "0 or between 0.01 and 100, at least one of them")
        for name in ("top_p", "prompt_top_p"):
            check_setting(self, name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        check_setting(self, "heldout_fraction", 0 <= self.heldout_fraction < 1, "at least 0 and below 1")
        check_setting(self, "shard_size", self.shard_size <= 65536, "at most 65536")
        check_setting(self, "seed", 0 <= self.seed < 2**62, "at least 0 and below 2^62")

    @property
    def max_len(self) -> int:
        """Longest text, in tokens."""
        return self.max_prompt_tokens + self.max_new_tokens

    def kept(self) -> dict[str, Any]:
        """Return the settings that a later call must share to resume: all but how much is wanted."""
        kept = dataclasses.asdict(self)
        phrases = kept.pop("seed_phrases")
        del kept["num_prompts"], kept["num_tokens"]
        return {**kept, "openings": None if phrases is None else str(phrases)}
