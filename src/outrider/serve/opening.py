"""Opening a service: the target, the method, and the engines that may be asked for.

The method that serves has an engine with all slots. Every other method whose weights are on this machine can be named
by a request (`outrider_method`); its engine, with a single slot, opens at the first such request. All share the
target's weights, and plain decoding runs in the main engine with a limit of no nodes.

Example: `opened(target, ServeConfig(method="none")).methods` begins with "none" and lists the lookups.
"""

from collections.abc import Callable, Mapping
from functools import partial

from outrider.budget import BudgetChoice
from outrider.proposers.auto import named_or_picked
from outrider.proposers.method_spec import load_method
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
        return {pick.spec.label: lambda send: Lane(main, metrics.record, send)}

    facts = {"num_nodes": proposer.spec.max_nodes, "budget": budget}
    return Service(target, config, pick.spec.label, lanes, facts)
