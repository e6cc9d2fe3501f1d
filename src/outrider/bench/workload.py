"""The prompts of a run and the cells that they fill, read and checked before anything is measured.

Example: with `max_prompt_tokens=50`, prompts of more tokens are left out, and a note says how many.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from outrider.bench.cells import Cell, cells_of
from outrider.bench.config import BenchConfig
from outrider.data.dialogue import Dialogue, Rules, longest_text
from outrider.data.workloads import Conversation, load_category, load_prompts
from outrider.errors import ConfigError
from outrider.results.derive import ALL
from outrider.target import Target

__all__ = ["Workload", "read_workload", "rules_of"]

POOL = "mixed"
WARM_UP_PROMPT = 48


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The prompts of a run.

    conversations  prompts by category
    cells          groups of prompts in the order in which they run
    max_len        tokens of the longest conversation, answers included
    warm_up        token ids to warm up with
    notes          notes on prompts that were left out, and why
    """

    conversations: Mapping[str, Sequence[Conversation]]
    cells: tuple[Cell, ...]
    max_len: int
    warm_up: tuple[int, ...]
    notes: tuple[str, ...]


def read_workload(config: BenchConfig, target: Target) -> Workload:
    """Read the prompts; one that leaves no room for an answer is left out, with a note.

    Raises:
        ConfigError: if prompts cannot be read, share an id, or none of a category fits.
    """
    own = [one for category in config.categories for one in load_category(category)]
    notes: list[str] = []
    others = [one for path in config.prompts for one in load_prompts(path, note=notes.append)]
    read = own + others
    _check_names(read)
    positions = target.spec.max_positions
    limit = min(positions - 1, config.max_prompt_tokens or positions)
    kept = [one for one in read if len(Dialogue(one).ask(0, target.tokenizer)) <= limit]
    workload = {category: [one for one in kept if one.category == category] for category in _categories(read)}
    whole = frozenset(_categories(others) if config.all_prompts else ())
    if config.pooled:
        workload, whole = {POOL: _in_turn(list(workload.values()))}, frozenset({POOL} if whole else ())
    if empty := [category for category, members in workload.items() if not members]:
        raise ConfigError(f"no prompt of '{empty[0]}' has at most {limit} tokens; leave the category out")
    cells = tuple(cells_of(config, workload, whole))
    used = [one for cell in cells for group in (*cell.groups, *cell.teaching) for one in group]
    if not used:
        most = max(map(len, workload.values()))
        raise ConfigError(f"no category has {min(config.batches)} prompts, at most {most}; give smaller --batches")
    rules = rules_of(config, positions)
    longest = max(longest_text(one, target.tokenizer, rules) for one in dict.fromkeys(used))
    max_len = max(2, min(longest, positions))
    warm_up = Dialogue(next(iter(workload.values()))[0]).ask(0, target.tokenizer)
    too_long = [f"left out: {len(read) - len(kept)} of {len(read)} prompts, of more than {limit} tokens"]
    return Workload(
        conversations=workload,
        cells=cells,
        max_len=max_len,
        warm_up=tuple(warm_up[: min(WARM_UP_PROMPT, max_len // 2)]),
        notes=(*notes, *too_long * (read != kept), *_unfilled(config, workload)),
    )


def rules_of(config: BenchConfig, max_len: int, temperature: float = 0.0, repeat: int = 0) -> Rules:
    """Return the limits and seeds of answers."""
    return Rules(
        temperature=temperature,
        repeat=repeat,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        max_len=max_len,
        ignore_eos=config.ignore_eos,
    )


def _check_names(read: Sequence[Conversation]) -> None:
    if repeated := [key for key, times in Counter((one.category, one.id) for one in read).items() if times > 1]:
        raise ConfigError(f"the prompts of category '{repeated[0][0]}' use the id '{repeated[0][1]}' twice")
    if len(_categories(read)) > 1 and ALL in _categories(read):
        raise ConfigError(f"a category of prompts is called '{ALL}', as the sum of all is; give it another name")


def _unfilled(config: BenchConfig, workload: Mapping[str, Sequence[Conversation]]) -> list[str]:
    """Return a note for each category and batch size that would not be filled."""
    return [
        f"left out: batch {batch} of '{category}', which has {len(members)} prompts"
        for batch in config.batches
        for category, members in workload.items()
        if len(members) < batch
    ]


def _in_turn(categories: Sequence[Sequence[Conversation]]) -> list[Conversation]:
    """Return the first of each, the second of each, ...; an id that two categories use is taken once."""
    rounds = zip_longest(*categories)
    return list({one.id: one for members in rounds for one in members if one is not None}.values())


def _categories(conversations: Iterable[Conversation]) -> list[str]:
    return list(dict.fromkeys(one.category for one in conversations))
