"""DFlash: a small network reads the target's states and drafts a whole block of tokens in one pass (arXiv 2602.06036).

The network (`outrider.models.dflash`) sees several of the target's hidden states at every committed position, and a
block of the root and mask tokens. All tokens of a draft come from one pass, so depth costs rows and no further passes.

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
from typing import Any, Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.formats.blocks.dflash import DFlashCheckpoint, read_dflash
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.dflash import DFlashNetwork, DFlashSpec, default_layer_ids
from outrider.models.output_head import OutputHead
from outrider.models.rope import reach
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session, SessionPlan
from outrider.proposers.drafting.block_reader import BlockReader
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.proposers.drafting.trees import best_nodes, ranked
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets.output_head import output_head

__all__ = ["DFlashConfig", "DFlashProposer", "random_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class DFlashConfig:
    """Settings of a DFlash network.

    checkpoint   directory or hub id of the network, in the authors' or the speculators layout; by default the one that
                 is shipped for the target
    num_nodes    drafted tokens per step, at most; a chain has no more than its block drafts
    width        candidates of each slot that a tree may use; 1 drafts a chain
    block_size   slots of a block; by default as many as it was trained with
    sampled      draw the drafts instead of taking the most probable token (chains only)
    draft_vocab  draft only that many of the most frequent tokens, 0 for all; by default 8192 where training left a
                 ranking beside the checkpoint, else all
    """

    checkpoint: str | None = None
    num_nodes: int = 16
    width: int = 1
    block_size: int | None = None
    sampled: bool = False
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32), block_size=(2, 256))
        if self.sampled and self.width > 1:
            raise ConfigError("sampled=True drafts chains; leave width out")


@final
class DFlashProposer(Proposer):
    """A network, packed for the target's device, its output head, and how it drafts."""

    Config = DFlashConfig
    shipped = "dflash"

    def __init__(self, network: DFlashNetwork, output: OutputHead, config: DFlashConfig, target: Target) -> None:
        self.network = network
        self.output = output
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
        network = network_of(checkpoint, target)
        return cls(network, output_of(checkpoint, network, target, ids_K), config, target)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        settings: tuple[dict[str, Any], ...] = ({}, {"width": 2 + seed % 5}, {"sampled": True}, {"block_size": 3})
        config = DFlashConfig(checkpoint="", num_nodes=2 + seed % 7, **settings[seed % 4])
        return cls.of(random_checkpoint(target, seed), config, target)

    @property
    def max_depth(self) -> int:
        """The number of tokens that a block drafts."""
        return self.block_size - self.network.spec.first_slot

    @property
    def spec(self) -> ProposerSpec:
        is_chain = self.config.width == 1
        return ProposerSpec(
            max_nodes=min(self.config.num_nodes, self.max_depth) if is_chain else self.config.num_nodes,
            feature_layers=self.feature_layers,
            num_bytes=self.network.num_bytes + self.output.num_bytes,
        )

    def open(self, plan: SessionPlan) -> Session:
        return within_reach(reach(self.network.spec.decoder), plan, lambda plan: DFlashSession(self, plan))


@final
class DFlashSession(Session):
    """The network's cache, and what it has still to read."""

    def __init__(self, proposer: DFlashProposer, plan: SessionPlan) -> None:
        self.plan = plan
        self.config = proposer.config
        self.max_depth = proposer.max_depth
        self.output = proposer.output
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
        depths = {slot: min(limit) for slot, limit in active.items()}
        if self.config.width > 1:
            trees = self._trees(active, self._logits(depths))
            return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)
        return self._chains(slots, depths, self._logits(depths))

    def _logits(self, depths: dict[int, int]) -> list[Tensor]:
        """Run the pass, and return for each depth the logits [R, K] of the slots that draft so deep, in order."""
        states_BME = self.reader.blocks(list(depths), self.spec.mask_id)
        levels = [[place for place, depth in enumerate(depths.values()) if depth > level] for level in _levels(depths)]
        rows = [(place, self.spec.first_slot + level) for level, places in enumerate(levels) for place in places]
        at_R2 = torch.tensor(rows, device=states_BME.device)
        logits_RK = self.output(states_BME[at_R2[:, 0], at_R2[:, 1]])
        if self.output.ids_K is None:  # fewer columns hold no mask
            logits_RK[:, self.spec.mask_id] = -torch.inf
        return list(torch.split(logits_RK, [len(places) for places in levels]))

    def _chains(self, slots: Sequence[int], depths: dict[int, int], logits: Sequence[Tensor]) -> Draft:
        sampler = ChainSampler(
            self.plan,
            slots,
            self.reader.samplings,
            sampled=self.config.sampled,
            vocab_size=self.spec.decoder.vocab_size,
            ids_K=self.output.ids_K,
        )
        for level, logits_RK in enumerate(logits):
            growing = [slot for slot, depth in depths.items() if depth > level]
            sampler.grow(growing, logits_RK, self.reader.text_lengths(growing))
        return sampler.draft()

    def _trees(self, limits: dict[int, DraftLimit], logits: Sequence[Tensor]) -> dict[int, Tree]:
        """Return each slot's most probable nodes."""
        tokens: dict[int, list[list[int]]] = {slot: [] for slot in limits}
        log_probs: dict[int, list[list[float]]] = {slot: [] for slot in limits}
        for level, logits_RK in enumerate(logits):
            best = ranked(logits_RK, self.config.width)
            ids_RW = best.columns_RW if self.output.ids_K is None else self.output.ids_K[best.columns_RW]
            gains_RW = best.values_RW - logits_RK.logsumexp(-1, keepdim=True)
            deep = [slot for slot, limit in limits.items() if min(limit) > level]
            for slot, ids_W, gains_W in zip(deep, ids_RW.tolist(), gains_RW.tolist(), strict=True):
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


def _levels(depths: dict[int, int]) -> range:
    return range(max(depths.values()))


def _filled(paths: Sequence[tuple[int, ...]], tokens: Sequence[Sequence[int]]) -> Tree:
    """Return paths of ranks as a tree of tokens: `tokens[d][r]` has rank r at depth d + 1."""
    places = {path: node for node, path in enumerate(paths)} | {(): -1}
    return Tree([tokens[len(path) - 1][path[-1]] for path in paths], [places[path[:-1]] for path in paths])


def network_of(checkpoint: DFlashCheckpoint, target: Target) -> DFlashNetwork:
    """Pack a network for a target's device and dtype; an embedding that the checkpoint lacks is the target's."""
    own = checkpoint.tensors.get("embed_tokens.weight")
    return DFlashNetwork(
        checkpoint.spec,
        checkpoint.tensors,
        embedding_VE=target.shared_weights().embedding_VE if own is None else own.to(target.spec.dtype),
        mask_E=checkpoint.tensors.get("mask_embedding"),
        owns_embedding=own is not None,
        dtype=target.spec.dtype,
        device=target.spec.device,
    )


def output_of(checkpoint: DFlashCheckpoint, network: DFlashNetwork, target: Target, ids_K: Tensor | None) -> OutputHead:
    """Return the output head: the checkpoint's own or the target's, with the columns of `ids_K` alone if given."""
    mask_id, own_KE = checkpoint.spec.mask_id, checkpoint.tensors.get("lm_head.weight")
    if own_KE is None:
        return output_head(target, None if ids_K is None else ids_K[ids_K != mask_id])
    kept_K = checkpoint.ids_K != mask_id
    if ids_K is not None:
        kept_K &= torch.isin(checkpoint.ids_K, ids_K)
    packed = network.ops.narrow().pack(own_KE[kept_K].to(target.spec.device, target.spec.dtype))
    return OutputHead(network.ops, target.project, packed, checkpoint.ids_K[kept_K].to(target.spec.device))


def random_checkpoint(target: Target, seed: int) -> DFlashCheckpoint:
    """Make a network of random weights that fits the target, its variant and vocabulary drawn from `seed`."""
    found, generator = target.spec, torch.Generator().manual_seed(seed)
    num_layers = 1 + seed % 3
    decoder = DecoderSpec(
        family="qwen3",
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=2 * found.hidden_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=1 + seed % 2,
        head_dim=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=found.max_positions,
        rope=RopeSpec(original_max_position_embeddings=found.max_positions),
        qk_norm=seed % 4 != 1,
        windows=tuple(7 if (seed + layer) % 4 == 3 else None for layer in range(num_layers)),
    )
    owns = seed % 3 == 2
    # as files can say it: sliding layers, no layer, or every layer
    causal = [tuple(window is not None for window in decoder.windows), (False,) * num_layers, (True,) * num_layers]
    spec = DFlashSpec(
        decoder=decoder,
        block_size=4 + seed % 3,
        mask_id=(7 * seed + 3) % found.vocab_size,
        layer_ids=default_layer_ids(found.num_layers, 1 + seed % 2),
        target_hidden_size=found.hidden_size,
        draft_vocab_size=found.vocab_size * 2 // 3 if owns else found.vocab_size,
        drafts_at_root=seed % 5 == 1,
        causal=causal[seed % 5 % 3],
    )
    shapes: dict[str, tuple[int, ...]] = spec.shapes()
    if owns:
        shapes |= {"lm_head.weight": (spec.draft_vocab_size, found.hidden_size), "mask_embedding": (found.hidden_size,)}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = 1 + 0.1 * noise if name.endswith("norm.weight") else 0.5 * noise
    ids_K = torch.randperm(found.vocab_size, generator=generator)[: spec.draft_vocab_size].sort().values
    return DFlashCheckpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance={})
