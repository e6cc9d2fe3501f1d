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

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from outrider.data.contamination import find_contamination
from outrider.errors import ConfigError, RunError
from outrider.formats.store import TRAINING
from outrider.records.files import lock_directory, write_text, writing
from outrider.records.json_fields import read_json
from outrider.train.card import CARD, write_card
from outrider.train.loop import Progress, Trainer
from outrider.train.plan import Say, Setup, TrainPlan
from outrider.train.record import SCHEMA, adopt
from outrider.train.run_log import curve
from outrider.train.signals import stopping

__all__ = ["Setup", "accelerator", "train"]

SUMMARY = "summary.json"


def accelerator(device: str | None = None) -> Any:
    """Return the processes of this run, and the device of this one.

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
    """Train, and return the figures that end the run.

    Args:
        processes: from `accelerator`.
        say: told in a few sentences what will be done, in the main process.

    Raises:
        OutriderError: for settings, data or a directory that do not fit.
        KeyboardInterrupt: after the checkpoint that an interrupted run leaves (`Terminated` for SIGTERM); says how to
            resume.
    """
    say = say if processes.is_main_process else lambda sentence: None
    setup = setup.resolved(processes.device)
    with _run_directory(setup, directory, processes, resume):
        if resume and (known := _finished(directory, processes, say)) is not None:
            return known
        trainer = _trained(TrainPlan.of(setup, processes, say), directory, processes, resume, listen, say)
        return _reported(trainer, processes)


def _trained(
    plan: TrainPlan, directory: Path, processes: Any, resume: bool, listen: Callable[[Progress], None], say: Say
) -> Trainer:
    """Take every step that is left, and write final/."""
    say(f"writing to {directory}")
    with stopping() as stop:
        trainer = Trainer(plan, directory, processes, listen=listen, stop=stop)
        if resume:
            processes.wait_for_everyone()
            trainer.resume()
            say(f"resuming after step {trainer.progressed.step}")
        if not trainer.run():
            raise stop.kind(f"stopped after step {trainer.progressed.step}")
        trainer.finish()
    return trainer


@contextmanager
def _run_directory(setup: Setup, directory: Path, processes: Any, resume: bool) -> Iterator[None]:
    """Lock the directory, write or check its record, and let the sentence of an interruption say how to resume."""
    try:
        with _locked(directory) if processes.is_main_process else nullcontext():
            if processes.is_main_process:
                adopt(directory, setup.record(processes.num_processes), resume)
            yield
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped at once"
        raise type(stop)(f"{said}; resume with: outrider train {setup.method} --resume {directory}") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other process trees out of a run's directory."""
    with writing(directory):
        lock = lock_directory(directory, "training into", "a new --run-dir")
    try:
        yield
    finally:
        lock.release()


def _finished(directory: Path, processes: Any, say: Say) -> dict[str, Any] | None:
    """Return the report of a run whose final weights and figures are all there; write the cards that are missing."""
    try:
        report = read_json(directory / SUMMARY, RunError)
        schema, steps = report.text("schema"), report.integer("steps", low=0)
    except RunError:
        return None
    if schema != SCHEMA or not (directory / "final" / "config.json").is_file():
        return None
    say(f"{directory} is finished after step {steps}: its weights and figures stay as they are")
    if processes.is_main_process:
        _write_cards(directory, missing=True)
    return report.plain()


def _reported(trainer: Trainer, processes: Any) -> dict[str, Any]:
    """Return the figures of a finished run; write them and the model cards."""
    plan, directory = trainer.plan, trainer.directory
    setup, done = plan.setup, trainer.progressed
    report = {
        "schema": SCHEMA,
        "method": setup.method,
        "proposer": setup.objective.method,
        "target": setup.target.spec.name,
        "data": plan.data_report(),
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
    if processes.is_main_process:
        if setup.target.tokenizer is not None:
            report["overlap"] = find_contamination(setup.data.train, setup.target.tokenizer)
        write_text(directory / SUMMARY, json.dumps(report) + "\n")
        _write_cards(directory)
    return report


def _write_cards(directory: Path, *, missing: bool = False) -> None:
    """Put the model cards beside the weights; `missing` leaves those that are there."""
    for name in ("best", "final"):
        is_there = missing and all((directory / name / file).is_file() for file in (TRAINING, CARD))
        if (directory / name).is_dir() and not is_there:
            write_card(directory, name)
