"""A target without weights, for a proposer inside another engine.

Inside vLLM (`outrider.vllm.custom_class`) a proposer gets token ids alone. A lookup needs no more; a proposer that asks
for weights, states or a cache gets a `ConfigError`.
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
    """The spec of a model, without anything to compute with."""

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
