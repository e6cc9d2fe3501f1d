"""The prompts of a benchmark: our own categories, and the data sets that others report on.

How well a proposer guesses depends on the task, so prompts come in categories and are reported by category. Our own lie
in `workloads/` as JSONL (see the README there). `load_prompts` also reads what the field compares on:

    turns      {"turns": ["...", "..."]} with "id" or "question_id": our files, MT-Bench, Spec-Bench
    humaneval  {"task_id": "HumanEval/0", "prompt": "def ..."}
    gsm8k      {"question": "...", "answer": "..."}
    prompt     {"prompt": "..."} or {"question": "..."}

and `hub:openai/gsm8k@main:test:question`: a hub data set (name, optional @configuration, split, field). "category",
"system" and "max_new_tokens" may stand beside any of them. Answers in a data set are never read: the target's own text
is the reference.

Example: `load_category("editing")[0].turns` is one long text with the change to make in it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import outrider
from outrider.bench.hub import HUB_PREFIX, hub_texts
from outrider.errors import ConfigError, nearest

__all__ = [
    "CATEGORIES",
    "DEFAULT_MAX_NEW_TOKENS",
    "Conversation",
    "Layout",
    "load_category",
    "load_prompts",
    "workload_directory",
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


class _Keys(NamedTuple):
    id: tuple[str, ...]
    text: tuple[str, ...]


LAYOUTS: Mapping[str, _Keys] = {
    "turns": _Keys(("id", "question_id"), ("turns",)),
    "humaneval": _Keys(("task_id",), ("prompt",)),
    "gsm8k": _Keys(("id",), ("question",)),
    "prompt": _Keys(("id",), ("prompt", "question")),
}


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


class _Line(NamedTuple):
    where: str
    number: int
    fields: Mapping[str, Any]


def load_category(name: str) -> list[Conversation]:
    """One of our own categories.

    Raises:
        ConfigError: for an unknown category; names the nearest.
    """
    if name not in CATEGORIES:
        raise ConfigError(f"unknown category '{name}'{nearest(name, CATEGORIES)}")
    return load_prompts(workload_directory() / f"{name}.jsonl", layout="turns")


def workload_directory() -> Path:
    """Where our prompts lie: beside the package in an installed wheel, at the root of a checkout.

    Raises:
        ConfigError: if neither is there.
    """
    package = Path(outrider.__file__).parent
    for directory in (package / "workloads", package.parents[1] / "workloads"):
        if directory.is_dir():
            return directory
    raise ConfigError(f"the prompts of the benchmark are missing beside {package}; install outrider again")


def load_prompts(
    path: str | Path, *, layout: Layout = "auto", max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS, limit: int | None = None
) -> list[Conversation]:
    """Read a JSONL file of prompts, or a hub data set.

    Args:
        path: a file, or `hub:name:split:field`.
        layout: what a line holds; "auto" looks at its keys.
        max_new_tokens: for lines that do not say.
        limit: how many to take, from the top.

    Raises:
        ConfigError: if the file cannot be read or a line is not a prompt; names the line.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'{nearest(layout, ['auto', *LAYOUTS])}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1")
    place = str(path)
    lines = _hub_lines(place) if place.startswith(HUB_PREFIX) else _file_lines(Path(path))
    category = place.split(":")[1] if place.startswith(HUB_PREFIX) else Path(path).stem
    conversations = [_conversation(line, layout, category, max_new_tokens) for line in islice(lines, limit)]
    if not conversations:
        raise ConfigError(f"{place} holds no prompt; give at least one line")
    if repeated := [id for id, count in Counter(item.id for item in conversations).items() if count > 1]:
        raise ConfigError(f"{place} uses the id '{repeated[0]}' more than once; make the ids unique")
    return conversations


def workload_hash(conversations: Iterable[Conversation]) -> str:
    """SHA-256 (hex) of ids, texts and limits, in order: equal hashes mean equal prompts."""
    plain = [asdict(conversation) for conversation in conversations]
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hub_lines(place: str) -> Iterator[_Line]:
    for number, text in enumerate(hub_texts(place), start=1):
        yield _Line(f"{place} row {number}", number, {"turns": [text] if isinstance(text, str) else text})


def _file_lines(path: Path) -> Iterator[_Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts in {path} cannot be read ({error}); give a JSONL file in UTF-8") from error
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not JSON ({error.msg} at character {error.pos}); mend the line") from error
        if not isinstance(fields, dict):
            raise ConfigError(f'{where} is not a JSON object; a prompt looks like {{"prompt": "..."}}')
        yield _Line(where, number, fields)


def _conversation(line: _Line, layout: Layout, category: str, max_new_tokens: int) -> Conversation:
    keys = LAYOUTS[_guessed(line) if layout == "auto" else layout]
    text_key = next((key for key in keys.text if key in line.fields), None)
    if text_key is None:
        raise ConfigError(f"{line.where} has no field '{keys.text[0]}'; its layout is not '{layout}'")
    turns = line.fields[text_key]
    turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ConfigError(f"'{text_key}' in {line.where} must hold text that is not empty, or a list of such texts")
    id = next((line.fields[key] for key in keys.id if key in line.fields), f"{category}-{line.number:02}")
    return Conversation(
        id=str(id),
        category=_optional_text(line, "category") or category,
        turns=tuple(turns),
        system=_optional_text(line, "system"),
        max_new_tokens=_limit(line, max_new_tokens),
    )


def _guessed(line: _Line) -> str:
    known = set(line.fields)
    if "turns" in known:
        return "turns"
    if {"task_id", "prompt"} <= known:
        return "humaneval"
    if {"question", "answer"} <= known and "prompt" not in known:
        return "gsm8k"
    if known & {"prompt", "question"}:
        return "prompt"
    raise ConfigError(
        f"{line.where} has neither 'turns' nor 'prompt' nor 'question'; it has {', '.join(sorted(known))}"
    )


def _optional_text(line: _Line, key: str) -> str | None:
    value = line.fields.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"'{key}' in {line.where} is {value!r:.40} but must be text")
    return value


def _limit(line: _Line, default: int) -> int:
    value = line.fields.get("max_new_tokens", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"max_new_tokens={value!r:.40} in {line.where} must be a whole number of at least 1")
    return value
