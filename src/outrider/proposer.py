"""The interface of every drafting method.

A `Proposer` is weights and settings, and immutable. `Proposer.open` starts a `Session`: the state of the running batch.
The engine calls a session in this order:

    admit(slot, ...)      a request took the slot; its prompt has been read by the target
    propose(slots, ...)   draft: a tree of nodes under each slot's root
    observe(commits, ...) the committed tokens, and the target's features of them
    release(slot)         the request ended

Where the target reuses what it knows of an earlier text with the same beginning, `reuse` takes the place of `admit`,
and `keep` comes before `release`; both have defaults.

A draft may be wrong; it can never make the output wrong. A session must not assume that its draft was verified: the
engine may cut it, end the request, or reset the session. All that it knows about a slot comes from `admit` and
`observe`, and committed tokens may be ones that it did not draft.

To add a method, write one file with a final `Proposer` and a final `Session`, name it in `outrider.proposers.REGISTRY`
or in the entry-point group `outrider.proposers` of your package, and run `outrider.testing.check_contract` on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from outrider.cache import CachedText
from outrider.draft import Draft
from outrider.noise import Stream
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = [
    "NOTHING",
    "Commit",
    "DraftLimit",
    "Kept",
    "NoSettings",
    "Proposer",
    "ProposerSpec",
    "Reused",
    "Session",
    "SessionPlan",
]


class DraftLimit(NamedTuple):
    """The limit of one slot's draft in this step: at most `num_nodes` nodes, none deeper than `max_depth`."""

    num_nodes: int
    max_depth: int


NOTHING = DraftLimit(0, 0)
"""The limit of a slot that may not draft."""


class Commit(NamedTuple):
    """The result of a step for one slot.

    The accepted rows need not be of the session's own draft: a form may have forced them (`outrider.processors`).

    slot      the slot
    rows      the committed rows: 0 (the root), then the accepted path
    tokens    the accepted tokens and, last, the bonus, which is the next root; for a request that ended, only the
              emitted ones, which may stop inside the path
    place     the slot's row in the batch of this step: its features are `features_BMF[place]`
    """

    slot: int
    rows: list[int]
    tokens: list[int]
    place: int


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """The size and setting of a session.

    max_slots      slots of the batch
    max_positions  the longest text in tokens
    noise          the stream that a sampling drafter draws from: the target's own under the coupled rule (equal noise
                   makes agreement likelier), an independent one under the ratio tests (which need it). With
                   `Stream.DRAFT`, number the draw by the node's depth: the block rule judges every drafted token, so
                   a later step must not draw the same position with the same noise
    device         the device of the drafts
    """

    max_slots: int
    max_positions: int
    noise: Stream
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class ProposerSpec:
    """Facts about a proposer that the engine needs.

    max_nodes        the most nodes per slot that it drafts
    feature_layers   the target's hidden states that it reads; see `outrider.target`
    learns           True if earlier requests change its later drafts (never the text)
    num_bytes        memory of its weights
    """

    max_nodes: int
    feature_layers: tuple[int, ...] = ()
    learns: bool = False
    num_bytes: int = 0


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """Copies of what a session knows of a text, for requests that begin with the same tokens; nothing changes them.

    num_positions  the text's first positions that a request may begin with: it needs no features of them
    num_again      positions at the end of what a new request shares that the session reads again
    caches         copies of the session's own caches
    features_TF    features of positions that the session had not read
    """

    num_positions: int
    num_again: int = 0
    caches: tuple[CachedText, ...] = ()
    features_TF: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the copies, in bytes."""
        return sum(text.num_bytes for text in self.caches) + (
            0 if self.features_TF is None else self.features_TF.nbytes
        )

    def reusable(self, length: int) -> int:
        """Return how many of `length` shared positions a request may begin with."""
        return max(0, min(length - self.num_again, self.num_positions))


class Reused(NamedTuple):
    """The known beginning of a request: `length` positions of an earlier text, which the token behind them shares too.

    kept      the copies that `Session.keep` returned for that text, or None
    length    positions whose keys and values the target took over; it read the rest
    """

    kept: Kept | None
    length: int


class Session(ABC):
    """The state of one running batch, by slot.

    Abstract is what every method must decide; the rest has the default of a method that keeps nothing of its own.
    """

    @abstractmethod
    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        """Start a request in `slot`.

        Args:
            tokens: the prompt; its last token is the first root.
            sampling: the request's settings, for drafters that sample.
            features_TF: the target's feature states for all prompt tokens but the last, or None without feature layers.
        """

    def keep(self, slot: int) -> Kept | None:
        """Copy what this session knows of the text in `slot`, before `release`.

        None keeps nothing. Then a session with feature layers gets the features of whole prompts, which the target
        therefore reads whole; one without feature layers reads a prompt itself, as after `admit`.
        """
        return None

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        """Start a request, as `admit` does, with a beginning that is known from an earlier text.

        Args:
            features_TF: the target's feature states from position `reused.length` on, at least one; None without
                feature layers. With feature layers, `reused.kept` is given and lets a request begin there.
        """
        self.admit(slot, tokens, sampling, features_TF)

    def num_pending(self, slot: int) -> int:
        """Return how many committed tokens a draft for this slot must read first; 0 without a cache of its own."""
        return 0

    def catch_up(self, slots: Sequence[int]) -> None:  # noqa: B027 (a default, not an abstract method)
        """Read the pending tokens of these slots, but for a few that the next draft reads anyway."""

    @abstractmethod
    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        """Draft for these slots: return one entry per slot, in this order, each within its limit; it may be empty."""

    def part(self, slot: int) -> str:
        """Return the part of the method that made the slot's last draft, for traces; empty for a method of one part.

        It is asked between `propose` and `observe`.
        """
        return ""

    @abstractmethod
    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        """Take in the result of a step, for the slots whose request continues or has just ended."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Free `slot`, whose request ended or was cancelled."""

    def reset(self) -> None:  # noqa: B027 (a default, not an abstract method)
        """Forget what was learnt from finished requests, while no slot is in use. A method that learns overrides it."""

    def close(self) -> None:  # noqa: B027 (a default, not an abstract method)
        """Write what is to outlive the session; it may be called again, and the session stays usable."""

    @property
    def num_bytes(self) -> int:
        """Memory that this session holds, in bytes."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The `Config` of a method without settings."""


class Proposer(ABC):
    """One method with its weights and settings.

    A method must say its `spec` and `open` a session. The other defaults are those of a method without weights, which
    is made from its settings alone.
    """

    Config: ClassVar[type[Any]] = NoSettings
    """A frozen, keyword-only dataclass: the settings that a user may give by name."""

    shipped: ClassVar[str | None] = None
    """The kind of this method's weights among those that ship with Outrider, or None if none ship.

    The `Config` of such a method has a field `checkpoint`; None selects the shipped head of the target.
    """

    scripted: ClassVar[bool] = False
    """True for an instrument that knows the target's text beforehand; its results are marked."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def load(cls, target: Target, config: Any) -> Self:
        """Build the proposer for a target from its settings.

        Raises:
            CheckpointError, ConfigError: if it does not fit the target.
        """
        return cls(config)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        """Return a small instance for the contract tests, with settings or weights drawn from `seed`."""
        return cls.load(target, cls.Config())

    @property
    @abstractmethod
    def spec(self) -> ProposerSpec:
        """Facts about this proposer that the engine needs."""

    @abstractmethod
    def open(self, plan: SessionPlan) -> Session:
        """Start with an empty batch."""
