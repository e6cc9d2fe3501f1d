"""The target's features of training texts: read when they are needed, or once for all epochs and kept on disk.

A `FeatureReader` runs texts through `TargetSession.prefill`, the very path that reads prompts when the trained proposer
runs, so that training sees the numbers that decoding will show. `Live` reads each text when its turn comes;
`Stored` takes it from a `FeatureStore` (`feature_store.py`), which the same reader has filled. Both give the same bits
where a row's bits do not depend on its neighbours (`TargetSpec.batch_invariant`: the CPU in bf16 and fp32); on a GPU
they may differ by rounding.

    bytes on disk = tokens x feature layers x hidden size x 2 (bf16) or 4 (fp32)

Worked example: 20 million tokens, three feature layers of 3584 in bf16 take 20e6 x 3 x 3584 x 2 = 430 GB; one feature
layer takes 143 GB.

Shapes: T tokens of one text, F = feature layers * hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from outrider.data.texts import Example, Texts
from outrider.errors import ConfigError
from outrider.target import Target, TargetSession
from outrider.train.batch import Batch, collate
from outrider.train.feature_store import FeatureStore
from outrider.train.packed_reader import PackedReader

__all__ = ["FeatureReader", "Live", "Source", "Stored", "feature_dtype"]

SLOTS = {"cpu": 8, "cuda": 64}
"""Texts read at a time."""


def feature_dtype(target: Target) -> torch.dtype:
    """Return the dtype of kept features: bf16 for a target in 16 bits, else fp32."""
    return torch.bfloat16 if target.spec.dtype.itemsize == 2 else torch.float32


@final
class FeatureReader:
    """A reader of the feature states of texts, several at once.

    Args:
        feature_layers: see `outrider.target`; side by side in this order.
        max_tokens: the longest text that will be read.
        dtype: dtype of the result; by default `feature_dtype(target)`.

    Raises:
        ConfigError: if texts of that length do not fit the target.
    """

    def __init__(
        self, target: Target, feature_layers: tuple[int, ...], max_tokens: int, dtype: torch.dtype | None = None
    ) -> None:
        limit = target.spec.max_positions
        if max_tokens > limit:
            raise ConfigError(
                f"a row_length of {max_tokens} is longer than what {target.spec.name} reads; set it to {limit} or less"
            )
        self.target = target
        self.feature_layers = feature_layers
        self.dtype = dtype or feature_dtype(target)
        self.max_tokens = max_tokens
        self._session: TargetSession | None = None

    @cached_property
    def packed(self) -> PackedReader | None:
        """Reader of packed rows, where rows need not have the bits of decoding: our decoder on a GPU."""
        if self.target.spec.batch_invariant or self.target.native is None:
            return None
        return PackedReader(self.target.native, self.feature_layers, self.max_tokens, self.dtype)

    @property
    def num_slots(self) -> int:
        """Texts that are read at a time."""
        return SLOTS.get(self.target.spec.device.type, SLOTS["cpu"])

    @property
    def width(self) -> int:
        """F."""
        return len(self.feature_layers) * self.target.spec.hidden_size

    def read(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Return the features [T, F] of each text, on the target's device."""
        session = self._open()
        found: list[Tensor] = []
        for at in range(0, len(texts), self.num_slots):
            some = [text_T.tolist() for text_T in texts[at : at + self.num_slots]]
            slots = list(range(len(some)))
            with self.target.decoding_threads():
                read = session.prefill(slots, some)
            for features_TF in read:
                assert features_TF is not None, "a reader without feature layers has nothing to read"
                found.append(features_TF.to(self.dtype))
            for slot in slots:
                session.cache.reset(slot)
        return found

    def _open(self) -> TargetSession:
        """Open a session at the first text; a run on stored features may never need one."""
        if self._session is None:
            self._session = self.target.open(
                self.target.plan(self.num_slots, self.max_tokens, tail=1), self.feature_layers
            )
        return self._session


class Source(ABC):
    """Texts with the features that an objective asked for, cut to the length of a row."""

    @abstractmethod
    def examples(self, indices: Sequence[int]) -> list[Example]:
        """Return these texts, in this order."""

    def batch(self, rows: Sequence[Sequence[int]], row_length: int, device: torch.device) -> Batch:
        """Return rows of texts, packed, on the training device."""
        examples = iter(self.examples([index for row in rows for index in row]))
        return collate([[next(examples) for _ in row] for row in rows], row_length).to(device)


@final
class Live(Source):
    """Features are computed when they are asked for; without feature layers there are none."""

    def __init__(self, texts: Texts, reader: FeatureReader) -> None:
        self.texts = texts
        self.reader = reader

    def examples(self, indices: Sequence[int]) -> list[Example]:
        found = self._plain(indices)
        if not self.reader.feature_layers:
            return found
        features = self.reader.read([example.tokens_T for example in found])
        return [
            Example(example.tokens_T, example.learn_T, features_TF)
            for example, features_TF in zip(found, features, strict=True)
        ]

    def batch(self, rows: Sequence[Sequence[int]], row_length: int, device: torch.device) -> Batch:
        packed = self.reader.packed
        if packed is None:
            return super().batch(rows, row_length, device)
        batch = collate([self._plain(row) for row in rows], row_length, fill=True).to(device)
        return batch._replace(features_BLF=packed.read(batch)) if self.reader.feature_layers else batch

    def _plain(self, indices: Sequence[int]) -> list[Example]:
        return [cut(self.texts.example(index), self.reader.max_tokens) for index in indices]


@final
class Stored(Source):
    """Features come from disk."""

    def __init__(self, texts: Texts, store: FeatureStore, max_tokens: int) -> None:
        self.texts = texts
        self.store = store
        self.max_tokens = max_tokens

    def examples(self, indices: Sequence[int]) -> list[Example]:
        return [self._example(index) for index in indices]

    def _example(self, index: int) -> Example:
        example = cut(self.texts.example(index), self.max_tokens)
        return Example(example.tokens_T, example.learn_T, self.store.features(index, len(example.tokens_T)))


def cut(example: Example, length: int) -> Example:
    """Return the first `length` tokens."""
    return Example(example.tokens_T[:length], example.learn_T[:length])
