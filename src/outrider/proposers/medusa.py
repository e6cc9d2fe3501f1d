"""Heads beside the output head guess the next tokens all at once (Medusa-1, arXiv 2401.10774).

Head d reads the target's last state and predicts the d-th token after the root, independently of the other heads;
`outrider.models.medusa` has the network. Drafting costs one small product per head and an output projection. Since the
guesses of one path are independent, the draft is best a tree of several ranks per head, whose shape is fixed beforehand
from measured accuracies (`medusa_tree.py`).

    state of x_n-1      the target predicts the root x_n from it
                        head 1 ranks guesses for x_n+1, head 2 for x_n+2; paths combine them: (0), (0, 0), (1), (1, 0)

With `width=1` the draft is the chain of best guesses, or one guess drawn from each head: their joint probability is the
product of the heads' own, so the ratio tests receive true probabilities. In contrast to the paper the root is always
the target's own token, and the engine's lossless rule decides acceptance.

Worked example: `load_proposer("medusa", target, checkpoint="run/final", num_nodes=16)` drafts 16 nodes a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.formats.locate import locate
from outrider.formats.medusa import MedusaCheckpoint, read_medusa
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.medusa import TOKEN_MAP, MedusaHeads, MedusaShape, Output
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.drafting.medusa_tree import Accuracies, RankTree, default_accuracies, grown_paths
from outrider.proposers.drafting.recurrent_tree import Paths, parse_paths
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.proposers.drafting.trees import ranked
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["MedusaConfig", "MedusaProposer", "medusa_heads"]

OUTPUTS: tuple[Output, ...] = ("own", "one", "target")


@dataclass(frozen=True, kw_only=True)
class MedusaConfig:
    """Settings of Medusa heads.

    checkpoint   directory or hub id of the heads, in the authors' or in vLLM's layout, as safetensors; by default those
                 that are shipped for the target
    num_nodes    most nodes per step
    width        ranks of each head that a tree may use; 1 drafts a chain
    tree         a tree instead of the measured one: nodes as ranks from the root, such as "0 1 0.0 0.1 0.0.0"
    sampled      draw the drafts instead of taking the most probable token (chains only)
    draft_vocab  draft only that many of the most frequent tokens, 0 for all of the heads' columns; by default 8192
                 where the heads have the whole vocabulary and training left a ranking beside the checkpoint, else all
    """

    checkpoint: str | None = None
    num_nodes: int = 16
    width: int = 10
    tree: str | None = None
    sampled: bool = False
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32))
        if self.sampled and (self.width > 1 or self.tree is not None):
            raise ConfigError("sampled=True drafts chains; set width=1 and no tree")
        if self.tree is not None:
            parse_paths(self.tree)

    def paths(self, num_heads: int, accuracies: Accuracies = (), tree: Paths = ()) -> Paths:
        """Choose the shape of the drafts: the user's, else the one that was measured, else the built-in one.

        Raises:
            ConfigError: if the user's tree is deeper than there are heads.
        """
        if self.tree is not None:
            paths = parse_paths(self.tree)
            for path in paths:
                if len(path) > num_heads:
                    raise ConfigError(
                        f"tree has path {'.'.join(map(str, path))}, but there are only {num_heads} heads; cut it there"
                    )
            return paths
        if self.width == 1:
            return tuple((0,) * depth for depth in range(1, num_heads + 1))
        if tree and not accuracies:
            return tuple(path for path in tree if max(path) < self.width)
        shares = accuracies or default_accuracies(num_heads, self.width)
        return grown_paths([row[: self.width] for row in shares], self.num_nodes)


@final
class MedusaProposer(Proposer):
    """Packed heads, and how they draft."""

    Config = MedusaConfig
    shipped = "medusa"

    def __init__(self, heads: MedusaHeads, paths: Paths, config: MedusaConfig, target: Target) -> None:
        self.heads = heads
        self.tree = RankTree(paths, heads.shape.num_columns)
        self.config = config
        self.feature_layer = target.spec.num_layers

    @classmethod
    def load(cls, target: Target, config: MedusaConfig) -> Self:
        directory = locate(config.checkpoint or "")
        checkpoint = read_medusa(directory, target)
        if checkpoint.shape.is_reduced and config.draft_vocab is None:
            return cls.of(checkpoint, config, target)
        return cls.of(reduced(checkpoint, drafted_ids(directory, target, config.draft_vocab)), config, target)

    @classmethod
    def of(cls, checkpoint: MedusaCheckpoint, config: MedusaConfig, target: Target) -> Self:
        """Pack heads that were read or made."""
        heads = medusa_heads(checkpoint.shape, checkpoint.tensors, target)
        paths = config.paths(checkpoint.shape.num_heads, checkpoint.accuracies, checkpoint.tree)
        return cls(heads, paths, config, target)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        settings = ({"width": 1}, {"width": 2 + seed % 9}, {"tree": "0 1 2 0.0 0.2 1.1"}, {"width": 1, "sampled": True})
        shape = settings[seed % 4]
        config = MedusaConfig(checkpoint="", num_nodes=2 + seed % 7, **shape)
        return cls.of(random_checkpoint(target, seed), config, target)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(
            max_nodes=min(self.config.num_nodes, len(self.tree.paths)),
            feature_layers=(self.feature_layer,),
            num_bytes=self.heads.num_bytes,
        )

    def open(self, plan: SessionPlan) -> Session:
        return MedusaSession(self.heads, self.tree, self.config, plan)


def reduced(checkpoint: MedusaCheckpoint, ids_K: Tensor | None) -> MedusaCheckpoint:
    """Keep the heads' columns for these tokens only, as far as they had one; None keeps all."""
    if ids_K is None:
        return checkpoint
    tensors, shape = dict(checkpoint.tensors), checkpoint.shape
    known_C = tensors.get(TOKEN_MAP, torch.arange(shape.vocab_size))
    kept_C = torch.isin(known_C, ids_K)
    tensors |= {name: tensors[name][kept_C] for name in tensors if name.startswith("lm_head")}
    tensors[TOKEN_MAP] = known_C[kept_C]
    return replace(checkpoint, shape=replace(shape, num_columns=int(kept_C.sum())), tensors=tensors)


def random_checkpoint(target: Target, seed: int) -> MedusaCheckpoint:
    """Make random heads, whose variant follows from the seed."""
    spec = target.spec
    vocab_size = spec.vocab_size
    shape = MedusaShape(
        num_heads=2 + seed % 3,
        num_layers=1 + seed // 2 % 2,
        hidden_size=spec.hidden_size,
        vocab_size=vocab_size,
        num_columns=vocab_size if seed % 2 == 0 else max(3, vocab_size // 2),
        bias=seed % 3 != 1,
        output=OUTPUTS[seed % 3],
    )
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(size, generator=draw, dtype=spec.dtype) for name, size in shape.tensor_shapes().items()
    }
    if shape.is_reduced:
        tensors[TOKEN_MAP] = torch.randperm(vocab_size, generator=draw)[: shape.num_columns].sort().values
    return MedusaCheckpoint(shape=shape, layout="vllm", tensors=tensors, accuracies=(), tree=())


@final
class MedusaSession(Session):
    """The target's last state of every slot, and how long its text is."""

    def __init__(self, heads: MedusaHeads, tree: RankTree, config: MedusaConfig, plan: SessionPlan) -> None:
        self.heads = heads
        self.tree = tree
        self.config = config
        self.plan = plan
        self.states: dict[int, Tensor] = {}
        self.lengths: dict[int, int] = {}
        self.samplings: dict[int, SamplingParams] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        assert features_TF is not None, "the heads read the target's last state"
        if len(features_TF):
            self.states[slot] = features_TF[-1].clone()
        self.lengths[slot] = len(tokens)
        self.samplings[slot] = sampling

    def keep(self, slot: int) -> Kept:
        return Kept(self.lengths[slot])  # only the last feature counts, and that of a new prompt is always read

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        """Draft for every slot that has a state; a text of a single token has none yet."""
        known = {
            slot: DraftLimit(min(limit.num_nodes, self.config.num_nodes), limit.max_depth)
            for slot, limit in zip(slots, limits, strict=True)
            if slot in self.states
        }
        if self.config.sampled:
            return self._chains(slots, known)
        trees = self._trees(known) if known else {}
        return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)

    def _predict(self, limits: dict[int, DraftLimit]) -> list[Tensor]:
        """Return logits of every head that some slot's limit needs, for the slots that need it, in order."""
        depths = [len(self.tree.cut(limit).widths) for limit in limits.values()]
        return self.heads.predict(torch.stack([self.states[slot] for slot in limits]), depths)

    def _trees(self, limits: dict[int, DraftLimit]) -> dict[int, Tree]:
        cuts = {slot: self.tree.cut(limit) for slot, limit in limits.items()}
        ranked: dict[int, list[list[int]]] = {slot: [] for slot in limits}
        for head, logits_RK in enumerate(self._predict(limits)):
            needing = [slot for slot, cut in cuts.items() if len(cut.widths) > head]
            ids_RW = self._ranked(logits_RK, max(cuts[slot].widths[head] for slot in needing))
            for slot, ids_W in zip(needing, ids_RW.tolist(), strict=True):
                ranked[slot].append(ids_W)
        return {slot: cut.filled(ranked[slot]) for slot, cut in cuts.items()}

    def _ranked(self, logits_RK: Tensor, width: int) -> Tensor:
        """Return target ids of the `width` best tokens of each row, best first."""
        columns_RW = ranked(logits_RK, width).columns_RW
        return columns_RW if self.heads.ids_K is None else self.heads.ids_K[columns_RW]

    def _chains(self, slots: Sequence[int], limits: dict[int, DraftLimit]) -> Draft:
        shape = self.heads.shape
        chains = ChainSampler(
            self.plan, slots, self.samplings, sampled=True, vocab_size=shape.vocab_size, ids_K=self.heads.ids_K
        )
        depths = {slot: len(self.tree.cut(limit).widths) for slot, limit in limits.items()}
        for head, logits_RK in enumerate(self._predict(limits) if limits else ()):
            growing = [slot for slot, depth in depths.items() if depth > head]
            chains.grow(growing, logits_RK, [self.lengths[slot] for slot in growing])
        return chains.draft()

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        assert features_BMF is not None, "the heads read the target's last state"
        for slot, rows, tokens, place in commits:
            self.states[slot] = features_BMF[place, rows[-1]].clone()
            self.lengths[slot] += len(tokens)

    def release(self, slot: int) -> None:
        self.states.pop(slot, None)
        del self.lengths[slot], self.samplings[slot]

    @property
    def num_bytes(self) -> int:
        return sum(state_F.nbytes for state_F in self.states.values())


def medusa_heads(shape: MedusaShape, weights: Mapping[str, Tensor], target: Target) -> MedusaHeads:
    """Return heads packed for a target; they project with its output head, or some of its rows, where they own none."""
    borrows_rows = shape.output == "target" and shape.is_reduced
    head_VE = target.shared_weights().head_VE if borrows_rows else None
    return MedusaHeads(shape, weights, target.spec.device, target.spec.dtype, head_VE, target.project)
