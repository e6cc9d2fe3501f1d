"""The memory plan of an engine, checked before anything is allocated.

    weights of target and proposer + (capacity + tail + 1) positions x bytes per position x slots + kept prefixes

The tail has room for the root, and for `num_nodes` or eight forced tokens, whichever is more. A batch that does not fit
is refused with the largest one that would.
"""

import ctypes
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import torch

from outrider.cache import CachePlan
from outrider.errors import CapacityError, ConfigError
from outrider.loop.free_memory import free_bytes
from outrider.proposer import Proposer
from outrider.records.display import shown
from outrider.records.values import whole
from outrider.target import Target, TargetSpec

__all__ = ["MemoryPlan", "check_fits", "give_back"]

MOST_SLOTS = 2**20
MOST_KEPT = 2**30
"""Bytes of kept prefixes by default, at most."""
LEAST_FORCED = 8
"""Tokens of an answer's form that a step can draft at least, however few nodes the proposer has."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The bytes of each part. All engines of a target share its weights; cache and prefixes are this engine's own."""

    target_weight_bytes: int
    proposer_weight_bytes: int
    cache: CachePlan
    num_nodes: int
    logits_bytes: int
    prefix_bytes: int = 0

    @classmethod
    def of(
        cls,
        target: Target,
        proposer: Proposer,
        max_batch: int,
        max_len: int | None,
        num_nodes: int | None,
        prefix_bytes: int | None = 0,
    ) -> Self:
        """Plan an engine. With None, `prefix_bytes` is what the slots take, as far as half of the free memory allows.

        Raises:
            ConfigError: if a limit is out of range, or no whole number.
        """
        spec = target.spec
        max_batch = whole("max_batch", max_batch, ConfigError)
        capacity = spec.max_positions if max_len is None else whole("max_len", max_len, ConfigError)
        nodes = proposer.spec.max_nodes if num_nodes is None else whole("num_nodes", num_nodes, ConfigError)
        if not 1 <= max_batch <= MOST_SLOTS:
            raise ConfigError(f"max_batch={shown(max_batch)} must be at least 1 and at most {MOST_SLOTS}")
        if not 2 <= capacity <= spec.max_positions:
            raise ConfigError(
                f"max_len={shown(capacity)} must be between 2 and {spec.max_positions}, the target's limit"
            )
        if not 0 <= nodes <= 1024:
            raise ConfigError(f"num_nodes={shown(nodes)} must be between 0 and 1024")
        rows = max(nodes, LEAST_FORCED) + 1
        cache = target.plan(max_batch, capacity, tail=rows)
        plan = cls(
            target_weight_bytes=spec.weight_bytes,
            proposer_weight_bytes=proposer.spec.num_bytes,
            cache=cache,
            num_nodes=nodes,
            logits_bytes=max_batch * rows * spec.vocab_size * 4,
        )
        return replace(plan, prefix_bytes=plan._kept_bytes(prefix_bytes, spec))

    def _kept_bytes(self, wanted: int | None, spec: TargetSpec) -> int:
        """Return the bytes for kept prefixes; by default none where a row's bits depend on what is read with it."""
        if wanted is not None:
            if (num_bytes := whole("prefix_cache_bytes", wanted, ConfigError)) < 0:
                raise ConfigError(f"prefix_cache_bytes={shown(num_bytes)} must be at least 0; 0 keeps nothing")
            if num_bytes and not spec.keeps_prefixes:
                raise ConfigError(
                    f"prefix_cache_bytes={num_bytes} keeps nothing: {spec.name} has a state of its whole text, from"
                    " which no beginning can be taken; use 0"
                )
            return num_bytes
        spare = free_bytes(spec.device) - self.new_bytes
        wants = spec.batch_invariant and spec.keeps_prefixes
        return min(self.cache.num_bytes, MOST_KEPT, max(0, spare // 2)) if wants else 0

    @property
    def remedy(self) -> str:
        """Settings to reduce where memory ends in spite of the plan."""
        cache = self.cache
        slots, capacity = max(1, cache.num_slots // 2), max(2, cache.capacity // 2)
        kept = "prefix_cache_bytes=0, " if self.prefix_bytes else ""
        return f"use {kept}max_batch={slots} or max_len={capacity}"

    @property
    def num_forced(self) -> int:
        """The most tokens of an answer's form that a step drafts."""
        return max(self.num_nodes, LEAST_FORCED)

    @property
    def new_bytes(self) -> int:
        """Bytes that opening the engine allocates, those of a step's outputs, and the most of kept prefixes."""
        return self.cache.num_bytes + self.logits_bytes + self.prefix_bytes

    def __str__(self) -> str:
        cache = self.cache
        return (
            f"target weights {_size(self.target_weight_bytes)}, proposer weights {_size(self.proposer_weight_bytes)}, "
            f"cache {_size(cache.num_bytes)} ({cache.num_slots} slots x {cache.stored_positions} positions x "
            f"{cache.bytes_per_token} B), step outputs {_size(self.logits_bytes)}"
            + (f", kept prefixes up to {_size(self.prefix_bytes)}" if self.prefix_bytes else "")
        )


def check_fits(plan: MemoryPlan, device: torch.device) -> None:
    """Refuse a plan that does not fit in the free memory of the device.

    Raises:
        CapacityError: naming what would fit.
    """
    free = free_bytes(device)
    if plan.new_bytes <= free:
        return
    cache, prefix_bytes = plan.cache, plan.prefix_bytes
    asked = f"max_batch={cache.num_slots} with max_len={cache.capacity}"
    if (left := free - plan.new_bytes + prefix_bytes) >= 0:
        raise CapacityError(
            f"prefix_cache_bytes={prefix_bytes} beside {asked.replace(' with ', ' and ')} needs "
            f"{_size(plan.new_bytes)} and {_size(free)} are free; prefix_cache_bytes={left} would fit"
        )
    raise CapacityError(f"{asked} needs {_size(plan.new_bytes)} and {_size(free)} are free; {_remedy(plan, free)}")


def _remedy(plan: MemoryPlan, free: int) -> str:
    """Return the settings that would fit in this memory, without kept prefixes."""
    cache = plan.cache
    slots = free // ((plan.new_bytes - plan.prefix_bytes) // cache.num_slots)
    longest = _longest(plan, cache.num_slots, free)
    fits = [f"max_batch={slots}"] * (slots >= 1) + [f"max_len={longest}"] * (longest >= 2)
    if not fits and (longest := _longest(plan, 1, free)) >= 2:
        fits = [f"max_batch=1 with max_len={longest}"]
    if not fits:
        return "no setting fits beside the weights; use a smaller target, or weights of fewer bits (weights='int4')"
    return f"{' or '.join(fits)} would fit" + (" with prefix_cache_bytes=0" if plan.prefix_bytes else "")


def _longest(plan: MemoryPlan, num_slots: int, free: int) -> int:
    """Return the largest max_len at which so many slots fit; below 2 where none does."""
    logits_bytes = plan.logits_bytes // plan.cache.num_slots * num_slots
    low, high = 1, plan.cache.capacity
    while low < high:
        middle = (low + high + 1) // 2
        fits = replace(plan.cache, num_slots=num_slots, capacity=middle).num_bytes + logits_bytes <= free
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def give_back() -> None:
    """Return freed memory to the system. Loading leaves holes as large as some weights, which glibc would keep."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
