"""Where prompts come from: a file, a data set of the hub, or the target itself.

    "magpie"                             the target writes them (`outrider.train.openings`)
    a path                               JSONL, one prompt a line
    hub:HuggingFaceH4/x:train_sft:field  a column of a hub data set; needs `outrider[datasets]`

A line of JSONL holds one of

    {"messages": [{"role": "user", "content": "..."}, ...]}     also "conversations" with "from" and "value"
    {"turns": ["...", "..."]}                                    the user's messages
    {"prompt": "..."}                                            also "question", "instruction", "text"

with "system" beside it if wanted. A value of a hub column is a text, a list of texts (turns) or a list of messages.
Answers in the data are never read: the target writes its own. What a data set of ours holds (`shard-00000.jsonl`) is
in the first layout, so the prompts of one target serve the next one too.

A source is numbered: prompt i is a function of i and the settings, so a run can go on anywhere.

Example: `FilePrompts("prompts.jsonl").take(10, 5)` is the tenth to fourteenth line (from 0), as far as there are any.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, final

from outrider.bench.hub import HUB_PREFIX, hub_texts, parse_hub
from outrider.bench.play import Dialogue
from outrider.errors import ConfigError
from outrider.sampling import Sampling
from outrider.train.author import Author, Job, Listener, Written
from outrider.train.openings import Opening, UserTurn, draw, special_ids, user_turn

__all__ = ["SELF", "FilePrompts", "FollowUp", "Prompt", "Prompts", "SelfWritten"]

SELF = "magpie"
TEXT_KEYS = ("prompt", "question", "instruction", "text")
USERS, SYSTEMS = ("user", "human"), ("system",)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, good or not.

    number      in its source
    turns       the user's messages; of a self-written prompt the first
    num_turns   how many the conversation shall have
    written_by_target   whether all filters apply
    origin      what the record says about where it comes from
    fault       why there is no prompt, or None
    """

    number: int
    turns: tuple[str, ...] = ()
    system: str | None = None
    num_turns: int = 1
    written_by_target: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


class FollowUp(NamedTuple):
    """The user's next message, or why there is none."""

    text: str | None
    fault: str | None = None


class Prompts(ABC):
    """A numbered source of prompts."""

    @abstractmethod
    def take(self, start: int, count: int, listen: Listener) -> list[Prompt]:
        """Prompts start .. start + count - 1; fewer at the end of the source.

        Raises:
            ConfigError: if the source cannot be read; names the line.
        """

    @abstractmethod
    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        """The user's messages of turn `turn` (from 0) in conversations whose last answer is given."""


@final
class FilePrompts(Prompts):
    """Prompts of a JSONL file, or of a hub column. Lines are read as they are needed.

    Args:
        place: a path, or `hub:name:split:field`.
        max_turns: at most this many turns of each conversation; None for all.
        system: the system message of conversations that bring none.
    """

    def __init__(self, place: str, *, max_turns: int | None = None, system: str | None = None) -> None:
        self._place, self._max_turns, self._system = place, max_turns, system
        if place.startswith(HUB_PREFIX):
            parse_hub(place)
        elif not Path(place).is_file():
            raise ConfigError(f"the prompts in {place} cannot be read: there is no such file; give a JSONL file")
        self._lines = self._read()
        self._next = 0

    def take(self, start: int, count: int, listen: Listener) -> list[Prompt]:
        if start < self._next:
            self._lines, self._next = self._read(), 0
        lines = list(islice(self._lines, start - self._next, start - self._next + count))
        self._next = start + len(lines)
        return [self._prompt(start + index, where, fields) for index, (where, fields) in enumerate(lines)]

    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        return [FollowUp(prompt.turns[turn]) for prompt, _ in asked]

    def _read(self) -> "Iterator[tuple[str, Mapping[str, Any]]]":
        if self._place.startswith(HUB_PREFIX):
            values = enumerate(hub_texts(self._place), start=1)
            return ((f"{self._place} row {number}", _fields_of(value)) for number, value in values)
        return _file_lines(Path(self._place))

    def _prompt(self, number: int, where: str, fields: Mapping[str, Any]) -> Prompt:
        turns, system = _turns(fields, where)
        turns = turns[: self._max_turns]
        return Prompt(
            number=number,
            turns=turns,
            system=self._system if system is None else system,
            num_turns=len(turns),
            origin={"number": number},
            fault=None if turns else "empty",
        )


@final
class SelfWritten(Prompts):
    """Prompts that the target makes up.

    Args:
        max_tokens: the longest user's turn; one that does not end by then is dropped.
        max_prompt_tokens: no turn is opened in a conversation that is longer.
        turns: conversations have 1 to this many turns, in rotation.
        top_p: of the sampling; keeps rare tokens out at high temperatures.
    """

    def __init__(
        self,
        author: Author,
        tokenizer: Any,
        *,
        openings: Mapping[str, Sequence[str]],
        temperatures: Sequence[float],
        top_p: float,
        seed: int,
        max_tokens: int,
        max_prompt_tokens: int,
        turns: int = 1,
        system: str | None = None,
    ) -> None:
        self._author, self._tokenizer = author, tokenizer
        self._openings, self._temperatures, self._top_p = openings, temperatures, top_p
        self._seed, self._turns, self._system = seed, turns, system
        self._max_tokens, self._max_prompt_tokens = max_tokens, max_prompt_tokens
        self._ready: dict[int, Prompt] = {}
        self._special = special_ids(tokenizer)

    def take(self, start: int, count: int, listen: Listener) -> list[Prompt]:
        numbers = range(start, start + count)
        missing = [number for number in numbers if number not in self._ready]
        begun = [self._draw(number, 0) for number in missing]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        written = self._write([(opening, system) for opening in begun], listen)
        for number, opening, found in zip(missing, begun, written, strict=True):
            self._ready[number] = self._prompt(number, opening, found)
        self._ready = {number: prompt for number, prompt in self._ready.items() if number >= start}
        return [self._ready[number] for number in numbers]

    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        begun = [(self._draw(prompt.number, turn), dialogue.messages) for prompt, dialogue in asked]
        return self._write(begun, lambda jobs, tokens: None)

    def _draw(self, number: int, turn: int) -> Opening:
        return draw(seed=self._seed, number=number, turn=turn, openings=self._openings, temperatures=self._temperatures)

    def _write(
        self, begun: "Sequence[tuple[Opening, Sequence[Mapping[str, str]]]]", listen: Listener
    ) -> list[FollowUp]:
        found = [FollowUp(None, "length")] * len(begun)
        jobs: dict[int, tuple[Job, UserTurn]] = {}
        for at, (opening, messages) in enumerate(begun):
            place = user_turn(self._tokenizer, messages)
            job = self._job(opening, place)
            if len(job.prompt) < self._max_prompt_tokens:
                jobs[at] = (job, place)
        written = self._author.write([job for job, _ in jobs.values()], listen)
        for (at, (_, place)), one in zip(jobs.items(), written, strict=True):
            found[at] = self._read(begun[at][0], place, one)
        return found

    def _job(self, opening: Opening, place: UserTurn) -> Job:
        tokens = self._tokenizer(place.text + opening.words, add_special_tokens=False)["input_ids"]
        return Job(
            prompt=tuple(tokens),
            max_new_tokens=self._max_tokens,
            sampling=Sampling(temperature=opening.temperature, top_p=self._top_p, seed=opening.seed),
            ends=place.end_tokens,
            stop=(place.end_text,) if place.end_text else (),
        )

    def _read(self, opening: Opening, place: UserTurn, one: Written) -> FollowUp:
        """The user's text in what was written."""
        tokens = one.tokens[:-1] if one.tokens and one.tokens[-1] in self._special else one.tokens
        if one.finished not in ("end", "stop"):
            return FollowUp(None, "unfinished")
        if self._special.intersection(tokens):
            return FollowUp(None, "special token")
        text = opening.words + self._tokenizer.decode(list(tokens))
        return FollowUp((text.partition(place.end_text)[0] if place.end_text else text).strip())

    def _prompt(self, number: int, opening: Opening, found: FollowUp) -> Prompt:
        return Prompt(
            number=number,
            turns=() if found.text is None else (found.text,),
            system=self._system,
            num_turns=1 + number % self._turns,
            written_by_target=True,
            origin={"number": number, "kind": opening.kind, "temperature": opening.temperature},
            fault=found.fault,
        )


def _file_lines(path: Path) -> "Iterator[tuple[str, Mapping[str, Any]]]":
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield f"{path}:{number}", _json_object(raw, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts in {path} cannot be read ({error}); give a JSONL file in UTF-8") from error


def _json_object(raw: str, where: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(raw)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON ({error.msg} at character {error.pos}); mend the line") from error
    if not isinstance(fields, dict):
        raise ConfigError(f'{where} is not a JSON object; a prompt looks like {{"prompt": "..."}}')
    return fields


def _fields_of(value: Any) -> Mapping[str, Any]:
    """A value of a hub column as the fields of a line."""
    if isinstance(value, str):
        return {"prompt": value}
    are_messages = isinstance(value, list) and value and isinstance(value[0], Mapping)
    return {"messages" if are_messages else "turns": value}


def _turns(fields: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], str | None]:
    """The user's messages and the system message."""
    key = next((key for key in ("messages", "conversations", "turns", *TEXT_KEYS) if key in fields), None)
    if key is None:
        known = ", ".join(sorted(fields)) or "nothing"
        raise ConfigError(f"{where} has none of messages, turns and {', '.join(TEXT_KEYS)}; it has {known}")
    value = [fields[key]] if key in TEXT_KEYS else fields[key]
    system = fields.get("system")
    if not isinstance(value, list) or not (system is None or isinstance(system, str)):
        raise ConfigError(
            f"'{key}' or 'system' in {where} has the wrong type; see docs/training-data.md for the layouts"
        )
    if key in ("messages", "conversations"):
        said = [_message(one, where) for one in value]
        system = next((text for role, text in said if role in SYSTEMS), system)
        value = [text for role, text in said if role in USERS]
    if not all(isinstance(turn, str) for turn in value):
        raise ConfigError(f"'{key}' in {where} must hold text, or a list of texts")
    return tuple(_until_empty(value)), system


def _message(message: Any, where: str) -> tuple[str, str]:
    if isinstance(message, Mapping):
        role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(role, str) and isinstance(text, str):
            return role, text
    raise ConfigError(f'a message in {where} is not of the form {{"role": "user", "content": "..."}}')


def _until_empty(turns: Iterable[str]) -> Iterator[str]:
    for turn in turns:
        if not turn.strip():
            return
        yield turn
