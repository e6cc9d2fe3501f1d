"""P-EAGLE (arXiv 2602.01469): an EAGLE-3 head that drafts all its tokens in one pass.

The head reads pairs of the target's state and the token after it, as EAGLE-3 does. Where EAGLE-3 goes on with its own
output, pass by pass, here copies of one learnt pair stand behind the last one: the embedding of a mask token, and
features `mask_hidden` that pass through the fusion like the target's own. Slot t + d sees the text and the masks before
it, and drafts token d + 1.

    text  x0 x1 x2 r      slots (f0,x1) (f1,x2) (f2,r) m m       drafts a at (f2,r), b and c at the masks

So a deep draft costs rows and no further passes, and such heads have two to four layers. Its tokens are independent of
each other given the text (`drafting/masked_chain.py`). The mask token is never drafted.

Example: `load_proposer("peagle", target, checkpoint=DIR, num_nodes=7)`.

Shapes: V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Self, final

import torch

from outrider.errors import CheckpointError
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.eagle3 import MASK, Eagle3Head
from outrider.models.rope import reach
from outrider.proposer import Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers import eagle3
from outrider.proposers.drafting.masked_chain import MaskedPair
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds, check_window, window_of
from outrider.target import Target

__all__ = ["PEagleConfig", "PEagleProposer", "head_of", "random_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class PEagleConfig:
    """Settings of a P-EAGLE head.

    checkpoint   directory or hub id of the head, in the speculators or the native layout; by default the one that is
                 shipped for the target
    num_nodes    drafted tokens per step; one pass reads one mask fewer
    sampled      draw the drafts instead of taking the most probable token
    draft_vocab  draft only that many of the most frequent tokens, by the ranking that training left beside the
                 checkpoint, as far as the head has columns for them; None or 0 for all of its columns
    window       read only the last so many positions of the text, and the first few; None for all of it
    sinks        the first positions that a window keeps, by default 4
    """

    checkpoint: str | None = None
    num_nodes: int = 5
    sampled: bool = False
    draft_vocab: int | None = None
    window: int | None = None
    sinks: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_window(self)
        check_bounds(self, num_nodes=(1, 64))


@final
class PEagleProposer(Proposer):
    """A head, packed for the target's device."""

    Config = PEagleConfig
    shipped = "peagle"

    def __init__(self, head: Eagle3Head, config: PEagleConfig) -> None:
        self.head = head
        self.config = config
        self.window = window_of(config, head.spec.layer.windows)

    @classmethod
    def load(cls, target: Target, config: PEagleConfig) -> Self:
        directory = locate(config.checkpoint or "")
        checkpoint = read_eagle3(directory, target)
        if checkpoint.spec.mask_id is None:
            raise CheckpointError(f"{directory} has no {MASK}, so it drafts token by token; run it as eagle3")
        return cls(head_of(checkpoint, target, drafted_ids(directory, target, config.draft_vocab or 0)), config)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        config = PEagleConfig(
            checkpoint="", num_nodes=1 + seed % 6, sampled=seed % 2 == 1, window=9 if seed % 7 < 5 else None
        )
        return cls(head_of(random_checkpoint(target, seed), target), config)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(
            max_nodes=self.config.num_nodes, feature_layers=self.head.feature_layers, num_bytes=self.head.num_bytes
        )

    def open(self, plan: SessionPlan) -> Session:
        config, spec, state_1E = self.config, self.head.spec, self.head.mask_1E
        assert spec.mask_id is not None
        assert state_1E is not None
        mask = MaskedPair(spec.mask_id, state_1E)
        return within_reach(
            reach(spec.layer),
            plan,
            lambda plan: RecurrentSession(
                self.head,
                plan,
                vocab_size=spec.layer.vocab_size,
                num_nodes=config.num_nodes,
                depth=config.num_nodes,
                mask=mask,
                window=self.window,
                sampled=config.sampled,
            ),
        )


def head_of(checkpoint: Eagle3Checkpoint, target: Target, drafted_K: torch.Tensor | None = None) -> Eagle3Head:
    """Pack a head for a target's device and dtype, without the mask token's column."""
    ids_K = checkpoint.ids_K if drafted_K is None else drafted_K
    return eagle3.head_of(checkpoint, target, ids_K[ids_K != checkpoint.spec.mask_id])


def random_checkpoint(target: Target, seed: int) -> Eagle3Checkpoint:
    """Make a head of random weights that fits the target, its variant and vocabulary drawn from `seed`."""
    drawn = eagle3.random_checkpoint(target, seed)
    spec = replace(drawn.spec, mask_id=(5 * seed + 3) % target.spec.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(spec.shapes()[MASK], generator=generator, dtype=torch.float64)
    return replace(drawn, spec=spec, tensors={**drawn.tensors, MASK: hidden})
