"""Checkpoints of a training run: what is needed to go on, written so that a crash costs only the work since the last.

    checkpoints/step-000200/model.safetensors        trained weights, fp32
                            optimizer.safetensors    what AdamW or Muon keeps of every weight
                            state.json               step, tokens, best tau; size and SHA-256 of the two files

A checkpoint is made in a directory of another name, synced, and renamed. It is *good* if `state.json` can be read and
both files are what it says. `newest` takes the last good one and passes over the others. There is no state of random
generators to keep: every draw of a run is a function of the seed and the place where it is made (`schedule.generator`).

Example: `newest(run / "checkpoints")` after a crash while step 400 was being written gives step 200.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from outrider.errors import RunError
from outrider.records.files import replacing_directory, sha256_of, write_tensors, write_text, writing
from outrider.records.json_fields import Fields, read_json

__all__ = ["Progressed", "load_checkpoint", "newest", "save_checkpoint"]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SCHEMA = "outrider.train/1"
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""State of AdamW, and of Muon."""
FILES = (MODEL, OPTIMIZER)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """The progress of a run.

    step        optimiser steps taken
    num_tokens  tokens read, padding not counted
    seconds     training time so far, over all resumptions
    best_tau    best predicted tau on held-out texts so far, the one in best/
    """

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    best_tau: float = 0.0


def save_checkpoint(root: Path, module: nn.Module, optimizer: Optimizer, progressed: Progressed, keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`.

    Raises:
        RunError: if the disk is full; earlier checkpoints are untouched.
    """
    path = root / _name(progressed.step)
    with writing(path), replacing_directory(path) as part:
        write_tensors(part / MODEL, _weights(module))
        write_tensors(part / OPTIMIZER, _moments(module, optimizer))
        files = {name: {"bytes": (part / name).stat().st_size, "sha256": sha256_of(part / name)} for name in FILES}
        write_text(part / STATE, json.dumps({"schema": SCHEMA, **asdict(progressed), "files": files}, indent=2) + "\n")
    for old in _all(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(root: Path) -> Path | None:
    """Return the last good checkpoint, or None."""
    for path in _all(root):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("%s is passed over: %s", path, fault)
    return None


def load_checkpoint(path: Path, module: nn.Module, optimizer: Optimizer) -> Progressed:
    """Put weights and moments back.

    Raises:
        RunError: if it does not fit the network.
    """
    stored, wanted = load_file(path / MODEL), _weights(module)
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in stored or name not in wanted or stored[name].shape != wanted[name].shape:
            raise RunError(f"{path} is of another network: '{name}' differs; resume with the settings of the run")
        wanted[name].data.copy_(stored[name])
    _restore(module, optimizer, load_file(path / OPTIMIZER))
    return _progressed(read_json(path / STATE, RunError, "delete that checkpoint"))


def _all(root: Path) -> list[Path]:
    """Return all checkpoints, the newest first."""
    # by length first: step-1000000 comes behind step-999999
    return sorted(root.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def _fault(path: Path) -> str | None:
    """Return why a checkpoint is not good, or None."""
    try:
        state = read_json(path / STATE, RunError, "delete that checkpoint")
        state.text("schema", choices=[SCHEMA])
        progressed, files = _progressed(state), state.section("files")
        if path.name != _name(progressed.step):
            return f"its {STATE} is of step {progressed.step}"
        for name in FILES:
            known = files.section(name)
            size, digest = known.integer("bytes"), known.text("sha256")
            if (path / name).stat().st_size != size or sha256_of(path / name) != digest:
                return f"{name} is damaged"
    except RunError as error:
        return str(error)
    except OSError as error:
        return f"a file that {STATE} names cannot be read ({error.strerror})"
    return None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _progressed(state: Fields) -> Progressed:
    return Progressed(
        step=state.integer("step", low=0),
        num_tokens=state.integer("num_tokens", low=0),
        seconds=state.number("seconds", low=0.0),
        best_tau=state.number("best_tau", low=0.0),
    )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; one that has two names is taken once."""
    parameters = dict(module.named_parameters())
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return parameters | {name: tensor for name, tensor in module.state_dict().items() if name not in names}


def _moments(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": tensor
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
        for moment, tensor in optimizer.state[parameter].items()
    }


def _restore(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        found = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS if f"{name}.{moment}" in tensors}
        if found:
            step = {"step": found.pop("step").to(torch.float32)} if "step" in found else {}
            optimizer.state[parameter] = step | {key: moment.to(parameter.device) for key, moment in found.items()}
