"""A hybrid: suffix decoding where the text repeats itself, a head elsewhere.

Looking up costs next to nothing and drafts far, but is seldom right in open text; a head is right more often, at a
cost per step. Each slot takes, in each step, the draft that has been worth more:

    the lookup (suffix decoding) drafts for every slot; its match has a length
    if lookups with matches of that length were right about more than `bar` tokens: that draft
    otherwise: the head's draft, which the head makes for those slots alone

The committed text shows how much of every lookup was right, taken or not. `bar` is the mean number of tokens that the
head gets accepted, less `LOOKUP_GAIN`, the saving of a step without the head.

Worked example: matches of four to seven tokens were right about 1.6 tokens, the head about 1.1. A match of five tokens
is taken (1.6 > 1.1 - 0.25), one of two tokens, right about 0.3, is not.

The head is any method whose drafts carry no probabilities, also one without weights. Like suffix decoding a hybrid
learns across requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from outrider import proposers as registry
from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.formats.token_ranking import check_draft_vocab
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session, SessionPlan
from outrider.proposers.lookup.slot_index import NO_FILES, SlotIndex, TextFiles
from outrider.proposers.settings import check_bounds, check_window
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["HybridConfig", "HybridProposer", "Worth"]

LOOKUP = "look-up"
LOOKUP_GAIN = 0.25
"""Tokens that a step without the head saves."""
PRIOR = (0.1, 0.4, 1.0, 2.0, 4.0)
"""Tokens that a lookup is taken to be right about before any was seen, by `bucket` of its match."""
HANDED_ON = frozenset({"checkpoint", "num_nodes", "draft_vocab", "window", "sinks"})
"""Settings of the head."""
PRIOR_WEIGHT, MEMORY = 4.0, 0.98
"""Lookups that the prior counts as, and how slowly what was seen is forgotten."""


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """Settings of the hybrid.

    drafter              the head's method: any that has a number of nodes
    checkpoint           weights of the head, as its method takes them; by default those shipped for the target
    num_nodes            tokens that the head drafts per step
    draft_vocab          as the head's method takes it
    window, sinks        as the head's method takes them
    lookup_nodes         the most tokens of a lookup
    max_depth            cap on match and lookup together
    max_cached_requests  earlier answers that are looked up, first in first out; 0 none, -1 all
    corpus               a file of `outrider corpus build`, looked up beside the request and earlier answers
    save                 corpus file that answers are merged into when the program ends; it may be the same file
    """

    drafter: str = registry.DEFAULT_HEAD
    checkpoint: str | None = None
    num_nodes: int = 3
    draft_vocab: int | None = None
    window: int | None = None
    sinks: int | None = None
    lookup_nodes: int = 6
    max_depth: int = 24
    max_cached_requests: int = 10_000
    corpus: str | None = None
    save: str | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        object.__setattr__(self, "drafter", registry.method_name(self.drafter))
        known = settings_of(self.drafter)
        if "num_nodes" not in known:
            raise ConfigError(
                f"drafter={self.drafter} cannot draft in a hybrid; name the method of a head, or a lookup"
            )
        if self.checkpoint and "checkpoint" not in known:
            raise ConfigError(f"drafter={self.drafter} takes no checkpoint; leave it out, or name the method of a head")
        if self.window is not None and "window" not in known:
            raise ConfigError(f"drafter={self.drafter} reads the whole text; leave window={self.window} out")
        check_window(self)
        check_bounds(self, num_nodes=(1, 256), lookup_nodes=(1, 256), max_depth=(2, 256))
        if self.max_cached_requests < -1:
            raise ConfigError(f"max_cached_requests={self.max_cached_requests} must be -1 (all), 0 (none) or more")


def settings_of(drafter: str) -> frozenset[str]:
    """Select the settings that a hybrid passes to its head; none for a method that cannot be one.

    Raises:
        ConfigError: if there is no such method.
    """
    cls = registry.proposer_class(drafter)
    if cls.scripted or cls.Config is HybridConfig:
        return frozenset()
    return HANDED_ON & {one.name for one in fields(cls.Config)}


@final
class HybridProposer(Proposer):
    """A head and a lookup."""

    Config = HybridConfig

    def __init__(self, head: Proposer, config: HybridConfig, files: TextFiles = NO_FILES) -> None:
        self.head = head
        self.config = config
        self.files = files

    @classmethod
    def load(cls, target: Target, config: HybridConfig) -> Self:
        name, settings = config.drafter, {key: getattr(config, key) for key in settings_of(config.drafter)}
        head = registry.configure(name, settings)
        head = registry.with_checkpoint(name, head, target, f"hybrid:drafter={name},checkpoint=DIR")
        files = TextFiles.of(config.corpus, config.save, target)
        return cls(registry.proposer_class(name).load(target, head), config, files)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        drafters = [name for name in registry.REGISTRY if settings_of(name)]
        drafter = drafters[seed % len(drafters)]
        head = registry.proposer_class(drafter).example(target, 6 * seed + 2)  # these do not sample
        config = HybridConfig(drafter=drafter, lookup_nodes=3 + seed % 5, max_cached_requests=seed % 3)
        return cls(head, config)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(
            max_nodes=max(self.head.spec.max_nodes, self.config.lookup_nodes),
            feature_layers=self.head.spec.feature_layers,
            learns=True,
            num_bytes=self.head.spec.num_bytes,
        )

    def open(self, plan: SessionPlan) -> Session:
        index = SlotIndex(self.config.max_depth, self.config.max_cached_requests, self.files)
        return HybridSession(self.head.open(plan), self.head.spec.max_nodes, self.config, index, plan.device)


class _Lookup(NamedTuple):
    """A lookup for one slot: the draft, the bucket of its match, and whether it was taken."""

    tokens: list[int]
    bucket: int
    taken: bool


@final
class HybridSession(Session):
    """The head's session, the tree of strings, and what both have been worth."""

    def __init__(
        self, head: Session, head_nodes: int, config: HybridConfig, strings: SlotIndex, device: torch.device
    ) -> None:
        self.head = head
        self.head_nodes = head_nodes
        self.config = config
        self.strings = strings
        self.device = device
        self.worth = Worth()
        self.lookups: dict[int, _Lookup] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.strings.open(slot, tokens)
        self.head.admit(slot, tokens, sampling, features_TF)

    def keep(self, slot: int) -> Kept | None:
        return self.head.keep(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        self.strings.open(slot, tokens)
        self.head.reuse(slot, tokens, sampling, features_TF, reused)

    def num_pending(self, slot: int) -> int:
        return self.head.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.head.catch_up(slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        limit_of = dict(zip(slots, limits, strict=True))
        self.lookups = {slot: self._look_up(slot, limit) for slot, limit in limit_of.items() if min(limit) > 0}
        trees = {slot: Tree.chain(found.tokens) for slot, found in self.lookups.items() if found.taken}
        drafting = [slot for slot in slots if slot not in trees]
        if drafting:
            draft = self.head.propose(drafting, [self._within(limit_of[slot]) for slot in drafting])
            if not trees:
                return draft
            assert draft.probs_BMV is None, "a head that samples cannot be mixed with lookups"
            trees |= dict(zip(drafting, draft.trees, strict=True))
        return Draft.of_trees([trees[slot] for slot in slots], self.device)

    def part(self, slot: int) -> str:
        found = self.lookups.get(slot)
        return LOOKUP if found is not None and found.taken else self.config.drafter

    def _within(self, limit: DraftLimit) -> DraftLimit:
        return DraftLimit(min(limit.num_nodes, self.head_nodes), limit.max_depth)

    def _look_up(self, slot: int, limit: DraftLimit) -> _Lookup:
        count = min(limit.num_nodes, limit.max_depth, self.config.lookup_nodes)
        found = self.strings.speculate(slot, count)
        where = bucket(found.match_length)
        tokens = found.tokens.tolist()
        return _Lookup(tokens, where, bool(tokens) and self.worth.prefers_lookup(where, len(tokens)))

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.strings.append(commit.slot, commit.tokens)
            found = self.lookups.pop(commit.slot, None)
            if found is None:
                continue
            if found.tokens:
                self.worth.saw_lookup(found.bucket, num_equal(found.tokens, commit.tokens))
            if not found.taken:
                self.worth.saw_head(len(commit.rows) - 1)
        self.head.observe(commits, features_BMF)

    def release(self, slot: int) -> None:
        self.strings.close(slot)
        self.head.release(slot)

    def reset(self) -> None:
        self.strings.clear()
        self.worth = Worth()
        self.head.reset()

    def close(self) -> None:
        self.strings.save()
        self.head.close()

    @property
    def num_bytes(self) -> int:
        return self.head.num_bytes + self.strings.num_bytes


@final
class Worth:
    """Tokens that were right: means that forget slowly, over the head's drafts, and over lookups by bucket.

    >>> worth = Worth()
    >>> for _ in range(50): worth.saw_head(1); worth.saw_lookup(1, 0)
    >>> worth.prefers_lookup(1, 8), worth.prefers_lookup(4, 8)
    (False, True)
    """

    def __init__(self) -> None:
        self._lookups = [(PRIOR_WEIGHT * right, PRIOR_WEIGHT) for right in PRIOR]
        self._head = (PRIOR_WEIGHT, PRIOR_WEIGHT)

    def prefers_lookup(self, bucket: int, num_tokens: int) -> bool:
        """Check whether a lookup with a match in this bucket is worth more than a draft of the head."""
        right, weight = self._lookups[bucket]
        head_right, head_weight = self._head
        return min(right / weight, num_tokens) > head_right / head_weight - LOOKUP_GAIN

    def saw_lookup(self, bucket: int, num_right: int) -> None:
        self._lookups[bucket] = _added(self._lookups[bucket], num_right)

    def saw_head(self, num_right: int) -> None:
        self._head = _added(self._head, num_right)


def bucket(match_length: int) -> int:
    """Return the bucket of a match: 0 to 1, 2 to 3, 4 to 7, 8 to 15, and 16 or more tokens.

    >>> [bucket(length) for length in (0, 1, 2, 5, 8, 40)]
    [0, 0, 1, 2, 3, 4]
    """
    return min(len(PRIOR) - 1, max(0, match_length.bit_length() - 1))


def num_equal(drafted: Sequence[int], written: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    pairs = enumerate(zip(drafted, written, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(drafted), len(written)))


def _added(mean: tuple[float, float], value: float) -> tuple[float, float]:
    total, weight = mean
    return MEMORY * total + value, MEMORY * weight + 1
