"""Training a PARD draft model, which drafts several tokens in one pass (arXiv 2504.18583).

Masks follow the text known up to an anchor, and the state at mask i learns the token i + 1 places behind the anchor;
the state at the anchor itself learns the next one, as in any language model. `pard_layout.py` defines the rows and what
each sees: exactly what the draft model sees when it drafts. Conditional drop (COD) leaves out rows, to save cost.

    loss = mean over a text's scored rows of -log q(token)        "ce"; the other losses are those of `losses.py`

The mask is a token that no text holds. Qwen2.5's embedding has rows beyond its tokenizer, and the first of them,
151665, is the published PARD models' mask too; where there are none, a special token that never occurs serves.

Worked example: SmolLM2-135M has 49 152 rows and as many tokens, so the mask is its last special token outside the chat
template that its own texts never held.

Shapes: B rows of the batch, L positions, K depths, R laid-out rows (padded), N scored rows of all texts, E hidden size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import ConfigError, check_setting
from outrider.formats.hf_config import mask_of, names_mask
from outrider.formats.hf_draft import write_draft
from outrider.formats.locate import locate
from outrider.records.json_fields import read_json
from outrider.target import Target
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.decoder import DraftNetwork
from outrider.train.objectives.losses import LOSSES, Loss
from outrider.train.objectives.pard_layout import Layout, lay_out
from outrider.train.objectives.scoring import Scorer
from outrider.train.objectives.start import StartConfig, begin

__all__ = ["PardObjective", "PardObjectiveConfig", "checked_mask", "choose_mask"]


@dataclass(frozen=True, kw_only=True)
class PardObjectiveConfig(StartConfig):
    """Settings of PARD's training; the defaults are the paper's."""

    num_depths: int = 8
    """Tokens drafted in one pass, K."""
    loss: Loss = "ce"
    """ce learns the target's text; kl, tv and log_alpha its distribution, from captured states."""
    retention: float = 0.7
    """Share of the anchors that is kept from one depth to the next."""
    floor: float = 0.2
    """Share that is kept at every depth."""
    mask_id: int | None = None
    """The mask token; by default the checkpoint's, or one that the tokenizer does not use, or one that never occurs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "num_depths", 1 <= self.num_depths <= 64, "between 1 and 64")
        check_setting(self, "loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check_setting(self, "retention", 0 < self.retention <= 1, "above 0 and at most 1")
        check_setting(self, "floor", 0 <= self.floor <= 1, "between 0 and 1")


@final
class PardObjective(Objective):
    """A draft model with a mask token, and its rows."""

    Config = PardObjectiveConfig
    method: ClassVar[str] = "pard"

    def __init__(
        self, network: DraftNetwork, teacher: Teacher, config: PardObjectiveConfig, mask_id: int, columns: Columns
    ) -> None:
        self.network = network
        self.scorer = Scorer(config.loss, teacher, columns)
        self.teacher = teacher
        self.config = config
        self.mask_id = mask_id

    @classmethod
    def create(cls, teacher: Teacher, config: PardObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        mask_id = config.mask_id
        if mask_id is None:
            mask_id = stored_mask(teacher.target, config.checkpoint)
        mask_id = checked_mask(mask_id, teacher.target, corpus)
        columns = Columns.most_frequent(teacher, corpus, config.draft_vocab)
        return cls(begin(teacher, config, mask_id, seed), teacher, config, mask_id, columns)

    @classmethod
    def starts_trained(cls, config: PardObjectiveConfig) -> bool:
        return True

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return () if self.config.loss == "ce" else (self.teacher.target.spec.num_layers,)

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        layout = lay_out(batch, self.num_depths, self.config.retention, self.config.floor, generator)
        rows = layout.scored()
        features_NF = None
        if self.feature_layers:
            assert batch.features_BLF is not None, "the loop captures the feature layers that an objective names"
            features_NF = batch.features_BLF[rows.row_N, rows.anchor_N + rows.block_N]
        tokens_N = batch.tokens_BL[rows.row_N, rows.anchor_N + rows.block_N + 1]
        states_NE = self.states(batch, layout)[rows.row_N, rows.place_N]
        scores = self.scorer.score(states_NE, self.network.head_VE, tokens_N, features_NF)
        return layout.outcome(batch, rows, scores, tokens_N)

    def states(self, batch: Batch, layout: Layout) -> Tensor:
        """Return the final states [B, R, E] of the laid-out rows."""
        tokens_BR = batch.tokens_BL.gather(1, layout.anchors_BR)
        tokens_BR = torch.where(layout.blocks_BR > 0, self.mask_id, tokens_BR)
        positions_BR = batch.positions_BL.gather(1, layout.anchors_BR) + layout.blocks_BR
        states_BRE: Tensor = self.network(tokens_BR, positions_BR, layout.visible_BRR(batch))
        return states_BRE

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        network, complete = self.network, self.config.complete
        is_slim = network.shared is not None and not complete
        facts = {"mask_id": self.mask_id} if is_slim else {}
        extra = {"pard_token": self.mask_id, "spd_type": self.method}
        spec = network.spec if is_slim else network.complete_spec
        write_draft(directory, spec, network.tensors(complete=complete), self.teacher.target, dtype, facts, extra)


def stored_mask(target: Target, checkpoint: str | None) -> int | None:
    """Return the mask token of a checkpoint, or None.

    Raises:
        CheckpointError: if it names one that cannot be used.
    """
    if checkpoint is None:
        return None
    config = read_json(locate(checkpoint) / "config.json")
    return mask_of(config, checkpoint, target.spec.vocab_size) if names_mask(config) else None


def checked_mask(mask_id: int | None, target: Target, corpus: Corpus) -> int:
    """Return the mask token, by default a chosen one.

    Raises:
        ConfigError: for no token of the target, or one that its texts hold.
    """
    if mask_id is None:
        return choose_mask(target, corpus)
    if not 0 <= mask_id < target.spec.vocab_size:
        raise ConfigError(f"mask_id={mask_id} is not one of the target's {target.spec.vocab_size} tokens")
    if corpus.counts_V[mask_id] > 0:
        raise ConfigError(f"mask_id={mask_id} occurs in the target's texts; choose a token that never does")
    return mask_id


def choose_mask(target: Target, corpus: Corpus) -> int:
    """Choose a token that means nothing to the target, the highest of the first kind that exists.

    The kinds: the first row beyond its tokenizer; a special token that is not in its chat template and that it never
    wrote; any other token that it never wrote.

    Raises:
        ConfigError: if it wrote every token.
    """
    tokenizer = target.tokenizer
    if tokenizer is not None and len(tokenizer) < target.spec.vocab_size:
        return len(tokenizer)
    unused = {token for token, count in enumerate(corpus.counts_V.tolist()) if count == 0} - set(target.spec.eos_ids)
    special: set[int] = set()
    if tokenizer is not None:
        special = set(tokenizer.get_added_vocab().values())
        template = str(tokenizer.chat_template)
        unused -= {token for text, token in tokenizer.get_added_vocab().items() if text in template}
        unused -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    if not unused:
        raise ConfigError("the target wrote every token of its vocabulary; name the one to serve as mask with mask_id=")
    return max(unused & special or unused)
