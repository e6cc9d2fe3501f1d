"""The texts of training: anything with a length that gives an `Example` by number.

`shards.py` reads such texts from disk; a list in memory is `ListedTexts`.

Example: `ListedTexts([Example(tokens_T, learn_T)]).num_tokens(0)` is the length of the first text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor

from outrider.errors import ConfigError

__all__ = ["Corpus", "Data", "Example", "ListedTexts", "Texts", "count"]


@dataclass(frozen=True, eq=False)
class Example:
    """One text: token ids [T], which of them the target wrote [T], and the target's features [T, F] if captured."""

    tokens_T: Tensor
    learn_T: Tensor
    features_TF: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Statistics of the training texts, from which an objective is built.

    counts_V     occurrences of each token in what the target wrote
    num_tokens   tokens the target wrote
    """

    counts_V: Tensor
    num_tokens: int


class Texts(Protocol):
    """Numbered texts without features."""

    @property
    def identity(self) -> str:
        """Hash of the texts in their order. The feature cache and resuming rely on it."""

    def __len__(self) -> int: ...

    def example(self, index: int) -> Example:
        """Return text `index`, complete, its features None."""

    def num_tokens(self, index: int) -> int:
        """Return the length of a text in tokens, without reading it."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Texts to train on, and held-out texts to measure on. No prompt is in both."""

    train: Texts
    held_out: Texts


@final
@dataclass(frozen=True)
class ListedTexts:
    """Texts in memory."""

    examples: Sequence[Example]
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for example in self.examples:
            for tensor in (example.tokens_T.to(torch.int64), example.learn_T.to(torch.int64)):
                digest.update(tensor.numpy().tobytes())
        object.__setattr__(self, "identity", digest.hexdigest()[:16])

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, index: int) -> Example:
        return self.examples[index]

    def num_tokens(self, index: int) -> int:
        return len(self.examples[index].tokens_T)


TEXTS_COUNTED = 1024
"""Texts counted at a time: a count touches the whole vocabulary."""


def count(texts: Texts, vocab_size: int) -> Corpus:
    """Count how often the target wrote each token; read all texts once.

    Raises:
        ConfigError: if there is nothing to learn, or a token is outside the target's vocabulary.
    """
    counts_V, pending = torch.zeros(vocab_size, dtype=torch.int64), []
    for index in range(len(texts)):
        example = texts.example(index)
        if len(example.tokens_T):
            low, high = int(example.tokens_T.min()), int(example.tokens_T.max())
            if low < 0 or high >= vocab_size:
                raise ConfigError(
                    f"a text holds token {low if low < 0 else high} but the target knows {vocab_size}; "
                    "synthesize the data with this target"
                )
        pending.append(example.tokens_T[example.learn_T].long())
        if len(pending) == TEXTS_COUNTED or index == len(texts) - 1:
            counts_V += torch.bincount(torch.cat(pending), minlength=vocab_size)
            pending.clear()
    num_tokens = int(counts_V.sum())
    if num_tokens == 0:
        raise ConfigError("the data holds no token that the target wrote; synthesize more answers")
    return Corpus(counts_V=counts_V, num_tokens=num_tokens)
