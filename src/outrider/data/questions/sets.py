"""The public question sets that papers on speculative decoding report on, by name.

    gsm8k                       from the hub
    speed-bench@throughput_1k   a configuration of it
    nvidia/SPEED-Bench          by its hub name
    spec-bench=question.jsonl   a downloaded file

Categories are those of the set; where it has none, the set's name is the category. Rows of SPEED-Bench whose text its
authors may not publish hold a placeholder instead, and are left out: a benchmark of placeholders flatters every
lookup. NVIDIA's script fills them in, and its output is read like any file.

The text is used under the licence of each set. Layouts: `hemingkx/Spec-Bench` data/spec_bench, `lm-sys/FastChat`
llm_judge/data/mt_bench, and the hub's cards.

Example: `chosen_set("gsm8k")` reads the column "question" of openai/gsm8k, configuration main, split test.
"""

import os.path
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from outrider.data.prompt_layouts import PromptRow
from outrider.data.prompt_rows import HUB_PREFIX, HubPlace, hub_fields, prompt_rows
from outrider.errors import ConfigError

__all__ = ["SETS", "ChosenSet", "QuestionSet", "chosen_set", "set_rows"]

MASK: Final = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""Beginning of a placeholder of SPEED-Bench."""


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """One set.

    title          its usual name
    source         the place where it is published
    hub            its column on the hub; None where it is not there
    request        keys of which a row of its file has one
    has_category   True if rows name their category
    id_key         key of a row's name
    """

    title: str
    source: str
    hub: HubPlace | None
    request: tuple[str, ...]
    has_category: bool = False
    id_key: str = "question_id"


SETS: Final[Mapping[str, QuestionSet]] = {
    "spec-bench": QuestionSet(
        title="Spec-Bench",
        source="github.com/hemingkx/Spec-Bench, data/spec_bench/question.jsonl",
        hub=None,
        request=("turns",),
        has_category=True,
    ),
    "mt-bench": QuestionSet(
        title="MT-Bench",
        source="github.com/lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/question.jsonl",
        hub=HubPlace("HuggingFaceH4/mt_bench_prompts", None, "train", "prompt"),
        request=("turns", "prompt"),
        has_category=True,
    ),
    "humaneval": QuestionSet(
        title="HumanEval",
        source="github.com/openai/human-eval",
        hub=HubPlace("openai/openai_humaneval", None, "test", "prompt"),
        request=("prompt", "turns"),
        id_key="task_id",
    ),
    "gsm8k": QuestionSet(
        title="GSM8K",
        source="github.com/openai/grade-school-math",
        hub=HubPlace("openai/gsm8k", "main", "test", "question"),
        request=("question", "turns"),
    ),
    "speed-bench": QuestionSet(
        title="SPEED-Bench",
        source="huggingface.co/datasets/nvidia/SPEED-Bench",
        hub=HubPlace("nvidia/SPEED-Bench", "qualitative", "test", "turns"),
        request=("turns", "messages"),
        has_category=True,
    ),
}


class ChosenSet(NamedTuple):
    """A set as a user names it: its name, and the file, or the column of the hub, that holds it."""

    name: str
    place: str


def chosen_set(place: str) -> ChosenSet | None:
    """Return the set that a place names; None for any other file or data set.

    Raises:
        ConfigError: for a set that is not on the hub, or an empty file name.
    """
    if os.path.exists(place) or place.startswith(HUB_PREFIX):
        return None
    name, equals, path = place.partition("=")
    if equals and name in SETS:
        if not path:
            raise ConfigError(f"'{place}' names no file; write {name}=FILE")
        return ChosenSet(name, path)
    plain, _, configuration = place.partition("@")
    name = next((name for name, one in SETS.items() if one.hub is not None and one.hub.name == plain), plain)
    if name not in SETS:
        return None
    hub = SETS[name].hub
    if hub is None:
        raise ConfigError(f"{SETS[name].title} is not on the hub; download {SETS[name].source}, and give {name}=FILE")
    column = hub._replace(configuration=configuration or hub.configuration)
    named = column.name if column.configuration is None else f"{column.name}@{column.configuration}"
    return ChosenSet(name, f"{HUB_PREFIX}{named}:{column.split}:{column.field}")


def set_rows(chosen: ChosenSet, note: Callable[[str], None]) -> Iterator[PromptRow]:
    """Yield the rows of a set with an "id" and a "category"; say how many were left out.

    Raises:
        ConfigError: if they cannot be read, or are no rows of that set.
    """
    known, masked, number = SETS[chosen.name], 0, 0
    is_file = not chosen.place.startswith(HUB_PREFIX)  # a column of the hub is named in SETS
    for row in _rows(chosen, known):
        number += 1
        if is_file and not any(key in row.fields for key in known.request):
            raise ConfigError(f"{row.where} has no '{known.request[0]}'; it is no row of {known.title}")
        if _is_masked(row.fields):
            masked += 1
            continue
        category = row.fields.get("category") if known.has_category else chosen.name
        if not isinstance(category, str) or not category:
            raise ConfigError(f"{row.where} has no 'category'; it is no row of {known.title}")
        named = row.fields.get(known.id_key)
        id = f"{chosen.name}-{row.number:02}" if named is None else named
        yield PromptRow(row.where, row.number, {**_beside(row.fields), "id": id, "category": category})
    if masked:
        note(
            f"left out: {masked} of {number} rows of {known.title}, which are placeholders; fill them in with its "
            f"authors' script and give {chosen.name}=FILE"
        )


def _rows(chosen: ChosenSet, known: QuestionSet) -> Iterator[PromptRow]:
    if not chosen.place.startswith(HUB_PREFIX):
        yield from prompt_rows(chosen.place)
        return
    also = ("category", known.id_key)
    for number, fields in enumerate(hub_fields(chosen.place, also), start=1):
        yield PromptRow(f"{chosen.place} row {number}", number, fields)


def _beside(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row without the names that other layouts read before "id"."""
    return {key: value for key, value in fields.items() if key not in ("question_id", "task_id")}


def _is_masked(fields: Mapping[str, Any]) -> bool:
    turns = fields.get("turns")
    return isinstance(turns, list) and any(isinstance(turn, str) and turn.startswith(MASK) for turn in turns)
