"""The units of a run and their order.

    for each batch size            engines of one batch size are open at a time
      for each repeat              so that a run that is cut short has measured every cell
        for each temperature and category    a *cell*: methods that learn forget before it
          for each group of prompts          as many conversations as the batch has slots, and those that queue
            for each contender               A B C, then C B A: drift falls on all alike

Neighbouring groups, and repeats of one group, run in opposite orders.

Example: three prompts at batch 2 are rounded up to four, two groups; where a category has three only, they are one
group of three, and the third conversation takes the first free slot. At batch 4 it takes no part: it would be measured
at batch 3 under another name.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from outrider.bench.config import BenchConfig
from outrider.data.workloads import Conversation

__all__ = ["Cell", "Group", "cells_of", "groups_of", "running_order"]

Group = tuple[Conversation, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The groups of one category at one batch size, temperature and repeat.

    teaching   groups that are not measured: what warm methods have read before
    first      number of groups of the repeat that come before; with `repeat`, it decides the order of the contenders
    """

    batch: int
    repeat: int
    temperature: float
    category: str
    groups: tuple[Group, ...]
    teaching: tuple[Group, ...]
    first: int


def cells_of(
    config: BenchConfig, workload: Mapping[str, Sequence[Conversation]], whole: Collection[str] = ()
) -> Iterator[Cell]:
    """Yield every cell of a run, in order; a category of fewer prompts than the batch has slots has none.

    Args:
        whole: categories of which all prompts are taken.
    """
    for batch in config.batches:
        for repeat in range(config.repeats):
            first = 0
            for temperature in config.temperatures:
                for category, conversations in workload.items():
                    if len(conversations) < batch:
                        continue
                    size = batch + ceil(config.queue * batch)
                    wanted = len(conversations) if category in whole else config.num_prompts
                    count = _rounded_up(wanted, size)
                    groups = groups_of(conversations[:count], size)
                    yield Cell(
                        batch=batch,
                        repeat=repeat,
                        temperature=temperature,
                        category=category,
                        groups=groups,
                        teaching=groups_of(conversations[count : 2 * count], size),
                        first=first,
                    )
                    first += len(groups)


def groups_of(conversations: Sequence[Conversation], size: int) -> tuple[Group, ...]:
    """Return groups of `size` conversations; what is left over joins the last one."""
    starts = list(range(0, len(conversations) - size + 1, size)) or [0]
    ends = [*starts[1:], len(conversations)]
    return tuple(tuple(conversations[start:end]) for start, end in zip(starts, ends, strict=True) if start < end)


def running_order(contenders: Sequence[T], index: int, repeat: int) -> list[T]:
    """Return the contenders forwards for an even group and repeat, backwards for the next."""
    return list(contenders) if (index + repeat) % 2 == 0 else list(reversed(contenders))


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
