"""Outrider: speculative decoding of language models, one loop for every method.

    import outrider

    target = outrider.load_target("smollm2-135m")
    proposer = outrider.load_proposer("ngram", target)
    engine = outrider.Engine(target, proposer, max_batch=4)
    for event in engine.stream(["Why is the sky blue?"], outrider.SamplingParams(max_tokens=128)):
        print(event.text, end="")

Reading order: `engine.py` (the loop), `draft.py`, `verify.py`, `sampling.py`, `cache.py`, `target.py`, `proposer.py`.

Names are imported when they are first used, so that `import outrider` and `outrider --help` do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.draft import Draft, Tree
    from outrider.engine import Engine
    from outrider.errors import (
        CapacityError,
        CheckpointError,
        ConfigError,
        EngineBusyError,
        LosslessnessError,
        OutriderError,
        ProposerError,
        RequestError,
        RunError,
    )
    from outrider.params import SamplingParams, StructuredOutputs
    from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
    from outrider.proposers import load_proposer, proposer_names
    from outrider.requests.events import Completion, Event
    from outrider.target import Forward, Target, TargetSession, TargetSpec
    from outrider.targets import load_target
    from outrider.tuning.tune import tune

__all__ = [
    "CapacityError",
    "CheckpointError",
    "Commit",
    "Completion",
    "ConfigError",
    "Draft",
    "DraftLimit",
    "Engine",
    "EngineBusyError",
    "Event",
    "Forward",
    "LosslessnessError",
    "OutriderError",
    "Proposer",
    "ProposerError",
    "ProposerSpec",
    "RequestError",
    "RunError",
    "SamplingParams",
    "Session",
    "SessionPlan",
    "StructuredOutputs",
    "Target",
    "TargetSession",
    "TargetSpec",
    "Tree",
    "load_proposer",
    "load_target",
    "proposer_names",
    "tune",
]

_HOMES = {
    "draft": ("Draft", "Tree"),
    "engine": ("Engine",),
    "requests.events": ("Completion", "Event"),
    "errors": (
        "CapacityError",
        "CheckpointError",
        "ConfigError",
        "EngineBusyError",
        "LosslessnessError",
        "OutriderError",
        "ProposerError",
        "RequestError",
        "RunError",
    ),
    "params": ("SamplingParams", "StructuredOutputs"),
    "proposer": ("Commit", "DraftLimit", "Proposer", "ProposerSpec", "Session", "SessionPlan"),
    "proposers": ("load_proposer", "proposer_names"),
    "target": ("Forward", "Target", "TargetSession", "TargetSpec"),
    "targets": ("load_target",),
    "tuning.tune": ("tune",),
}
_MODULES = {name: f"outrider.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("outrider.env").version()
    if name not in _MODULES:
        raise AttributeError(f"module 'outrider' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
