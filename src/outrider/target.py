"""The target: the model whose text is wanted. A proposer changes when its tokens come, never which.

`Target` is weights and a tokenizer, and immutable. `Target.open` allocates a `TargetSession`: the cache of a running
batch and the two ways to advance it,

    prefill   reads prompts, all tokens but the last, in chunks and for many slots at once, without logits
    forward   reads the root and the draft of every slot in one pass and returns logits at every row

so that after prefill each step is exactly one `forward`. The last prompt token is simply the first root.

A *feature layer* asks for a hidden state: feature layer k is Hugging Face's `hidden_states[k]`, the residual stream
before layer k, feature layer `num_layers` is the state after the final norm, which the output head reads, and feature
layer `num_layers + 1` is the stream that enters that norm.

Shapes: B slots of the call, M rows, V vocabulary, F = feature layers * hidden_size, T prompt tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from outrider.cache import Cache, CachePlan
from outrider.draft import Draft
from outrider.models.weight_kinds import KvDtype

if TYPE_CHECKING:
    from outrider.models.decoder import Decoder

__all__ = ["Forward", "Logits", "Mixture", "SharedWeights", "Target", "TargetSession", "TargetSpec", "as_tensor"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The experts of all layers together: a row reads `num_chosen` of the `num_experts` of a layer.

    `size` is that of all experts, in bytes or in numbers.
    """

    size: float
    num_experts: int
    num_chosen: int

    def read(self, num_rows: float) -> float:
        """Return the size of the experts that a forward reads: each once, for all rows that chose it.

        Rows are taken to choose apart from each other: of N experts, m rows with K each leave out N (1 - K/N)^m. Rows
        of one text choose alike, and read fewer.

        >>> Mixture(size=128, num_experts=128, num_chosen=8).read(4)
        29.123046875
        """
        left_out: float = (1 - self.num_chosen / self.num_experts) ** num_rows
        return self.size * (1 - left_out)


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """Facts about a target that the engine and the proposers need.

    name              the name that the user gave
    source            directory of its files, or its GGUF file; None for a model made in memory
    max_positions     the longest text, prompt included, in tokens
    eos_ids           tokens that end a text
    dtype             dtype of the features, of the weights where they are plain numbers, and of the cache
    kv_dtype          "int8" if the cache holds codes in place of numbers of that dtype, else "auto"
    weights           kind of the weights: "bfloat16", "int8", or the types of a quantised file, as "Q4_1, Q8_0"
    weight_bytes      memory of the weights
    mixture           the experts among them, in bytes; None for a model without
    batch_invariant   a row's bits do not depend on how many rows or slots are in the call
    trusts_code       permission to run Python code that comes with the checkpoint and its draft models
    drafts            "trees", or "chains" where a draft with branches cannot be read
    keeps_prefixes    a text can go on from any of its beginnings; not where a layer keeps a state of all of it
    """

    name: str
    source: str | None
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_positions: int
    eos_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int
    batch_invariant: bool
    weights: str
    trusts_code: bool = False
    drafts: Literal["trees", "chains"] = "trees"
    keeps_prefixes: bool = True
    mixture: Mixture | None = None
    kv_dtype: KvDtype = "auto"

    @property
    def numbers(self) -> str:
        """The kinds of the weights and the dtypes, as "Q4_1, Q8_0, bfloat16, keys and values int8"."""
        return f"{self.weights}, {str(self.dtype).removeprefix('torch.')}{self.cached}"

    @property
    def cached(self) -> str:
        """The dtype of keys and values where it is one of their own, to end a list with: ", keys and values int8"."""
        return "" if self.kv_dtype == "auto" else f", keys and values {self.kv_dtype}"

    def bytes_read(self, num_rows: float) -> float:
        """Return the bytes of weights that a forward of so many rows reads."""
        mixture = self.mixture
        return self.weight_bytes - (0 if mixture is None else mixture.size - mixture.read(num_rows))


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """Input embedding and output head [V, E] in the target's dtype, for drafters that share them or start from them.

    The head reads states after the final norm; where the model ties its embeddings, both are one tensor.
    """

    embedding_VE: Tensor
    head_VE: Tensor


Logits = Tensor | list[Tensor]
"""Logits of every row of a batch: one tensor [B, M, V], or without padding a list with one [M, V] per slot. Either way
`logits[slot][row]` is a row."""


def as_tensor(logits_BMV: Logits) -> Tensor:
    """Return logits as one tensor: of slots with equally many rows, or of a device that pads."""
    assert isinstance(logits_BMV, Tensor), "these slots have different numbers of rows"
    return logits_BMV


@dataclass(frozen=True, eq=False)
class Forward:
    """The result of one target forward.

    logits_BMV     raw logits at every row, valid until the session's next forward
    features_BMF   states at the feature layers, side by side; None without feature layers
    """

    logits_BMV: Logits
    features_BMF: Tensor | None


class TargetSession(ABC):
    """The cache of a running batch and the passes that fill it."""

    @property
    @abstractmethod
    def cache(self) -> Cache:
        """The texts that the slots hold."""

    @abstractmethod
    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """Read `prompts[b]`, a prompt without its root or a piece of it, behind what slot `slots[b]` holds.

        Returns:
            Features [T, F] of these tokens, or None without feature layers.
        """

    @abstractmethod
    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        """Read the root and the draft of each slot. Nothing is committed."""

    @abstractmethod
    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        """Read as `forward` does, but return states after the final norm [B, M, E], for `Target.project`.

        Draft models use this: they need logits of a few rows and tokens only.
        """


class Target(ABC):
    """Weights and tokenizer of one model."""

    @property
    @abstractmethod
    def spec(self) -> TargetSpec:
        """Facts about the model."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None for a model without one."""

    @property
    def native(self) -> "Decoder | None":
        """The native decoder that computes this target, for drafters that share its packed weights; None elsewhere."""
        return None

    def checkpoint(self) -> Path | None:
        """Return the Hugging Face directory of the model's plain weights, or None for a model made in memory.

        A target that runs as its GGUF file stores it makes the directory at the first call and keeps it in the cache.

        Raises:
            CheckpointError: if the file cannot be converted.
        """
        return None if self.spec.source is None else Path(self.spec.source)

    @abstractmethod
    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        """Return the plan of the cache that `open` allocates.

        Args:
            capacity: committed positions of a slot.
            tail: the most rows of a step.
        """

    @abstractmethod
    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> TargetSession:
        """Allocate the cache for a running batch."""

    @abstractmethod
    def decoding_threads(self) -> AbstractContextManager[None]:
        """Return a context manager for decoding: it limits PyTorch's threads where our kernels use their own pool."""

    @abstractmethod
    def project(self, states_RE: Tensor) -> Tensor:
        """Apply the output head: return raw logits [R, V] of states after the final norm."""

    @abstractmethod
    def shared_weights(self) -> SharedWeights:
        """Return the embedding and the output head as plain tensors."""
