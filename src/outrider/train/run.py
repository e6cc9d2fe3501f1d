"""A whole training run: from an objective's name and texts to a checkpoint in the published layout.

    runs/train-.../config.json      what the run is (`record.py`)
                   log.jsonl        one line per step and measurement; the same in tensorboard/
                   checkpoints/     to resume from (`checkpoints.py`)
                   best/            the weights with the best predicted tau on held-out texts, ready to be loaded
                   final/           the weights after the last step
                   summary.json     the figures of the finished run; from them, the model cards (`card.py`) in both

Example: `train(Setup(...), Path("runs/try"), accelerator())` trains, and
`load_proposer(method, target, checkpoint="runs/try/final")` runs what was trained.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from outrider.data.contamination import find_contamination
from outrider.data.texts import Corpus, Data, Texts, count
from outrider.errors import ConfigError, RunError
from outrider.formats.store import TRAINING, fingerprint
from outrider.formats.token_ranking import rank_tokens
from outrider.records.files import lock_directory, size, write_text, writing
from outrider.records.json_fields import read_json
from outrider.records.provenance import collect_manifest, template_hash
from outrider.target import Target
from outrider.train.batch import fill_rows
from outrider.train.card import CARD, write_card
from outrider.train.config import TrainConfig
from outrider.train.estimate import Estimate, num_parameters
from outrider.train.evaluate import prompts_of
from outrider.train.feature_store import FeatureStore, store_key
from outrider.train.features import FeatureReader, Live, Source, Stored
from outrider.train.loop import Progress, Task, Trainer
from outrider.train.objective import Objective, Teacher
from outrider.train.record import SCHEMA, adopt, plain
from outrider.train.run_log import curve
from outrider.train.schedule import Micro, plan
from outrider.train.signals import stopping

__all__ = ["Features", "Setup", "accelerator", "train"]

Features = Literal["live", "cached"]
Say = Callable[[str], None]
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a run is made of.

    method        the objective's name in `OBJECTIVES`
    data_dir      where features are cached, in a folder that is named after what they are of
    feature_dir   another place for them; refused if it holds features of something else
    options       kept in the run's record for whoever resumes it
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


def accelerator(device: str | None = None) -> Any:
    """The processes of this run, and the device of this one.

    Raises:
        ConfigError: if `accelerate` is not installed, or the device is not one that it gives.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ConfigError("training runs on accelerate, which is not installed; pip install outrider[train]") from error
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device={device} must be cpu or cuda; choose among GPUs with CUDA_VISIBLE_DEVICES")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda needs a GPU and a PyTorch that sees it; leave the device out or use cpu")
    return Accelerator(mixed_precision="no", cpu=device == "cpu" or not torch.cuda.is_available())


def train(
    setup: Setup,
    directory: Path,
    processes: Any,
    *,
    resume: bool = False,
    listen: Callable[[Progress], None] = lambda progress: None,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Train, and give the figures that end the run.

    Args:
        processes: from `accelerator`.
        say: told in a few sentences what will be done, in the main process.

    Raises:
        OutriderError: for settings, data or a directory that do not fit.
        KeyboardInterrupt: after the checkpoint that an interrupted run leaves (`Terminated` for SIGTERM); says how to
            resume.
    """
    say = say if processes.is_main_process else lambda sentence: None
    setup = replace(setup, config=_resolved(setup.config, processes.device))
    with _locked(directory) if processes.is_main_process else nullcontext(), _resumable(setup.method, directory):
        if processes.is_main_process:
            adopt(directory, _record(setup, processes.num_processes), resume)
        if resume and (known := _finished(directory)) is not None:
            say(f"{directory} is finished after step {known['steps']}: its weights and figures stay as they are")
            _write_cards(directory, processes, missing=True)
            return known
        task = _task(setup, processes, say)
        say(f"writing to {directory}")
        with stopping() as stop:
            trainer = Trainer(task, setup.config, directory, processes, listen=listen, stop=stop)
            if resume:
                processes.wait_for_everyone()
                trainer.resume()
                say(f"resuming after step {trainer.progressed.step}")
            if not trainer.run():
                raise stop.kind(f"stopped after step {trainer.progressed.step}")
            trainer.finish()
        report = _report(setup, directory, trainer)
        if processes.is_main_process and setup.target.tokenizer is not None:
            report["overlap"] = find_contamination(setup.data.train, setup.target.tokenizer)
        if processes.is_main_process:
            write_text(directory / SUMMARY, json.dumps(report) + "\n")
        _write_cards(directory, processes)
        return report


@contextmanager
def _resumable(method: str, directory: Path) -> Iterator[None]:
    """Let the sentence of an interruption say how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped at once"
        raise type(stop)(f"{said}; resume with: outrider train {method} --resume {directory}") from None


def _finished(directory: Path) -> dict[str, Any] | None:
    """The report of a run whose final weights and figures are all there."""
    try:
        report = read_json(directory / SUMMARY, RunError)
        schema, _ = report.text("schema"), report.integer("steps", low=0)
    except RunError:
        return None
    is_whole = schema == SCHEMA and (directory / "final" / "config.json").is_file()
    return report.plain() if is_whole else None


def _write_cards(directory: Path, processes: Any, *, missing: bool = False) -> None:
    """Put the model cards beside the weights; `missing` leaves those that are there."""
    for name in ("best", "final"):
        is_there = missing and all((directory / name / file).is_file() for file in (TRAINING, CARD))
        if processes.is_main_process and (directory / name).is_dir() and not is_there:
            write_card(directory, name)


def _resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    if config.precision != "auto":
        return config
    return replace(config, precision="bf16" if device.type == "cuda" else "fp32")


def _task(setup: Setup, processes: Any, say: Say) -> Task:
    """Build the network and everything it reads, and say what will be done."""
    config, data = setup.config, setup.data
    _check_data(data)
    corpus = count(data.train, setup.target.spec.vocab_size)
    teacher = Teacher.of(setup.target, processes.device)
    objective = setup.objective.create(teacher, setup.settings, corpus, config.seed)
    objective.module.to(processes.device)
    reader = FeatureReader(setup.target, objective.feature_layers, config.row_length)
    lengths = [data.train.num_tokens(index) for index in range(len(data.train))]
    schedule = plan(lengths, config, processes.num_processes)
    cut = f"; {schedule.num_cut} texts are cut to {config.row_length} tokens" if schedule.num_cut else ""
    say(f"{setup.method} for {setup.target.spec.name}: {num_parameters(objective) / 1e6:.2f} million trained weights")
    say(_described(data, corpus))
    say(
        f"{len(schedule.steps)} steps, {schedule.num_tokens:,} tokens; a step is {processes.num_processes} x "
        f"{config.accumulation} passes of {config.rows} rows of {config.row_length} tokens in {config.precision}{cut}"
    )
    live = setup.features == "live"
    say(f"memory on {processes.device}: {Estimate.of(teacher, objective, config, reader, live)}")
    shown = min(len(data.held_out), config.eval_texts)
    limit = config.real_tau_prompts if config.real_tau_every else 0
    room = setup.target.spec.max_positions - config.real_tau_tokens
    return Task(
        objective=objective,
        target=setup.target,
        train=_source(setup, "train", data.train, reader, processes, say),
        held_out=_source(setup, "held_out", data.held_out, reader, processes, say),
        schedule=schedule,
        micros=_micros([data.held_out.num_tokens(index) for index in range(shown)], config),
        prompts=prompts_of(data.held_out, limit, max(1, room)),
        ranking_N=rank_tokens(setup.target, corpus.counts_V),
    )


def _described(data: Data, corpus: Corpus) -> str:
    tokens = sum(data.train.num_tokens(index) for index in range(len(data.train)))
    return (
        f"{len(data.train):,} texts of {tokens:,} tokens, {corpus.num_tokens:,} written by the target; "
        f"{len(data.held_out):,} texts held out"
    )


def _check_data(data: Data) -> None:
    for name, texts in (("to train on", data.train), ("held out", data.held_out)):
        if len(texts) == 0:
            raise ConfigError(f"the data has no text {name}; synthesize more, or hold out another part")


def _source(setup: Setup, part: str, texts: Texts, reader: FeatureReader, processes: Any, say: Say) -> Source:
    """Texts with features, which are captured now if they are to be cached."""
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
    """Held-out texts in their order, packed."""
    rows = [tuple(row) for row in fill_rows([min(length, config.row_length) for length in lengths], config.row_length)]
    return tuple(tuple(rows[at : at + config.rows]) for at in range(0, len(rows), config.rows))


def _record(setup: Setup, num_processes: int) -> dict[str, Any]:
    spec, data = setup.target.spec, setup.data
    manifest = collect_manifest(
        seed=setup.config.seed,
        settings=plain(setup.settings),
        workload_hash=data.train.identity,
        template_hash=template_hash(setup.target.tokenizer),
    )
    return {
        "method": setup.method,
        "settings": setup.settings,
        "train": setup.config,
        "target": {"fingerprint": fingerprint(setup.target), "dtype": str(spec.dtype).removeprefix("torch.")},
        "data": {"train": data.train.identity, "held_out": data.held_out.identity},
        "num_processes": num_processes,
        "options": setup.options,
        "provenance": manifest,
    }


def _report(setup: Setup, directory: Path, trainer: Trainer) -> dict[str, Any]:
    done = trainer.progressed
    return {
        "schema": SCHEMA,
        "method": setup.method,
        "proposer": setup.objective.method,
        "target": setup.target.spec.name,
        "data": {
            "texts": len(setup.data.train),
            "tokens": sum(setup.data.train.num_tokens(index) for index in range(len(setup.data.train))),
            "learnt_tokens": count(setup.data.train, setup.target.spec.vocab_size).num_tokens,
            "held_out_texts": len(setup.data.held_out),
        },
        "run": str(directory),
        "checkpoint": str(directory / "final"),
        "steps": done.step,
        "tokens": done.num_tokens,
        "seconds": done.seconds,
        "tokens_per_s": done.num_tokens / done.seconds if done.seconds else None,
        "best_tau": done.best_tau,
        "held_out": None if trainer.held_out is None else asdict(trainer.held_out),
        "decoded": None if trainer.decoded is None else asdict(trainer.decoded),
        "loss_curve": curve(directory),
    }


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process tree at a time works in a run's directory."""
    with writing(directory):
        lock = lock_directory(directory, "training into", "a new --run-dir")
    try:
        yield
    finally:
        lock.release()
