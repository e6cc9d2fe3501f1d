"""Training a DFlash network, which drafts a block of tokens in one pass (arXiv 2602.06036).

Blocks stand at random anchors, positions after which the target wrote; `dflash_network.py` says what their slots see.
Slot k learns the token k places after its anchor, as far as the target wrote every token up to it:

    loss = mean over a text's slots of  w_k * -log q_k(x_{a+k}),     w_k = exp(-(k - 1) / gamma)

divided by the mean weight. The first tokens of a block weigh more, because a later one counts only where all before it
are right. Embedding and output head are the target's; the mask is a token that no text holds, as for PARD. With
`selector_rank` the network is a DFlash-2, whose selector adds a loss of its own (`second.py`).

Worked example: block 8 with gamma 4 weighs the depths 1, 0.78, 0.61, 0.47, 0.37, 0.29, 0.22.

Shapes: B rows, L positions, A anchors of a row (padded), M slots of a block, K depths, R scored slots, E hidden size.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import ConfigError, check_setting
from outrider.formats.blocks.dflash import DFlashCheckpoint, write_native
from outrider.formats.store import provenance
from outrider.models.blocks.dflash import DFlashSpec, default_layer_ids
from outrider.target import Target
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.blocks.dflash_network import Blocks, DFlashTraining
from outrider.train.objectives.blocks.second import Found, Noted, begin_as_dflash
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.eagle3_network import plain
from outrider.train.objectives.eagle3_start import decoder_spec, parse_layer_ids
from outrider.train.objectives.layers import draw_weights
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.pard import choose_mask
from outrider.train.objectives.scoring import Scorer, Scores, mean_by_text

__all__ = ["DFlashObjective", "DFlashObjectiveConfig"]

GAMMAS = {16: 7.0, 10: 5.0, 8: 4.0}
"""The published decays, by size of the block."""


@dataclass(frozen=True, kw_only=True)
class DFlashObjectiveConfig:
    """Settings of DFlash training."""

    num_layers: int = 5
    """Layers of the network."""
    block_size: int = 8
    """Slots of a block; it drafts one token fewer."""
    anchors: int = 512
    """Most blocks of each packed row, drawn anew in every step."""
    gamma: float | None = None
    """Decay of the weights by depth; by default the published one of the nearest block size."""
    loss: Loss = "ce"
    """ce learns the target's text; kl, tv and log_alpha its distribution, from captured states."""
    draft_vocab: int = 0
    """Score only the target's most frequent tokens; 0 for all."""
    layer_ids: str | None = None
    """The target's layers whose input states are fused, such as "2,7,12,17,22"; by default five, evenly spaced."""
    intermediate_size: int | None = None
    """Width of the layers' MLP; by default the target's."""
    causal: bool = False
    """Let slots see only earlier slots of their block."""
    mask_id: int | None = None
    """The mask token; by default one that the tokenizer does not use, or one that never occurs."""
    selector_rank: int = 0
    """Rank of a DFlash-2's candidate selector, such as the published 256; 0 trains a DFlash."""
    selector_top_k: int = 16
    """Candidates of each slot; with selector_rank alone, as all that follow."""
    selector_weight: float = 1.0
    """Weight of the selector's loss."""
    conv_kernel_size: int = 2
    """Slots that a convolution around the layers reads."""
    conv_group_size: int = 16
    """Channels that share what a slot adds to its kernel; it divides the hidden size."""

    def __post_init__(self) -> None:
        check_setting(self, "num_layers", 1 <= self.num_layers <= 32, "between 1 and 32")
        check_setting(self, "block_size", 2 <= self.block_size <= 64, "between 2 and 64")
        check_setting(self, "anchors", self.anchors >= 1, "at least 1")
        check_setting(self, "gamma", self.gamma is None or self.gamma > 0, "above 0")
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check_setting(self, "draft_vocab", self.draft_vocab >= 0, "0 or above")
        check_setting(self, "selector_rank", 0 <= self.selector_rank <= 4096, "between 0 and 4096")
        check_setting(self, "selector_top_k", 2 <= self.selector_top_k <= 256, "between 2 and 256")
        check_setting(self, "selector_weight", self.selector_weight >= 0, "0 or above")
        check_setting(
            self, "conv_kernel_size", 1 <= self.conv_kernel_size <= self.block_size, "between 1 and block_size"
        )
        check_setting(self, "conv_group_size", self.conv_group_size >= 1, "at least 1")

    @property
    def weights(self) -> list[float]:
        """The weight of each depth in the loss."""
        near = min(GAMMAS, key=lambda size: abs(size - self.block_size))
        gamma = GAMMAS[near] if self.gamma is None else self.gamma
        return [math.exp(-depth / gamma) for depth in range(self.block_size - 1)]


class Anchors(NamedTuple):
    """The anchors of a batch, padded to the row with most; `chained_KBA` says which depths are scored."""

    places_BA: Tensor
    real_BA: Tensor
    chained_KBA: Tensor


@final
class DFlashObjective(Objective):
    """One network, and the frozen target it learns from."""

    Config = DFlashObjectiveConfig
    method: ClassVar[str] = "dflash"

    def __init__(
        self, network: DFlashTraining, teacher: Teacher, config: DFlashObjectiveConfig, columns: Columns
    ) -> None:
        self.network = network
        self.teacher = teacher
        self.config = config
        self.scorer = Scorer(config.loss, teacher, columns)

    @classmethod
    def create(cls, teacher: Teacher, config: DFlashObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        target, vocab_size = teacher.target, teacher.target.spec.vocab_size
        mask_id = choose_mask(target, corpus) if config.mask_id is None else config.mask_id
        if not 0 <= mask_id < vocab_size:
            raise ConfigError(f"mask_id={mask_id} is not one of the target's {vocab_size} tokens")
        if corpus.counts_V[mask_id] > 0:
            raise ConfigError(f"mask_id={mask_id} occurs in the target's texts; choose a token that never does")
        network = DFlashTraining(spec_of(target, config, mask_id))
        draw_weights(network, seed)
        begin_as_dflash(network)
        columns = Columns.most_frequent(teacher, corpus, config.draft_vocab)
        return cls(network.to(teacher.embedding_VE.device), teacher, config, columns)

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def spec(self) -> DFlashSpec:
        return self.network.spec

    @property
    def feature_layers(self) -> tuple[int, ...]:
        num_layers = self.teacher.target.spec.num_layers
        final_state = () if self.config.loss == "ce" else (num_layers,)
        return (*self.spec.feature_layers(num_layers), *final_state)

    @property
    def num_depths(self) -> int:
        return self.config.block_size - 1

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        anchors = drawn_anchors(batch, self.num_depths, self.config.anchors, generator)
        depth_R, row_R, place_R = anchors.chained_KBA.nonzero(as_tuple=True)
        # slot 0 holds the root and drafts nothing
        states_RE = self.states(batch, anchors)[row_R, place_R, 1 + depth_R]
        at_R = anchors.places_BA[row_R, place_R] + depth_R
        features_RF = None
        if self.config.loss != "ce":
            features_RF = self._features(batch)[row_R, at_R, self.spec.features :]
        tokens_R = batch.tokens_BL[row_R, at_R + 1]
        scores, found = self._scored(states_RE, tokens_R, features_RF, batch.tokens_BL[row_R, at_R])
        weights_K = torch.tensor(self.config.weights, device=depth_R.device)
        texts_R = batch.text_numbers()[row_R, at_R]
        is_right_R, learnt_R = scores.guess_R == tokens_R, scores.learnt_R
        mean = mean_by_text(scores.loss_R[learnt_R], texts_R[learnt_R], weights_K[depth_R[learnt_R]])
        loss = mean.total
        if found is not None:
            is_right_R, learnt_R = found.is_right_R, self.scorer.columns.of(tokens_R) >= 0
            own = mean_by_text(found.loss_R[learnt_R], texts_R[learnt_R], weights_K[depth_R[learnt_R]])
            loss = loss + self.config.selector_weight * own.total

        def by_anchor(values_R: Tensor) -> Tensor:
            values_KBA = values_R.new_zeros(anchors.chained_KBA.shape)
            values_KBA[depth_R, row_R, place_R] = values_R
            return values_KBA[:, anchors.real_BA]

        overlap_R = scores.overlap_R
        return Outcome(
            loss,
            mean.num_texts,
            by_anchor(is_right_R),
            anchors.chained_KBA[:, anchors.real_BA],
            None if overlap_R is None else by_anchor(overlap_R),
        )

    def _scored(
        self, states_RE: Tensor, tokens_R: Tensor, features_RF: Tensor | None, before_R: Tensor
    ) -> tuple[Scores, Found | None]:
        """Score slots by their logits, and by what the selector makes of the best ones, if there is one."""
        head_VE, selector = self.teacher.head_VE, self.network.candidate_selector
        predict, teach = self.scorer.predict_by(head_VE), self.scorer.teach_by(features_RF)
        if selector is None:
            return self.scorer.score_by(predict, states_RE, tokens_R, teach), None
        noted, columns = Noted(predict, self.spec.selector_top_k), self.scorer.columns
        scores = self.scorer.score_by(noted, states_RE, tokens_R, teach)
        best_RW, head_KE = torch.cat(noted.parts), columns.rows(head_VE)
        return scores, selector.score(states_RE, best_RW, before_R, tokens_R, head_KE, columns)

    def states(self, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the final states [B, A, M, E] of the blocks at these anchors."""
        features_BLF = self._features(batch)[..., : self.spec.features]
        blocks = Blocks.at(batch, anchors.places_BA, anchors.real_BA)
        states_BAME: Tensor = self.network(batch, features_BLF, blocks, self.teacher.embedding_VE)
        return states_BAME

    def _features(self, batch: Batch) -> Tensor:
        assert batch.features_BLF is not None, "the loop captures the feature layers that an objective names"
        return batch.features_BLF

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        spec, target = self.spec, self.teacher.target
        about = provenance(target, training=asdict(self.config))
        tensors = {name: tensor.detach() for name, tensor in self.network.state_dict().items()}
        ids_K = torch.arange(spec.draft_vocab_size)
        saved = DFlashCheckpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance=about)
        write_native(directory, saved, target.spec.num_layers, dtype)


def spec_of(target: Target, config: DFlashObjectiveConfig, mask_id: int) -> DFlashSpec:
    """Return the spec of a network with the sizes of the target's own layers, and norms of queries and keys.

    Raises:
        ConfigError: if the target is not of the Llama family, or a layer id does not fit it.
    """
    found = decoder_spec(target)
    decoder = replace(
        plain(found),
        family="qwen3",
        num_layers=config.num_layers,
        windows=(None,) * config.num_layers,
        qk_norm=True,
        intermediate_size=config.intermediate_size or found.intermediate_size,
        eos_ids=(),
    )
    layer_ids = default_layer_ids(target.spec.num_layers, 5)
    if config.layer_ids is not None:
        layer_ids = parse_layer_ids(config.layer_ids, target)
    if 0 in layer_ids:
        raise ConfigError(f"layer_ids={config.layer_ids} names the embedding, which the layout cannot; start at 1")
    spec = DFlashSpec(
        decoder=decoder,
        block_size=config.block_size,
        mask_id=mask_id,
        layer_ids=layer_ids,
        target_hidden_size=found.hidden_size,
        draft_vocab_size=found.vocab_size,
        causal=(config.causal,) * config.num_layers,
    )
    if not config.selector_rank:
        return spec
    if found.hidden_size % config.conv_group_size:
        raise ConfigError(
            f"conv_group_size={config.conv_group_size} does not divide the target's hidden size {found.hidden_size}; "
            "choose one that does"
        )
    return replace(
        spec,
        conv_kernel_size=config.conv_kernel_size,
        conv_group_size=config.conv_group_size,
        selector_rank=config.selector_rank,
        selector_top_k=min(config.selector_top_k, found.vocab_size),
    )


def drawn_anchors(batch: Batch, num_depths: int, most: int, generator: torch.Generator) -> Anchors:
    """Draw at most `most` anchors of each row, among the positions before a token that the target wrote."""
    chained_KBL = batch.written_ahead(num_depths, 1)
    eligible_BL = chained_KBL[0]
    noise_BL = torch.rand(eligible_BL.shape, generator=generator).to(eligible_BL.device)
    num_anchors = min(most, int(eligible_BL.sum(1).max()))
    # drawn anchors first, in any order; then in the order of the text, padding last
    drawn_BA = torch.where(eligible_BL, noise_BL, 2.0).argsort(dim=1)[:, : max(1, num_anchors)]
    real_BA = eligible_BL.gather(1, drawn_BA)
    order_BA = torch.where(real_BA, drawn_BA, eligible_BL.shape[1]).argsort(dim=1)
    real_BA = real_BA.gather(1, order_BA)
    places_BA = torch.where(real_BA, drawn_BA.gather(1, order_BA), 0)
    chained_KBA = chained_KBL.gather(2, places_BA.expand(num_depths, -1, -1)) & real_BA
    return Anchors(places_BA, real_BA, chained_KBA)
