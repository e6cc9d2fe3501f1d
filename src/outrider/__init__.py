"""Outrider: speculative decoding of language models, one loop for every method.

    import outrider

    target = outrider.load_target("smollm2-135m")
    proposer = outrider.load_proposer("ngram", target)
    engine = outrider.Engine(target, proposer, max_batch=4)
    for event in engine.stream(["Why is the sky blue?"], max_new_tokens=128):
        print(event.text, end="")

Reading order: `engine.py` (the loop), `draft.py`, `verify.py`, `sampling.py`, `cache.py`, `target.py`, `proposer.py`.
"""

from outrider.batch import Event
from outrider.draft import Draft, Tree
from outrider.engine import Completion, Engine
from outrider.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    LosslessnessError,
    OutriderError,
    RequestError,
    RunError,
)
from outrider.proposer import Commit, Proposer, Room, Session, SessionPlan
from outrider.proposers import load_proposer, proposer_names
from outrider.sampling import Sampling
from outrider.target import Forward, Target, TargetSession, TargetSpec
from outrider.targets import load_target

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "CheckpointError",
    "Commit",
    "Completion",
    "ConfigError",
    "Draft",
    "Engine",
    "Event",
    "Forward",
    "LosslessnessError",
    "OutriderError",
    "Proposer",
    "RequestError",
    "Room",
    "RunError",
    "Sampling",
    "Session",
    "SessionPlan",
    "Target",
    "TargetSession",
    "TargetSpec",
    "Tree",
    "load_proposer",
    "load_target",
    "proposer_names",
]
