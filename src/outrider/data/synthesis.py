"""The target writes its own training data.

A drafter is trained to guess what its target writes, so the answers in its training data must be the target's own; the
answers of a person or of another model teach it the wrong distribution. The prompts only have to be like those it will
meet: they come from a file, from the hub, or from the target itself (Magpie), and then training needs no data set.

    prompts  ->  filter  ->  answers (our engine, or a server)  ->  texts with token ids and loss mask  ->  shards

What is written is a function of the settings and the seed: prompts are numbered, every draw is keyed by its number, and
a shard is a range of numbers. So a run that was interrupted goes on behind its last finished shard and ends with the
same bytes (with weights whose rows do not depend on the batch: `TargetSpec.batch_invariant`).

Example:

    config = SynthesisConfig(num_prompts=1000)
    synthesize(config, Path("data/smollm2"), identity, generator).totals.num_learnt_tokens
"""

import os.path
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, final

from outrider.data.config import SELF, SynthesisConfig
from outrider.data.conversations import AnswerRules, ConversationWriter, GrowingConversation
from outrider.data.directory import DataDirectory, Shard, Totals
from outrider.data.filters import PromptFilter, benchmark_prompts
from outrider.data.generator import TextGenerator
from outrider.data.identity import Identity
from outrider.data.prompt_rows import HUB_PREFIX
from outrider.data.prompts import FilePrompts, Prompt, Prompts, SelfWritten
from outrider.data.seed_phrases import read_seed_phrases, user_turn
from outrider.data.workloads import CATEGORIES, load_category, workload_hash
from outrider.errors import ConfigError, RunError
from outrider.records.codec import to_plain
from outrider.records.provenance import collect_manifest

__all__ = ["Progress", "Result", "synthesize"]

DEFAULT_NUM_PROMPTS = 1000
ROUND = 512
"""At most this many prompts are drawn at a time."""
PATIENCE = 512
"""Prompts in a row without one that is kept, after which the source is given up."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: kept conversations, and tokens of answers, on disk and in the shard in work."""

    stage: str
    num_prompts: int
    num_prompts_wanted: int | None
    num_tokens: int
    num_tokens_wanted: int | None
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a run: totals of the data set; seconds and `num_new_tokens` of this call."""

    totals: Totals
    num_new_tokens: int
    seconds: float


def synthesize(
    config: SynthesisConfig,
    directory: Path,
    identity: Identity,
    generator: TextGenerator,
    *,
    written_by: str = "engine",
    listen: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Fill a directory with texts, or go on filling it.

    Args:
        identity: the target.
        generator: writer of its texts.
        written_by: description of the writer, for the manifest's provenance.
        listen: called with the progress.

    Raises:
        ConfigError: if the source cannot be read.
        RunError: if the directory belongs to another run or cannot be written, or the source gives no usable prompt.
    """
    prompts = _prompts(config, identity, generator)
    benchmark = workload_hash(one for name in CATEGORIES for one in load_category(name))
    provenance = collect_manifest(seed=config.seed, settings={"written_by": written_by}, workload_hash=benchmark)
    manifest = {
        "target": identity.plain(),
        "settings": config.kept(),
        "provenance": to_plain(provenance),
    }
    with DataDirectory(directory, manifest) as data:
        return _Run(config, data, identity, generator, prompts, listen).fill()


def _prompts(config: SynthesisConfig, identity: Identity, generator: TextGenerator) -> Prompts:
    if config.max_len > identity.max_positions:
        raise ConfigError(
            f"max_prompt_tokens={config.max_prompt_tokens} and max_new_tokens={config.max_new_tokens} do not fit in "
            f"the {identity.max_positions} positions of {identity.name}; lower one of them"
        )
    if config.source != SELF:
        if not config.source.startswith(HUB_PREFIX) and not os.path.exists(config.source):
            raise ConfigError(
                f"source={config.source:.200} is neither {SELF}, nor a file, nor {HUB_PREFIX}NAME:SPLIT:FIELD"
            )
        return FilePrompts(config.source, max_turns=config.turns, system=config.system)
    user_turn(identity.tokenizer, [])
    return SelfWritten(
        generator,
        identity.tokenizer,
        seed_phrases=read_seed_phrases(config.seed_phrases),
        temperatures=config.prompt_temperatures,
        top_p=config.prompt_top_p,
        seed=config.seed,
        max_tokens=config.max_turn_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        turns=config.turns or 1,
        system=config.system,
    )


@final
class _Run:
    """One call: shard after shard until enough is written or the source is at its end."""

    def __init__(
        self,
        config: SynthesisConfig,
        data: DataDirectory,
        identity: Identity,
        generator: TextGenerator,
        prompts: Prompts,
        listen: Callable[[Progress], None],
    ) -> None:
        rules = AnswerRules(
            temperatures=config.temperatures,
            top_p=config.top_p,
            seed=config.seed,
            max_new_tokens=config.max_new_tokens,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        prompt_filter = PromptFilter(max_tokens=config.max_turn_tokens, evaluation=benchmark_prompts())
        for record in data.records():
            prompt_filter.keep(next(one["content"] for one in record["messages"] if one["role"] == "user"))
        self._config, self._data, self._prompts, self._listen = config, data, prompts, listen
        self._conversations = ConversationWriter(generator, prompts, prompt_filter, identity.tokenizer, rules)
        self._start, self._start_tokens = perf_counter(), data.totals.num_learnt_tokens
        self._in_work = Counter[str]()

    def fill(self) -> Result:
        while self._num_missing() > 0 and self._write_shard():
            pass
        totals = self._data.totals
        if totals.num_prompts == 0:
            raise RunError(f"{self._config.source} gave no prompt that can be used; {_reasons(totals.dropped)}")
        num_new = totals.num_learnt_tokens - self._start_tokens
        return Result(totals=totals, num_new_tokens=num_new, seconds=perf_counter() - self._start)

    def _wanted(self) -> int | None:
        config = self._config
        if config.num_prompts is None and config.num_tokens is None and config.source == SELF:
            return DEFAULT_NUM_PROMPTS
        return config.num_prompts

    def _num_missing(self) -> int:
        """Return the number of prompts of the next shard."""
        totals, size = self._data.totals, self._config.shard_size
        wanted, num_tokens = self._wanted(), self._config.num_tokens
        if num_tokens is not None:
            if totals.num_learnt_tokens >= num_tokens:
                return 0
            per_prompt = totals.num_learnt_tokens / max(1, totals.num_prompts) or self._config.max_new_tokens / 2
            size = min(size, max(1, round((num_tokens - totals.num_learnt_tokens) / per_prompt)))
        return size if wanted is None else min(size, wanted - totals.num_prompts)

    def _write_shard(self) -> bool:
        """Write one; False if the source is at its end."""
        dropped = Counter[str]()
        position = self._data.totals.position
        kept: list[Prompt] = []
        missing, num_fruitless = self._num_missing(), 0
        at_end = False
        while len(kept) < missing and not at_end:
            count = min(ROUND, 8 + 2 * (missing - len(kept)))
            found = self._prompts.take(position, count, self._told("prompts"))
            at_end = len(found) < count
            for prompt in found:
                position += 1
                fault = self._conversations.judge(prompt)
                num_fruitless = 0 if fault is None else num_fruitless + 1
                if fault is None:
                    kept.append(prompt)
                else:
                    dropped[fault] += 1
                if len(kept) == missing:
                    break
            if num_fruitless >= PATIENCE and self._config.source == SELF:
                raise RunError(f"{num_fruitless} prompts in a row cannot be used; {_reasons(dropped)}")
        conversations = self._conversations.answer(kept, dropped, self._told("answers"))
        if conversations or dropped:
            self._data.write(_shard(conversations, position, dropped))
        self._in_work.clear()
        return not at_end or len(kept) == missing

    def _told(self, stage: str) -> Callable[[int, int], None]:
        """Return a listener of the generator that reports the progress of the whole run."""

        def told(num_jobs: int, num_tokens: int) -> None:
            if stage == "answers":
                self._in_work.update(prompts=num_jobs, tokens=num_tokens)
            totals, seconds = self._data.totals, perf_counter() - self._start
            written = totals.num_learnt_tokens + self._in_work["tokens"]
            self._listen(
                Progress(
                    stage=stage,
                    num_prompts=totals.num_prompts + self._in_work["prompts"],
                    num_prompts_wanted=self._wanted(),
                    num_tokens=written,
                    num_tokens_wanted=self._config.num_tokens,
                    tokens_per_s=(written - self._start_tokens) / seconds,
                )
            )

        return told


def _shard(conversations: list[GrowingConversation], position: int, dropped: Counter[str]) -> Shard:
    return Shard(
        texts=[text for conversation in conversations for text in conversation.texts],
        records=[conversation.record for conversation in conversations],
        position=position,
        dropped=dropped,
        num_cut=sum(conversation.num_cut for conversation in conversations),
    )


def _reasons(dropped: "dict[str, int] | Counter[str] | Any") -> str:
    """Return the end of an error message."""
    most = ", ".join(f"{count} {reason}" for reason, count in Counter(dropped).most_common(3))
    return f"left out: {most or 'nothing'}; give other prompts with --source"
