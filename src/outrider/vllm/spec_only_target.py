"""A target that is a description only, for a proposer that runs where the weights are somebody else's.

Inside another engine (`outrider.vllm.custom_class`) a proposer is given token ids. One that looks texts up wants
nothing more; one that asks for weights, states or a cache is told that they are not to be had.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, final

from torch import Tensor

from outrider.cache import CachePlan
from outrider.errors import ConfigError
from outrider.target import SharedWeights, Target, TargetSession, TargetSpec

__all__ = ["SpecOnlyTarget"]


@final
class SpecOnlyTarget(Target):
    """What is fixed about a model, and nothing to compute with."""

    def __init__(self, spec: TargetSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    @property
    def tokenizer(self) -> None:
        return None

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        self._refuse()

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> TargetSession:
        self._refuse()

    def decoding_threads(self) -> AbstractContextManager[None]:
        return nullcontext()

    def project(self, states_RE: Tensor) -> Tensor:
        self._refuse()

    def shared_weights(self) -> SharedWeights:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"{self.spec.name} is known here by its description only; use a method that drafts from token ids alone, "
            "or let the other engine run the head"
        )
