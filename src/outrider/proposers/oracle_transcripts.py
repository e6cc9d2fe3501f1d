"""Transcripts of the target: its own text, decoded plainly beforehand and kept.

Noise is a function of (seed, position), so under greedy decoding and under the coupled rule the continuation of a text
is a fact about the target and the sampling. `Transcripts` looks it up, or decodes it on a session of its own, so that
the caller's batch, cache and forward count are not touched. That session holds one more slot of cache; afterwards four
bytes a token are kept, for the last `NUM_KEPT` texts of a target. Engines in several threads share them.

Example: after `continuation([5, 9], greedy, 3)` gave [7, 7, 2], `continuation([5, 9, 7], greedy, 2)` is [7, 2] without
a forward.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from outrider.engine import Engine
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["Transcripts"]

NUM_KEPT: Final = 1024
Text = npt.NDArray[np.int32]


@final
class Transcripts:
    """Texts of one target with their samplings; the oldest are forgotten."""

    def __init__(self, num_kept: int = NUM_KEPT) -> None:
        self._texts: deque[tuple[SamplingParams, Text]] = deque(maxlen=num_kept)
        self.num_written = 0

    @classmethod
    def of(cls, target: Target) -> "Transcripts":
        """Return the target's transcripts, shared by all callers."""
        return _KNOWN.setdefault(target, cls())

    def continuation(self, target: Target, tokens: Sequence[int], sampling: SamplingParams, length: int) -> list[int]:
        """Return the target's next `length` tokens after `tokens`, ignoring EOS; fewer at the context limit."""
        sampling = SamplingParams() if sampling.greedy else sampling  # a greedy text has no seed
        length = min(length, target.spec.max_positions - len(tokens))
        if length < 1:
            return []
        known = self._find(np.asarray(tokens, dtype=np.int32), sampling, length)
        if known is None:
            known = self._write(target, list(tokens), sampling, length)
        return [int(token) for token in known[len(tokens) : len(tokens) + length]]

    def _find(self, tokens_T: Text, sampling: SamplingParams, length: int) -> Text | None:
        end = len(tokens_T) + length
        for their_sampling, text in tuple(self._texts):  # other threads append
            if len(text) >= end and their_sampling == sampling and np.array_equal(text[: len(tokens_T)], tokens_T):
                return text
        return None

    def _write(self, target: Target, tokens: list[int], sampling: SamplingParams, length: int) -> Text:
        engine = Engine(target, NoProposer(), max_len=len(tokens) + length, prefix_cache_bytes=0)
        answer = engine.generate([tokens], replace(sampling, ignore_eos=True, max_tokens=length))[0]
        text: Text = np.array([*tokens, *answer.tokens], dtype=np.int32)
        self._texts.append((sampling, text))
        self.num_written += 1
        return text


_KNOWN: WeakKeyDictionary[Target, Transcripts] = WeakKeyDictionary()
