"""`outrider train METHOD`: train a drafter for a frozen target on texts that the target wrote.

A method's own settings are the fields of its objective's `Config`; they stand beside those of the loop.
"""

import ast
import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from outrider.cli.terminal import end_with, progress
from outrider.models.weight_kinds import WeightsChoice

if TYPE_CHECKING:
    from outrider.train.loop import Progress

__all__ = ["Train", "spelled", "with_methods"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a drafter: eagle3, peagle, dflash, medusa, pard, mtp or a draft model."""


@dataclass(frozen=True, kw_only=True)
class TrainMethod:
    """Options of every method, besides the settings of the loop and of the method."""

    data: tuple[Path, ...] = ()
    """Data sets: directories that outrider synthesize wrote."""
    target: str = "smollm2-135m"
    """Target that wrote them: a directory, a GGUF file, a hub id, or smollm2-135m."""
    dtype: str = "bfloat16"
    """Dtype of the target's cache and of its plain weights, the one that it will run with."""
    weights: WeightsChoice = "stored"
    """The target's weights on the CPU: stored as the file holds them, bf16 widened, int8 or int4 quantised while
    loading; those that it will run with."""
    heldout_fraction: float | None = None
    """Part of the prompts to hold out; by default the part that the data set records."""
    features: Literal["live", "cached"] = "live"
    """Source of the target's states: live computes them in each step, cached keeps them on disk for further runs."""
    feature_dir: Path | None = None
    """Directory of cached features; by default a folder in the first data set."""
    run_dir: Path | None = None
    """Directory of the run; by default a new one under runs/."""
    resume: Path | None = None
    """Resume this run, with all its settings."""
    device: str | None = None
    """cpu or cuda; by default the GPU if there is one."""
    threads: int | None = None
    """CPU threads; by default PyTorch's number."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def __post_init__(self) -> None:
        from outrider.errors import check_setting

        check_setting(self, "threads", self.threads is None or self.threads >= 1, "at least 1")
        fits = self.heldout_fraction is None or 0 <= self.heldout_fraction < 1
        check_setting(self, "heldout_fraction", fits, "at least 0 and below 1")

    def run(self) -> None:
        from outrider.errors import ConfigError
        from outrider.train.record import read_record
        from outrider.train.run import accelerator

        if self.resume is None and not self.data:
            raise ConfigError("there is nothing to train on; give --data DIR, as written by outrider synthesize")
        if self.resume is not None and self.run_dir is not None:
            raise ConfigError(f"--resume {self.resume} goes on in that directory; leave out --run-dir")
        command = self if self.resume is None else _resumed(self, read_record(self.resume), self.resume)
        processes = accelerator(command.device)
        try:
            report = _train(command, self.resume, processes)
        finally:
            processes.end_training()
        if processes.is_main_process:
            end_with(
                json.dumps(report), f"checkpoint: {report['checkpoint']}; all figures: {report['run']}/summary.json"
            )


def spelled(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the method under the name that this command knows it by.

    Raises:
        ConfigError: for a method that has no weights to train, or an unknown one.
    """
    from outrider.train.objectives import objective_name

    method = list(arguments[:1])
    return [objective_name(one) if not one.startswith("-") else one for one in method] + list(arguments[1:])


def with_methods(words: Sequence[str]) -> Any:
    """Build `Train` with a subcommand for every objective; import only the one that the words name.

    The others stand there by name, with the first sentence of their module, so that help is instant.
    """
    from outrider.train.objectives import OBJECTIVES

    subcommands = []
    for name in OBJECTIVES:
        parts = _settings_of(name) if name in words[:1] else []
        command = make_dataclass(name, parts, bases=(TrainMethod,), frozen=True, kw_only=True)
        command.__doc__ = _first_sentence(name)
        subcommands.append(Annotated[command, tyro.conf.subcommand(name, prefix_name=False)])
    choice: Any = Annotated[Union[tuple(subcommands)], tyro.conf.arg(name="")]  # noqa: UP007
    command = make_dataclass("Train", [("method", choice)], frozen=True, kw_only=True)
    command.__doc__ = Train.__doc__
    command.run = lambda self: self.method.run()  # type: ignore[attr-defined]
    return command


def _settings_of(name: str) -> list[Any]:
    """Return the fields of a method's command: the settings of its objective and of the loop."""
    from outrider.train.config import TrainConfig

    config, flat = _objective(name).Config, tyro.conf.arg(name="")
    return [
        ("settings", Annotated[config, flat], field(default_factory=config)),
        ("loop", Annotated[TrainConfig, flat], field(default_factory=TrainConfig)),
    ]


def _train(command: Any, resume: Path | None, processes: Any) -> dict[str, Any]:
    """Load everything and run; `command` is one of the classes that `with_methods` makes."""
    from outrider.data.shards import Dataset
    from outrider.targets import load_target
    from outrider.train.run import Setup, train

    _set_threads(command.threads)
    name = type(command).__name__
    is_quiet = not processes.is_main_process
    with progress(is_quiet=is_quiet) as bar:
        target = load_target(
            command.target,
            dtype=command.dtype,
            weights=command.weights,
            device=str(processes.device),
            trust_remote_code=command.trust_remote_code,
            listen=lambda at: bar.show(*at),
        )
    setup = Setup(
        method=name,
        objective=_objective(name),
        settings=command.settings,
        target=target,
        data=Dataset.open(*command.data, target=target).split(command.heldout_fraction),
        config=command.loop,
        features=command.features,
        data_dir=command.data[0],
        feature_dir=command.feature_dir,
        options={field.name: getattr(command, field.name) for field in fields(TrainMethod) if field.name not in OWN},
    )
    directory = _shared(resume or command.run_dir or _new_directory(name))
    with progress(is_quiet=is_quiet) as bar:
        return train(
            setup,
            directory,
            processes,
            resume=resume is not None,
            listen=lambda at: bar.show(at.step, at.num_steps, described(at)),
            say=bar.say,
        )


OWN = ("run_dir", "resume", "trust_remote_code")


def _objective(name: str) -> Any:
    from importlib import import_module

    from outrider.train.objectives import OBJECTIVES

    module, _, attribute = OBJECTIVES[name].partition(":")
    return getattr(import_module(module), attribute)


def _resumed(command: Any, record: Mapping[str, Any], directory: Path) -> Any:
    """Return the command that started the run.

    Raises:
        ConfigError: for a setting that was given and differs.
        RunError: for a record that is damaged.
    """
    from outrider.errors import ConfigError
    from outrider.train.record import checked_settings

    if type(command).__name__ != record["method"]:
        raise ConfigError(f"that run trains {record['method']}; resume it with outrider train {record['method']}")
    own = TrainMethod(**{one.name: getattr(command, one.name) for one in fields(TrainMethod)})
    changes = {}
    for given, part in ((own, "options"), (command.settings, "settings"), (command.loop, "train")):
        stored = checked_settings(type(given), record, part, directory)
        changes[part] = _merged(given, stored, record[part].keys() - set(OWN))
    options = {one.name: getattr(changes["options"], one.name) for one in fields(TrainMethod)}
    return replace(command, settings=changes["settings"], loop=changes["train"], **options)


def _merged(given: Any, stored: Any, names: Set[str]) -> Any:
    """Return settings with the stored values under these names."""
    from outrider.errors import ConfigError
    from outrider.train.record import plain

    changes, default = {}, type(given)()
    for name in (one.name for one in fields(given) if one.name in names):
        kept, value = getattr(stored, name), getattr(given, name)
        if value not in (kept, getattr(default, name)):
            raise ConfigError(
                f"the run was started with {name}={plain(kept)}, not {value}; leave the option out, or start a new run"
            )
        changes[name] = kept
    return replace(given, **changes)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        os.environ["OUTRIDER_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def _new_directory(name: str) -> Path:
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"train-{name}-{stamp}"


def _shared(directory: Path) -> Path:
    """Return the main process's choice, in all processes."""
    from accelerate.utils import broadcast_object_list

    # the time in its name may differ between processes
    return Path(broadcast_object_list([str(directory)])[0])


def _first_sentence(name: str) -> str:
    """Return the first sentence of an objective's module, read from its source."""
    from outrider.train.objectives import OBJECTIVES

    module = OBJECTIVES[name].partition(":")[0].removeprefix("outrider.")
    file = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    paragraph = (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".") + "."


def described(at: "Progress") -> str:
    """Return one line: loss, speed, time left, and the last figures on held-out texts."""
    loss = "-" if at.loss is None else f"{at.loss:.3f}"
    minutes, seconds = divmod(round(at.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}:{minutes:02}:{seconds:02} left", f"{at.tokens_per_s:,.0f} tokens/s", f"loss {loss}"]
    if at.held_out is not None:
        accepted = " ".join(f"{one:.2f}" for one in at.held_out.conditional)
        parts.append(f"tau {at.held_out.tau:.2f} ({accepted})")
    if at.decoded is not None:
        parts.append(f"decoded tau {at.decoded.tau:.2f}")
    return " · ".join(parts)
