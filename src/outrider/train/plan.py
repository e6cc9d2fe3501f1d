"""Everything that a training run reads, made ready before its first step.

    Setup       what was asked for: method, settings, target, texts, and the settings of the loop
    TrainPlan   the network, the texts with their features, the schedule, and what progress is measured on

Example: `TrainPlan.of(setup, accelerator("cpu")).schedule.num_tokens` is the number of tokens that the run will read.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from outrider.data.texts import Corpus, Data, Texts, count
from outrider.errors import ConfigError
from outrider.formats.store import fingerprint
from outrider.formats.token_ranking import rank_tokens
from outrider.loop.free_memory import free_bytes
from outrider.records.files import size
from outrider.records.provenance import collect_manifest, template_hash
from outrider.target import Target
from outrider.train.batch import fill_rows
from outrider.train.config import TrainConfig
from outrider.train.estimate import Estimate, num_parameters
from outrider.train.evaluate import prompts_of
from outrider.train.feature_store import FeatureStore, store_key
from outrider.train.features import FeatureReader, Live, Source, Stored
from outrider.train.objective import Objective, Teacher
from outrider.train.record import plain
from outrider.train.schedule import Micro, Schedule, plan

__all__ = ["Features", "Say", "Setup", "TrainPlan"]

Features = Literal["live", "cached"]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """The request for a run.

    method        the objective's name in `OBJECTIVES`
    data_dir      directory of cached features, in a folder that is named after their identity
    feature_dir   another directory for them; refused if it holds features of something else
    options       options of the command line, kept in the run's record for its resumption
    """

    method: str
    objective: type[Objective]
    settings: Any
    target: Target
    data: Data
    config: TrainConfig
    features: Features = "live"
    data_dir: Path = Path("data")
    feature_dir: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, device: torch.device) -> Self:
        """Return this request with the settings decided that follow from the device and the method."""
        config = self.config.resolved(device.type, starts_trained=self.objective.starts_trained(self.settings))
        return replace(self, config=config)

    def record(self, num_processes: int) -> dict[str, Any]:
        """Return what `record.py` keeps of this request."""
        manifest = collect_manifest(
            seed=self.config.seed,
            settings=plain(self.settings),
            workload_hash=self.data.train.identity,
            template_hash=template_hash(self.target.tokenizer),
        )
        dtype = str(self.target.spec.dtype).removeprefix("torch.")
        return {
            "method": self.method,
            "settings": self.settings,
            "train": self.config,
            "target": {
                "fingerprint": fingerprint(self.target),
                "dtype": dtype,
                "weights": self.target.spec.weights,
            },
            "data": {"train": self.data.train.identity, "held_out": self.data.held_out.identity},
            "num_processes": num_processes,
            "options": self.options,
            "provenance": manifest,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainPlan:
    """A network, what it learns from, and what it is measured on.

    corpus        counts of the tokens that the target wrote in the training texts
    schedule      steps over the training texts
    micros        packed rows of the held-out texts
    prompts       prompts of held-out texts, for decoding; empty if that is not wanted
    ranking_N     tokens that the target wrote, most frequent first
    """

    setup: Setup
    objective: Objective
    corpus: Corpus
    train: Source
    held_out: Source
    schedule: Schedule
    micros: tuple[Micro, ...]
    prompts: list[list[int]]
    ranking_N: Tensor

    @classmethod
    def of(cls, setup: Setup, processes: Any, say: Say = lambda sentence: None) -> Self:
        """Build the network and everything it reads; features that are to be cached are computed here.

        Args:
            processes: from `accelerator`.
            say: told in a few sentences what will be done.

        Raises:
            OutriderError: for settings or data that do not fit.
        """
        config, data, target = setup.config, setup.data, setup.target
        for name, texts in (("to train on", data.train), ("held out", data.held_out)):
            if len(texts) == 0:
                raise ConfigError(f"the data has no text {name}; synthesize more, or hold out another part")
        corpus = count(data.train, target.spec.vocab_size)
        teacher = Teacher.of(target, processes.device)
        objective = setup.objective.create(teacher, setup.settings, corpus, config.seed)
        objective.module.to(processes.device)
        reader = FeatureReader(target, objective.feature_layers, config.row_length)
        schedule = plan(_lengths(data.train), config, processes.num_processes)
        say(f"{setup.method} for {target.spec.name}: {num_parameters(objective) / 1e6:.2f} million trained weights")
        _describe(setup, corpus, schedule, processes, say)
        is_live = setup.features == "live"
        estimate = Estimate.of(teacher, objective, config, reader, is_live)
        say(f"memory on {processes.device}: {estimate}")
        estimate.check_fits(config, free_bytes(processes.device))
        longest_prompt = max(1, target.spec.max_positions - config.real_tau_tokens)
        return cls(
            setup=setup,
            objective=objective,
            corpus=corpus,
            train=_source(setup, "train", data.train, reader, processes, say),
            held_out=_source(setup, "held_out", data.held_out, reader, processes, say),
            schedule=schedule,
            micros=_micros(_lengths(data.held_out)[: config.eval_texts], config),
            prompts=prompts_of(data.held_out, config.real_tau_prompts if config.real_tau_every else 0, longest_prompt),
            ranking_N=rank_tokens(target, corpus.counts_V),
        )

    def data_report(self) -> dict[str, int]:
        """Return the sizes of the data, for the run's summary."""
        data = self.setup.data
        return {
            "texts": len(data.train),
            "tokens": sum(_lengths(data.train)),
            "learnt_tokens": self.corpus.num_tokens,
            "held_out_texts": len(data.held_out),
        }


def _lengths(texts: Texts) -> list[int]:
    return [texts.num_tokens(index) for index in range(len(texts))]


def _describe(setup: Setup, corpus: Corpus, schedule: Schedule, processes: Any, say: Say) -> None:
    config, data = setup.config, setup.data
    say(
        f"{len(data.train):,} texts of {sum(_lengths(data.train)):,} tokens, {corpus.num_tokens:,} written by the "
        f"target; {len(data.held_out):,} texts held out"
    )
    cut = f"; {schedule.num_cut} texts are cut to {config.row_length} tokens" if schedule.num_cut else ""
    say(
        f"{len(schedule.steps)} steps, {schedule.num_tokens:,} tokens; a step is {processes.num_processes} x "
        f"{config.accumulation} passes of {config.rows} rows of {config.row_length} tokens in {config.precision}, "
        f"{config.optimizer} at {config.peak:g}{cut}"
    )


def _source(setup: Setup, part: str, texts: Texts, reader: FeatureReader, processes: Any, say: Say) -> Source:
    """Return texts with features, which are captured now if they are to be cached."""
    if setup.features == "live" or not reader.feature_layers:
        return Live(texts, reader)
    own = hashlib.sha256(json.dumps(store_key(reader, texts), sort_keys=True).encode()).hexdigest()[:12]
    place = setup.data_dir / f"features-{own}" if setup.feature_dir is None else setup.feature_dir / part
    store = FeatureStore(place, reader, texts)
    missing = store.missing
    processes.wait_for_everyone()  # all look before any of them writes
    where = f"in {store.directory}"
    if missing:
        say(f"capturing features: {size(store.num_bytes(missing))} {where}")
        if processes.is_main_process:
            store.begin()
        processes.wait_for_everyone()
        store.write(missing[processes.process_index :: processes.num_processes])
        processes.wait_for_everyone()
    else:
        say(f"cached features: {size(store.num_bytes(range(store.num_shards)))} {where}")
    store.check()
    return Stored(texts, store, reader.max_tokens)


def _micros(lengths: list[int], config: TrainConfig) -> tuple[Micro, ...]:
    """Return held-out texts in their order, packed."""
    rows = [tuple(row) for row in fill_rows([min(length, config.row_length) for length in lengths], config.row_length)]
    return tuple(tuple(rows[at : at + config.rows]) for at in range(0, len(rows), config.rows))
