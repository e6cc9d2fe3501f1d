"""Set-up of a service: the target, the method, and the engines that may be asked for.

The method that serves has an engine with all slots. Every other method whose weights are on this machine can be named
by a request (`outrider_method`); its engine, with a single slot, opens at the first such request. All share the
target's weights, and plain decoding runs in the main engine with a limit of no nodes.

Example: `opened(target, ServeConfig(method="none")).methods` begins with "none" and lists the lookups.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from outrider.budget import BudgetChoice
from outrider.engine import Engine, Recorder
from outrider.errors import CheckpointError, ConfigError
from outrider.proposers import proposer_class, proposer_names
from outrider.proposers.auto import named_or_picked
from outrider.proposers.method_spec import MethodSpec, load_method, method_specs, with_heads
from outrider.serve.config import ServeConfig
from outrider.serve.engines.lane import Lane, Send, open_engine
from outrider.serve.metrics import Metrics
from outrider.serve.service import Service
from outrider.target import Target

__all__ = ["opened"]


def opened(target: Target, config: ServeConfig) -> Service:
    """Open the service of a target.

    Raises:
        ConfigError, CheckpointError: for a method that cannot be used.
        CapacityError: if the engine does not fit in memory.
    """
    pick = named_or_picked(config.method, target)
    proposer = load_method(pick.spec, target)
    budget: BudgetChoice = config.budget or pick.budget
    main = partial(open_engine, target, proposer, config, budget)

    def lanes(metrics: Metrics) -> Mapping[str, Callable[[Send], Lane]]:
        open = {pick.spec.label: main}
        open |= {
            spec.label: partial(_other, target, spec, config) for spec in _others(target) if spec.label not in open
        }
        return {label: partial(Lane, one, metrics.record) for label, one in open.items()}

    facts = {"num_nodes": proposer.spec.max_nodes, "budget": budget}
    return Service(target, config, pick.spec.label, lanes, facts)


def _others(target: Target) -> Iterator[MethodSpec]:
    """Yield the methods that can be loaded here under their names alone."""
    for name in proposer_names():
        if proposer_class(name).scripted:
            continue
        try:
            yield from with_heads(method_specs([name]), target)
        except (ConfigError, CheckpointError):
            continue  # it needs a checkpoint that is not here


def _other(target: Target, spec: MethodSpec, config: ServeConfig, caps: Mapping[int, int], record: Recorder) -> Engine:
    """Open an engine for one request at a time."""
    proposer = load_method(spec, target)
    return open_engine(target, proposer, replace(config, max_batch=1), config.budget or "fixed", caps, record)
