"""DFlash: a small network reads the target's states and drafts a whole block of tokens in one pass (arXiv 2602.06036).

The network (`outrider.models.blocks.dflash`) sees several of the target's hidden states at every committed position,
and a block of the root and mask tokens. All tokens of a draft come from one pass: depth costs rows, no further passes.

    committed ... x y r         features of x and y; the block r [m] [m] [m] drafts 1, 2, 3

Tokens of a block are independent of each other given the text. With `width` above 1 they draft a tree: every depth has
one list of candidates, whatever its parent, so a node is a path of ranks and its probability a product, and the tree
holds the most probable paths that the budget allows (`drafting/trees.py`). It is a function of the text, hence lossless
under every rule. A sampled chain's distribution is the product of its slots', as the ratio tests need it.

Worked example: `load_proposer("dflash", target, checkpoint=DIR, num_nodes=24, width=4)` drafts trees of 24 nodes.

Shapes: B slots, M rows of a block, R rows that are drafted from, E hidden size, K columns of the output head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.formats.blocks.dflash import DFlashCheckpoint, read_dflash
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.blocks.dflash import DFlashNetwork
from outrider.models.blocks.markov import MarkovHead
from outrider.models.blocks.selector import CandidateSelector
from outrider.models.output_head import OutputHead
from outrider.models.rope import reach
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session, SessionPlan
from outrider.proposers.drafting.block_network import markov_of, network_of, output_of, random_checkpoint, selector_of
from outrider.proposers.drafting.block_reader import BlockReader
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.proposers.drafting.trees import best_nodes, ranked
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["DFlashConfig", "DFlashProposer"]


@dataclass(frozen=True, kw_only=True)
class DFlashConfig:
    """Settings of a DFlash network.

    checkpoint   directory or hub id of the network, in the authors' or the speculators layout; by default the one that
                 is shipped for the target
    num_nodes    drafted tokens per step, at most; a chain has no more than its block drafts
    width        candidates of each slot that a tree may use; 1 drafts a chain
    block_size   slots of a block; by default as many as it was trained with
    confidence   end a chain where all its tokens are accepted less likely than that, by the network's own confidence
                 head (DSpark); 0 drafts whole blocks
    sampled      draw the drafts instead of taking the most probable token (chains only)
    draft_vocab  draft only that many of the most frequent tokens, 0 for all; by default 8192 where training left a
                 ranking beside the checkpoint, else all
    """

    checkpoint: str | None = None
    num_nodes: int = 16
    width: int = 1
    block_size: int | None = None
    confidence: float = 0.0
    sampled: bool = False
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32), block_size=(2, 256), confidence=(0.0, 1.0))
        if self.sampled and self.width > 1:
            raise ConfigError("sampled=True drafts chains; leave width out")
        if self.confidence and (self.sampled or self.width > 1):
            raise ConfigError("confidence ends greedy chains; leave sampled and width out")


@final
class DFlashProposer(Proposer):
    """A network, packed for the target's device, its output head, and how it drafts."""

    Config = DFlashConfig
    shipped = "dflash"

    def __init__(
        self,
        network: DFlashNetwork,
        output: OutputHead,
        config: DFlashConfig,
        target: Target,
        markov: MarkovHead | None = None,
        selector: CandidateSelector | None = None,
    ) -> None:
        self.network = network
        self.output = output
        self.markov = markov
        self.selector = selector
        self.config = config
        self.block_size = config.block_size or network.spec.block_size
        self.feature_layers = network.spec.feature_layers(target.spec.num_layers)

    @classmethod
    def load(cls, target: Target, config: DFlashConfig) -> Self:
        directory = locate(config.checkpoint or "")
        checkpoint = read_dflash(directory, target)
        draft_vocab = config.draft_vocab
        if draft_vocab is None and checkpoint.has_head:
            draft_vocab = 0
        return cls.of(checkpoint, config, target, drafted_ids(directory, target, draft_vocab))

    @classmethod
    def of(
        cls, checkpoint: DFlashCheckpoint, config: DFlashConfig, target: Target, ids_K: Tensor | None = None
    ) -> Self:
        """Pack a network that was read or made; with `ids_K`, only these tokens are drafted."""
        network, spec = network_of(checkpoint, target), checkpoint.spec
        if spec.chain_only and config.width > 1:
            raise ConfigError("this network's tokens depend on each other, and it drafts chains; leave width out")
        if config.confidence and not spec.confidence_inputs:
            raise ConfigError(f"confidence={config.confidence} needs a network with a confidence head; leave it out")
        output = output_of(checkpoint, network, target, ids_K)
        heads = markov_of(checkpoint, network, output), selector_of(checkpoint, network, output)
        return cls(network, output, config, target, *heads)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        settings: tuple[dict[str, Any], ...] = ({}, {"width": 2 + seed % 5}, {"sampled": True}, {"block_size": 3})
        checkpoint = random_checkpoint(target, seed)
        shape = {} if checkpoint.spec.chain_only else settings[seed % 4]
        return cls.of(checkpoint, DFlashConfig(checkpoint="", num_nodes=2 + seed % 7, **shape), target)

    @property
    def max_depth(self) -> int:
        """The number of tokens that a block drafts."""
        return self.block_size - self.network.spec.first_slot

    @property
    def spec(self) -> ProposerSpec:
        is_chain = self.config.width == 1
        parts = (self.network, self.output, self.markov, self.selector)
        return ProposerSpec(
            max_nodes=min(self.config.num_nodes, self.max_depth) if is_chain else self.config.num_nodes,
            feature_layers=self.feature_layers,
            num_bytes=sum(part.num_bytes for part in parts if part is not None),
        )

    def open(self, plan: SessionPlan) -> Session:
        return within_reach(reach(self.network.spec.decoder), plan, lambda plan: DFlashSession(self, plan))


class Level(NamedTuple):
    """One depth of a block's result: the slots that draft so deep, their states [R, E] and logits [R, K]."""

    slots: list[int]
    states_RE: Tensor
    logits_RK: Tensor

    def of(self, slots: list[int]) -> "Level":
        """Return the rows of some of the slots, in the same order."""
        if slots == self.slots:
            return self
        rows = [place for place, slot in enumerate(self.slots) if slot in slots]
        return Level(slots, self.states_RE[rows], self.logits_RK[rows])


@final
class DFlashSession(Session):
    """The network's cache, and what it has still to read."""

    def __init__(self, proposer: DFlashProposer, plan: SessionPlan) -> None:
        self.plan = plan
        self.config = proposer.config
        self.max_depth = proposer.max_depth
        self.output = proposer.output
        self.markov = proposer.markov
        self.selector = proposer.selector
        self.spec = proposer.network.spec
        self.reader = BlockReader(proposer.network, plan, proposer.block_size)

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        assert features_TF is not None, "the target was opened without feature layers"
        self.reader.admit(slot, tokens, sampling, features_TF)

    def keep(self, slot: int) -> Kept:
        return self.reader.kept(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        assert features_TF is not None, "the session has feature layers"
        self.reader.reuse(slot, tokens, sampling, features_TF, reused)

    def num_pending(self, slot: int) -> int:
        return self.reader.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.reader.catch_up(slots, 0)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        within = {
            slot: DraftLimit(min(limit.num_nodes, self.config.num_nodes), min(limit.max_depth, self.max_depth))
            for slot, limit in zip(slots, limits, strict=True)
        }
        active = {slot: limit for slot, limit in within.items() if min(limit) > 0}
        if not active:
            return Draft.empty(len(slots), self.plan.device)
        levels = self._levels({slot: min(limit) for slot, limit in active.items()})
        if self.config.width > 1:
            trees = self._trees(active, levels)
            return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)
        return self._chains(slots, levels)

    def _levels(self, depths: dict[int, int]) -> list[Level]:
        """Run the pass, and return its result depth by depth."""
        states_BME = self.reader.blocks(list(depths), self.spec.mask_id)
        deep = [[slot for slot in depths if depths[slot] > level] for level in range(max(depths.values()))]
        places = {slot: place for place, slot in enumerate(depths)}
        rows = [(places[slot], self.spec.first_slot + level) for level, some in enumerate(deep) for slot in some]
        at_R2 = torch.tensor(rows, device=states_BME.device)
        states_RE = states_BME[at_R2[:, 0], at_R2[:, 1]]
        logits_RK = self.spec.scaled(self.output(states_RE))
        if self.output.ids_K is None:  # fewer columns hold no mask
            logits_RK[:, self.spec.mask_id] = -torch.inf
        counts = [len(some) for some in deep]
        return list(map(Level, deep, torch.split(states_RE, counts), torch.split(logits_RK, counts)))

    def _chains(self, slots: Sequence[int], levels: Sequence[Level]) -> Draft:
        sampler = ChainSampler(
            self.plan,
            slots,
            self.reader.samplings,
            sampled=self.config.sampled,
            vocab_size=self.spec.decoder.vocab_size,
            ids_K=self.output.ids_K,
        )
        before = dict(zip(levels[0].slots, self.reader.roots_of(levels[0].slots), strict=True))
        survival = dict.fromkeys(levels[0].slots, 1.0)
        for level in levels:
            going = level.of([slot for slot in level.slots if survival[slot] > 0])
            if self.config.confidence and going.slots:
                self._weigh(going, before, survival)
                going = going.of([slot for slot in going.slots if survival[slot] > 0])
            if not going.slots:
                break
            before_R = torch.stack([before[slot] for slot in going.slots])
            logits_RK = going.logits_RK
            if self.markov is not None:
                logits_RK = self.markov.biased(logits_RK, before_R)
            if self.selector is not None:
                logits_RK = self.selector.scores(logits_RK, going.states_RE, before_R)
            tokens_R = sampler.grow(going.slots, logits_RK, self.reader.text_lengths(going.slots))
            before |= zip(going.slots, tokens_R, strict=True)
        return sampler.draft()

    def _weigh(self, level: Level, before: dict[int, Tensor], survival: dict[int, float]) -> None:
        """Multiply each slot's survival by the confidence in its next token; 0 ends the chain."""
        assert self.markov is not None, "a confidence needs the head"
        before_R = torch.stack([before[slot] for slot in level.slots])
        for slot, sure in zip(level.slots, self.markov.confidences(level.states_RE, before_R), strict=True):
            survival[slot] *= sure
            if survival[slot] < self.config.confidence:
                survival[slot] = 0.0

    def _trees(self, limits: dict[int, DraftLimit], levels: Sequence[Level]) -> dict[int, Tree]:
        """Return each slot's most probable nodes."""
        tokens: dict[int, list[list[int]]] = {slot: [] for slot in limits}
        log_probs: dict[int, list[list[float]]] = {slot: [] for slot in limits}
        for level in levels:
            best = ranked(level.logits_RK, self.config.width)
            ids_RW = best.columns_RW if self.output.ids_K is None else self.output.ids_K[best.columns_RW]
            gains_RW = best.values_RW - level.logits_RK.logsumexp(-1, keepdim=True)
            for slot, ids_W, gains_W in zip(level.slots, ids_RW.tolist(), gains_RW.tolist(), strict=True):
                tokens[slot].append(ids_W)
                log_probs[slot].append(gains_W)
        return {
            slot: _filled(best_nodes(log_probs[slot], limit.num_nodes), tokens[slot]) for slot, limit in limits.items()
        }

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        assert features_BMF is not None, "the target was opened without feature layers"
        for commit in commits:
            self.reader.commit(commit, features_BMF)

    def release(self, slot: int) -> None:
        self.reader.release(slot)

    @property
    def num_bytes(self) -> int:
        return self.reader.cache.plan.num_bytes


def _filled(paths: Sequence[tuple[int, ...]], tokens: Sequence[Sequence[int]]) -> Tree:
    """Return paths of ranks as a tree of tokens: `tokens[d][r]` has rank r at depth d + 1."""
    places = {path: node for node, path in enumerate(paths)} | {(): -1}
    return Tree([tokens[len(path) - 1][path[-1]] for path in paths], [places[path[:-1]] for path in paths])
