"""The sources of prompts: a file, a data set of the hub, or the target itself.

    "magpie"                             the target writes them (`outrider.data.seed_phrases`)
    a path                               JSON lines or a JSON array, one prompt a row
    hub:HuggingFaceH4/x:train_sft:field  a column of a hub data set; needs `outrider[datasets]`

The layouts of a row are those of `outrider.data.prompt_layouts`. A row that is well formed but cannot be asked as
text, such as an empty conversation, is counted under its fault; any other is refused with its line. Answers in the data
are never read: the target writes its own. What a data set of ours holds (`shard-00000.jsonl`) is one of the layouts, so
the prompts of one target serve the next one too.

A source is numbered: prompt i is a function of i and the settings, so a run can go on anywhere.

Example: `FilePrompts("prompts.jsonl").take(10, 5)` is the tenth to fourteenth line (from 0), as far as there are any.
"""

import os.path
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, final

from outrider.data.dialogue import Dialogue
from outrider.data.generator import Job, Listener, TextGenerator, Written
from outrider.data.prompt_layouts import PromptRow, read_prompt
from outrider.data.prompt_rows import HUB_PREFIX, parse_hub, prompt_rows
from outrider.data.seed_phrases import SeedPhrase, UserTurn, draw, special_ids, user_turn
from outrider.errors import ConfigError
from outrider.sampling import SamplingParams

__all__ = ["FilePrompts", "FollowUp", "Prompt", "Prompts", "SelfWritten"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, good or not.

    number      in its source
    turns       the user's messages; of a self-written prompt the first
    num_turns   wanted length of the conversation, in turns
    written_by_target   True if all filters apply
    origin      source, as the record names it
    fault       reason why there is no prompt, or None
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
        """Return the prompts start .. start + count - 1; fewer at the end of the source.

        Raises:
            ConfigError: if the source cannot be read; names the line.
        """

    @abstractmethod
    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        """Return the user's messages of turn `turn` (from 0) in conversations whose last answer is given."""


@final
class FilePrompts(Prompts):
    """Prompts of a file, or of a hub column. Rows are read as they are needed.

    Args:
        place: a path, or `hub:name:split:field`.
        max_turns: at most this many turns of each conversation; None for all.
        system: the system message of conversations that bring none.
    """

    def __init__(self, place: str, *, max_turns: int | None = None, system: str | None = None) -> None:
        self._place, self._max_turns, self._system = place, max_turns, system
        if place.startswith(HUB_PREFIX):
            parse_hub(place)
        elif not os.path.isfile(place):
            raise ConfigError(f"the prompts in {place:.200} cannot be read: there is no such file; give a JSONL file")
        self._rows = prompt_rows(place)
        self._next = 0

    def take(self, start: int, count: int, listen: Listener) -> list[Prompt]:
        if start < self._next:
            self._rows, self._next = prompt_rows(self._place), 0
        rows = list(islice(self._rows, start - self._next, start - self._next + count))
        self._next = start + len(rows)
        return [self._prompt(start + index, row) for index, row in enumerate(rows)]

    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        return [FollowUp(prompt.turns[turn]) for prompt, _ in asked]

    def _prompt(self, number: int, row: PromptRow) -> Prompt:
        said = read_prompt(row)
        turns = said.turns[: self._max_turns]
        return Prompt(
            number=number,
            turns=turns,
            system=self._system if said.system is None else said.system,
            num_turns=len(turns),
            origin={"number": number},
            fault=said.fault,
        )


@final
class SelfWritten(Prompts):
    """Prompts that the target makes up.

    Args:
        max_tokens: the longest user's turn; one that does not end by then is dropped.
        max_prompt_tokens: no turn is opened in a conversation that is longer.
        turns: conversations have 1 to this many turns, in rotation.
        top_p: top-p of the sampling; keeps rare tokens out at high temperatures.
    """

    def __init__(
        self,
        generator: TextGenerator,
        tokenizer: Any,
        *,
        seed_phrases: Mapping[str, Sequence[str]],
        temperatures: Sequence[float],
        top_p: float,
        seed: int,
        max_tokens: int,
        max_prompt_tokens: int,
        turns: int = 1,
        system: str | None = None,
    ) -> None:
        self._generator, self._tokenizer = generator, tokenizer
        self._seed_phrases, self._temperatures, self._top_p = seed_phrases, temperatures, top_p
        self._seed, self._turns, self._system = seed, turns, system
        self._max_tokens, self._max_prompt_tokens = max_tokens, max_prompt_tokens
        self._ready: dict[int, Prompt] = {}
        self._special = special_ids(tokenizer)

    def take(self, start: int, count: int, listen: Listener) -> list[Prompt]:
        numbers = range(start, start + count)
        missing = [number for number in numbers if number not in self._ready]
        begun = [self._draw(number, 0) for number in missing]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        written = self._write([(seed_phrase, system) for seed_phrase in begun], listen)
        for number, seed_phrase, found in zip(missing, begun, written, strict=True):
            self._ready[number] = self._prompt(number, seed_phrase, found)
        self._ready = {number: prompt for number, prompt in self._ready.items() if number >= start}
        return [self._ready[number] for number in numbers]

    def follow(self, asked: Sequence[tuple[Prompt, Dialogue]], turn: int) -> list[FollowUp]:
        begun = [(self._draw(prompt.number, turn), dialogue.messages) for prompt, dialogue in asked]
        return self._write(begun, lambda jobs, tokens: None)

    def _draw(self, number: int, turn: int) -> SeedPhrase:
        return draw(
            seed=self._seed, number=number, turn=turn, seed_phrases=self._seed_phrases, temperatures=self._temperatures
        )

    def _write(
        self, begun: "Sequence[tuple[SeedPhrase, Sequence[Mapping[str, str]]]]", listen: Listener
    ) -> list[FollowUp]:
        found = [FollowUp(None, "length")] * len(begun)
        jobs: dict[int, tuple[Job, UserTurn]] = {}
        for at, (seed_phrase, messages) in enumerate(begun):
            place = user_turn(self._tokenizer, messages)
            job = self._job(seed_phrase, place)
            if len(job.prompt) < self._max_prompt_tokens:
                jobs[at] = (job, place)
        written = self._generator.write([job for job, _ in jobs.values()], listen)
        for (at, (_, place)), one in zip(jobs.items(), written, strict=True):
            found[at] = self._read(begun[at][0], place, one)
        return found

    def _job(self, seed_phrase: SeedPhrase, place: UserTurn) -> Job:
        tokens = self._tokenizer(place.text + seed_phrase.words, add_special_tokens=False)["input_ids"]
        return Job(
            prompt=tuple(tokens),
            max_new_tokens=self._max_tokens,
            sampling=SamplingParams(temperature=seed_phrase.temperature, top_p=self._top_p, seed=seed_phrase.seed),
            ends=place.end_tokens,
            stop=(place.end_text,) if place.end_text else (),
        )

    def _read(self, seed_phrase: SeedPhrase, place: UserTurn, one: Written) -> FollowUp:
        """Return the user's text in what was written."""
        tokens = one.tokens[:-1] if one.tokens and one.tokens[-1] in self._special else one.tokens
        if one.finished not in ("end", "stop"):
            return FollowUp(None, "unfinished")
        if self._special.intersection(tokens):
            return FollowUp(None, "special token")
        text = seed_phrase.words + self._tokenizer.decode(list(tokens))
        return FollowUp((text.partition(place.end_text)[0] if place.end_text else text).strip())

    def _prompt(self, number: int, seed_phrase: SeedPhrase, found: FollowUp) -> Prompt:
        return Prompt(
            number=number,
            turns=() if found.text is None else (found.text,),
            system=self._system,
            num_turns=1 + number % self._turns,
            written_by_target=True,
            origin={"number": number, "kind": seed_phrase.kind, "temperature": seed_phrase.temperature},
            fault=found.fault,
        )
