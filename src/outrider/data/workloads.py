"""The prompts of a benchmark: our own categories, and the data sets that others report on.

How well a proposer guesses depends on the task, so prompts come in categories and are reported by category. Our own lie
in `workloads/` as JSONL (see the README there). `load_prompts` also reads what the field compares on (MT-Bench,
Spec-Bench, HumanEval, GSM8K, Alpaca, conversations, ...; `outrider.data.prompt_layouts` lists the layouts), and
`hub:openai/gsm8k@main:test:question`: a hub data set (name, optional @configuration, split, field). "id", "category",
"system" and "max_new_tokens" may stand beside a prompt. Answers in a data set are never read: the target's own text is
the reference.

Example: `load_category("editing")[0].turns` is one long text with the change to make in it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from outrider.data.prompt_layouts import PromptRow, read_prompt
from outrider.data.prompt_rows import HUB_PREFIX, prompt_rows
from outrider.data.questions.sets import chosen_set, set_rows
from outrider.env import data_directory
from outrider.errors import ConfigError, nearest

__all__ = [
    "CATEGORIES",
    "DEFAULT_MAX_NEW_TOKENS",
    "Conversation",
    "Layout",
    "load_category",
    "load_prompts",
    "workload_hash",
]

CATEGORIES = (
    "chat",
    "multi_turn",
    "writing",
    "reasoning",
    "code",
    "translation",
    "structured",
    "summary",
    "document_qa",
    "editing",
)
DEFAULT_MAX_NEW_TOKENS = 128

Layout = Literal["auto", "turns", "humaneval", "gsm8k", "prompt"]


LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "turns": ("turns",),
    "humaneval": ("prompt",),
    "gsm8k": ("question",),
    "prompt": ("prompt", "question"),
}
"""Keys that may hold the request, by layout."""
ID_KEYS = ("id", "question_id", "task_id")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation: the user's messages; the model's answer to each goes before the next.

    system          the system message; None leaves it to the target's chat template
    max_new_tokens  limit of each answer
    """

    id: str
    category: str
    turns: tuple[str, ...]
    system: str | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS


def load_category(name: str) -> list[Conversation]:
    """Return the prompts of one of our own categories.

    Raises:
        ConfigError: for an unknown category; names the nearest.
    """
    if name not in CATEGORIES:
        raise ConfigError(f"unknown category '{name}'{nearest(name, CATEGORIES)}")
    return load_prompts(data_directory("workloads") / f"{name}.jsonl", layout="turns")


def load_prompts(
    path: str | Path,
    *,
    layout: Layout = "auto",
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    limit: int | None = None,
    note: Callable[[str], None] = lambda words: None,
) -> list[Conversation]:
    """Return the prompts of a file, of a hub data set, or of a public question set.

    Args:
        path: a file, `hub:name:split:field`, or a set as `outrider.data.questions.sets` names it.
        layout: required layout of every row; "auto" takes all layouts.
        max_new_tokens: limit of the answers where a line names none.
        limit: number of prompts to take, from the top.
        note: called with what was left out, and why.

    Raises:
        ConfigError: if the file cannot be read or a row is not a prompt that can be asked; names the line.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'{nearest(layout, ['auto', *LAYOUTS])}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1")
    place = str(path)
    category = place.split(":")[1] if place.startswith(HUB_PREFIX) else _stem(place)
    known = chosen_set(place)
    rows = islice(prompt_rows(place) if known is None else set_rows(known, note), limit)
    conversations = [_conversation(row, layout, category, max_new_tokens) for row in rows]
    if not conversations:
        raise ConfigError(f"{place} holds no prompt; give at least one line")
    if repeated := [id for id, count in Counter(item.id for item in conversations).items() if count > 1]:
        raise ConfigError(f"{place} uses the id '{repeated[0]}' more than once; make the ids unique")
    return conversations


def workload_hash(conversations: Iterable[Conversation]) -> str:
    """Return the SHA-256 (hex) of ids, texts and limits, in order: equal hashes mean equal prompts."""
    plain = [asdict(conversation) for conversation in conversations]
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _stem(place: str) -> str:
    """
    >>> _stem("sets/alpaca.jsonl"), _stem("alpaca.jsonl.gz")
    ('alpaca', 'alpaca')
    """
    return Path(place.removesuffix(".gz")).stem


def _conversation(row: PromptRow, layout: Layout, category: str, max_new_tokens: int) -> Conversation:
    said = read_prompt(row)
    if layout != "auto" and said.key not in LAYOUTS[layout]:
        raise ConfigError(f"{row.where} has no field '{LAYOUTS[layout][0]}'; its layout is not '{layout}'")
    if said.fault == "empty":
        raise ConfigError(f"'{said.key}' in {row.where} must hold text that is not empty, or a list of such texts")
    if said.fault is not None:
        raise ConfigError(f"{row.where} cannot be asked as text: {said.fault}; remove the row or write it as text")
    return Conversation(
        id=_id(row, f"{category}-{row.number:02}"),
        category=_optional_text(row, "category") or category,
        turns=said.turns,
        system=said.system,
        max_new_tokens=_limit(row, max_new_tokens),
    )


def _id(row: PromptRow, default: str) -> str:
    value = next((row.fields[key] for key in ID_KEYS if row.fields.get(key) is not None), default)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or _is_broken(str(value)):
        raise ConfigError(f"the id in {row.where} is {value!r:.40} but must be text or a number")
    return str(value)


def _optional_text(row: PromptRow, key: str) -> str | None:
    value = row.fields.get(key)
    if value is not None and (not isinstance(value, str) or _is_broken(value)):
        raise ConfigError(f"'{key}' in {row.where} is {value!r:.40} but must be text")
    return value


def _is_broken(text: str) -> bool:
    """Return whether the text holds half of a surrogate pair, which no file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _limit(row: PromptRow, default: int) -> int:
    value = row.fields.get("max_new_tokens")
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"max_new_tokens={value!r:.40} in {row.where} must be a whole number of at least 1")
    return value
