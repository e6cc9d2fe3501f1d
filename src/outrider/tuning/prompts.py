"""The prompts to tune on: a balanced sample, in an order in which every beginning is balanced too.

Each category is shuffled by the seed, and the categories take turns. Prompts that leave no room for an answer are left
out, with a note.

    chat-03, code-11, editing-02, chat-09, code-01, ...

Example: `sampled(TuneConfig(prompts=("mine.jsonl",)), target).conversations` are the prompts of that file, shuffled.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, zip_longest
from typing import Final

from outrider.bench.cells import Cell, groups_of
from outrider.data.dialogue import Dialogue, Rules, longest_text
from outrider.data.workloads import CATEGORIES, Conversation, load_category, load_prompts
from outrider.errors import ConfigError
from outrider.target import Target
from outrider.tuning.config import TuneConfig

__all__ = ["Sample", "capped", "cells_for", "first_cells", "longest", "sampled"]

MOST_PROMPTS: Final = 60
MOST_NEW_TOKENS: Final = 64
"""Longest answer where no limit is given: acceptance hardly depends on the length, the time to measure it does."""
SHORTEST_ANSWER: Final = 2
MIXED: Final = "mixed"
"""Category of cells that take prompts of all categories in turn."""


@dataclass(frozen=True)
class Sample:
    """Prompts to tune on.

    conversations  in turn over the categories
    num_categories categories that take part
    notes          sentences on what was left out
    """

    conversations: tuple[Conversation, ...]
    num_categories: int
    notes: tuple[str, ...]

    def waves(self, num_first: int) -> list[list[Conversation]]:
        """Return the prompts in whole rounds over the categories; the first wave has `num_first` at least."""
        size = max(1, self.num_categories)
        first = -(-num_first // size) * size
        starts = [0, *range(first, len(self.conversations), size), len(self.conversations)]
        return [list(self.conversations[a:b]) for a, b in pairwise(starts) if a < b]

    def rules(self, config: TuneConfig, target: Target, repeat: int = 0) -> Rules:
        """Return the limits and seeds of answers."""
        return Rules(
            temperature=config.temperature,
            repeat=repeat,
            seed=config.seed,
            max_new_tokens=MOST_NEW_TOKENS if config.max_new_tokens is None else config.max_new_tokens,
            max_len=target.spec.max_positions,
            ignore_eos=False,
        )


def sampled(config: TuneConfig, target: Target) -> Sample:
    """Read the prompts and put a sample of them in order.

    Raises:
        ConfigError: if they cannot be read, or none leaves room for an answer.
    """
    if config.prompts:
        read = [one for path in config.prompts for one in load_prompts(path)]
    else:
        read = [one for category in CATEGORIES for one in load_category(category)]
    kept = [one for one in read if len(Dialogue(one).ask(0, target.tokenizer)) + SHORTEST_ANSWER <= _most(target)]
    if not kept:
        raise ConfigError(
            f"no prompt leaves room for an answer: all {len(read)} have more than {_most(target) - SHORTEST_ANSWER} of "
            f"the {_most(target)} tokens that {target.spec.name} reads; give shorter --prompts"
        )
    categories = list(dict.fromkeys(one.category for one in kept))
    shuffled = [
        _shuffled([one for one in kept if one.category == name], f"{config.seed} {name}") for name in categories
    ]
    turns = [one for one in chain.from_iterable(zip_longest(*shuffled)) if one is not None]
    unique = list({one.id: one for one in reversed(turns)}.values())[::-1]
    left_out = len(read) - len(kept)
    notes = (f"{left_out} of {len(read)} prompts leave no room for an answer and were left out",) if left_out else ()
    return Sample(tuple(unique[:MOST_PROMPTS]), len(categories), notes)


def cells_for(config: TuneConfig, conversations: Sequence[Conversation], repeat: int = 0) -> list[Cell]:
    """Return the cells of one repeat: by category where each fills the batch, else of all prompts mixed.

    The largest number of requests comes first: it takes the least time, and time may end. One that the prompts do not
    fill has no cell.
    """
    by_category = {
        name: [one for one in conversations if one.category == name]
        for name in dict.fromkeys(one.category for one in conversations)
    }
    cells = []
    for batch in reversed(config.concurrency):
        is_filled = all(len(members) >= batch for members in by_category.values())
        pools = by_category if is_filled else {MIXED: list(conversations)}
        first = 0
        for name, members in pools.items():
            if len(members) >= batch:
                groups = groups_of(members, batch)
                cells.append(
                    Cell(
                        batch=batch,
                        repeat=repeat,
                        temperature=config.temperature,
                        category=name,
                        groups=groups,
                        teaching=(),
                        first=first,
                    )
                )
                first += len(groups)
    return cells


def first_cells(config: TuneConfig, conversations: Sequence[Conversation]) -> list[Cell]:
    """Return the cells of the first repeat.

    Raises:
        ConfigError: if the prompts fill none.
    """
    cells = cells_for(config, conversations)
    if not cells:
        raise ConfigError(
            f"concurrency={min(config.concurrency)} needs as many prompts, and {len(conversations)} can be used; give "
            "more --prompts, or a smaller --concurrency"
        )
    return cells


def longest(conversations: Sequence[Conversation], target: Target, rules: Rules) -> int:
    """Return the tokens of the longest conversation, answers included, within the target's limit."""
    most = max(longest_text(one, target.tokenizer, rules) for one in conversations)
    return max(2, min(most, target.spec.max_positions))


def capped(cell: Cell, num_groups: int) -> Cell:
    """Return the cell with its first groups alone."""
    return replace(cell, groups=cell.groups[:num_groups])


def _most(target: Target) -> int:
    return target.spec.max_positions - 1


def _shuffled(conversations: list[Conversation], seed: str) -> list[Conversation]:
    return random.Random(seed).sample(conversations, len(conversations))
