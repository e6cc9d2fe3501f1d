"""A native decoder that drafts: the draft model's layers, and an output head of its own or its target's.

Shapes: B slots, M rows of each, R = B * M, E hidden size, K columns of the output head.
"""

from typing import final

from torch import Tensor

from outrider.cache import KVCache
from outrider.models.decoder import Decoder
from outrider.models.draft_network import DraftNetwork, DraftStep, Reading
from outrider.models.output_head import OutputHead
from outrider.ops.base import GraphCache
from outrider.placement import Placement

__all__ = ["DraftDecoder"]


@final
class DraftDecoder(DraftNetwork):
    """A decoder and its packed output head; the rows of a call must fit every sliding window."""

    def __init__(self, decoder: Decoder, output: OutputHead) -> None:
        self.decoder = decoder
        self.output = output

    @property
    def ids_K(self) -> Tensor | None:
        return self.output.ids_K

    def fuse(self, features_RF: Tensor) -> Tensor:
        return features_RF

    def read(
        self,
        states_RE: Tensor,
        tokens_R: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        num_predicted: int = 0,
        graph_cache: GraphCache | None = None,
    ) -> Reading:
        last = (self.decoder.spec.num_layers,)
        tokens_BM = tokens_R.view(placement.positions_BM.shape)
        output = self.decoder(
            tokens_BM, placement, cache, feature_layers=last, want_logits=False, graph_cache=graph_cache
        )
        assert output.features_BMF is not None
        states_RE = output.features_BMF.flatten(0, 1)
        return Reading(states_RE, self.output(states_RE[-num_predicted:]) if num_predicted else None)

    def inputs(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        return self.decoder.embed(tokens_R)

    def draft_step(self, cache: KVCache) -> DraftStep | None:
        packed = self.output.packed
        return None if packed is None else self.decoder.draft_step(cache, packed, self.ids_K)

    def predict(self, states_RE: Tensor) -> Tensor:
        return self.output(states_RE)
