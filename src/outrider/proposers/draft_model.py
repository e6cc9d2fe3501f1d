"""A small model drafts for a large one (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

Any causal language model with the target's vocabulary can draft: it writes k tokens one by one and the target checks
them in one pass. It pays when it is often right and its k passes cost less than the target passes they save.

One detail decides whether it works: after k drafted tokens the draft model has read only the first k - 1 of them. If
all k are accepted, the last one is missing from its cache and must be read together with the bonus
(`drafting/model_reader.py`).

Drafts are chains (`drafting/chain.py`) or, with `width` above 1, trees grown by probability (`drafting/trees.py`). A
chain may be sampled: with the same temperature and filters as the target, with the target's noise under the coupled
rule and its own under the ratio tests.

Without a checkpoint, `layers` makes a draft model of some of the target's layers, its embedding and its output head,
sharing the weights. Untrained, it is a poor drafter, good for exercising and timing the method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import ConfigError
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.ops.graphs import default_graph_pool
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session, SessionPlan
from outrider.proposers.drafting.chain import ChainDrafter
from outrider.proposers.drafting.model_reader import ModelReader, Row
from outrider.proposers.drafting.trees import Growth, ranked
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets.draft import load_draft
from outrider.targets.native import NativeTarget
from outrider.targets.output_head import output_head

__all__ = ["DraftModelConfig", "DraftModelProposer", "cut_from", "layer_list"]


@dataclass(frozen=True, kw_only=True)
class DraftModelConfig:
    """Settings of draft-model speculation.

    checkpoint   directory, GGUF file or hub id of the draft model; it must share the target's vocabulary; by default
                 the one that is shipped for the target
    layers       instead of a checkpoint: these layers of the target, for example "0,1,2,28,29"
    num_nodes    drafted tokens per step
    width        1 drafts a chain; above 1, the branching of a tree
    sampled      draw the drafts instead of taking the most probable token (chains only); None draws them where that
                 costs no more: on the CPU, with the target's noise
    draft_vocab  draft only that many of the most frequent tokens, 0 for all; by default 8192 where training left a
                 ranking beside the checkpoint, else all
    """

    checkpoint: str | None = None
    layers: str | None = field(default=None, metadata={"instead": "checkpoint"})
    num_nodes: int = 4
    width: int = 1
    sampled: bool | None = None
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32))
        if self.sampled and self.width > 1:
            raise ConfigError("sampled=True drafts chains; set width=1")
        if self.checkpoint is not None and self.layers is not None:
            raise ConfigError("a draft model takes either checkpoint=PATH or layers=0,1,2 (of the target), not both")
        if self.draft_vocab and self.layers is not None:
            raise ConfigError(f"draft_vocab={self.draft_vocab} needs a checkpoint with a ranking; leave it out")


@final
class DraftModelProposer(Proposer):
    """A second model that drafts."""

    Config = DraftModelConfig
    shipped = "draft"

    def __init__(
        self, model: Target, config: DraftModelConfig, num_bytes: int = 0, ids_K: Tensor | None = None
    ) -> None:
        """Take `ids_K` as the tokens that are drafted, None for all."""
        self.model = model
        self.config = config
        self.output = output_head(model, ids_K)
        self._num_bytes = num_bytes + self.output.num_bytes

    @classmethod
    def load(cls, target: Target, config: DraftModelConfig) -> Self:
        if config.layers is not None:
            return cls(cut_from(target, config.layers), config)
        name = config.checkpoint or ""
        draft = load_draft(name, target)
        ids_K = drafted_ids(locate(name), target, config.draft_vocab)
        return cls(draft.model, config, draft.num_bytes, ids_K)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        config = DraftModelConfig(layers="0", num_nodes=2 + seed % 4, width=1 + seed % 3, sampled=seed % 6 == 0 or None)
        ids_K = torch.arange(seed % 2, target.spec.vocab_size, 2) if seed % 4 == 1 else None
        return cls(cut_from(target, "0"), config, 0, ids_K)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes, num_bytes=self._num_bytes)

    def open(self, plan: SessionPlan) -> Session:
        def within(plan: SessionPlan) -> Session:
            tail = self.config.num_nodes * self.config.width + 2
            return DraftModelSession(ModelReader(self.model, self.output, plan, tail), self.config, plan)

        return within_reach(self.model.spec.max_positions, plan, within)


def cut_from(target: Target, layers: str) -> Target:
    """Make a draft model of some of the target's layers.

    Raises:
        ConfigError: if the target is not native, or a layer does not exist.
    """
    if target.native is None:
        raise ConfigError(f"layers={layers} needs a target on the native decoder; give a checkpoint instead")
    kept = layer_list(target, layers)
    spec = target.spec
    return NativeTarget(target.native.keep(kept), f"{spec.name} layers {layers}", spec.dtype, target.tokenizer)


def layer_list(target: Target, layers: str) -> list[int]:
    """Read the numbers in "0,1,28,29".

    Raises:
        ConfigError: if it is no such list, or a layer does not exist.
    """
    try:
        kept = [int(layer) for layer in layers.split(",")]
    except ValueError:
        raise ConfigError(f"layers={layers} is not a list of numbers such as 0,1,2") from None
    for layer in kept:
        if not 0 <= layer < target.spec.num_layers:
            raise ConfigError(f"layer {layer} does not exist; the target has layers 0 to {target.spec.num_layers - 1}")
    return kept


@final
class DraftModelSession(Session):
    """The draft model's cache, and what it has still to read."""

    def __init__(self, reader: ModelReader, config: DraftModelConfig, plan: SessionPlan) -> None:
        self.reader = reader
        self.config = config
        self.plan = plan
        self.chains: ChainDrafter | None = None
        if config.width == 1:
            graphs = default_graph_pool(plan.device)
            self.chains = ChainDrafter(reader, plan, config.num_nodes, sampled=config.sampled, graphs=graphs)

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.reader.admit(slot, tokens, sampling)

    def keep(self, slot: int) -> Kept:
        return self.reader.kept(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        self.reader.reuse(slot, tokens, sampling, reused)

    def num_pending(self, slot: int) -> int:
        return self.reader.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.reader.catch_up(slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        within = dict(zip(slots, limits, strict=True))
        if self.chains is not None:
            return self.chains.draft(
                slots, {slot: min(*limit, self.config.num_nodes) for slot, limit in within.items()}
            )
        trees = self._grow({slot: limit for slot, limit in within.items() if min(limit) > 0})
        return Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots], self.plan.device)

    def _grow(self, limits: dict[int, DraftLimit]) -> dict[int, Tree]:
        """Grow trees: the root stays unread, and each level reads root and tree anew, since rows cost little."""
        if not limits:
            return {}
        slots = list(limits)
        self.catch_up(slots)
        self._read_all_but_root(slots)
        growths = {slot: Growth(self.config.width) for slot in slots}
        for level in range(min(self._levels, max(min(limit) for limit in limits.values()))):
            self._add_level([slot for slot in slots if level < min(limits[slot])], growths)
        return {slot: growths[slot].select(limits[slot].num_nodes) for slot in slots}

    @property
    def _levels(self) -> int:
        """The depth at which `num_nodes` nodes of this width are used up, and one more for probable paths."""
        return 1 + self.config.num_nodes // self.config.width

    def _add_level(self, slots: Sequence[int], growths: dict[int, Growth]) -> None:
        frontiers = [growths[slot].frontier for slot in slots]
        trees = [frontier_tree(growths[slot]) for slot in slots]
        roots = [self.reader.tokens[slot][-1] for slot in slots]
        # Nothing is kept of this read: the next level reads the root and its ancestors again.
        draft = Draft.of_trees([tree for tree, _ in trees], self.plan.device)
        states_BME = self.reader.model.states(slots, roots, draft)
        rows = [Row(place, trees[place][1][node]) for place, some in enumerate(frontiers) for node in some]
        best = ranked(self.reader.logits(states_BME, rows).log_softmax(-1), self.config.width)
        ids_K, start = self.reader.output.ids_K, 0
        tokens = (best.columns_RW if ids_K is None else ids_K[best.columns_RW]).tolist()
        gains = best.values_RW.tolist()
        for slot, frontier in zip(slots, frontiers, strict=True):
            end = start + len(frontier)
            growths[slot].add_level(tokens[start:end], gains[start:end])
            start = end

    def _read_all_but_root(self, slots: Sequence[int]) -> None:
        pending = self.reader.tokens
        unread = [slot for slot in slots if len(pending[slot]) > 1]
        if unread:
            self.reader.states(unread, [pending[slot][:-1] for slot in unread], [[] for _ in unread])
        for slot in unread:
            pending[slot] = pending[slot][-1:]

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for slot, _, tokens, _ in commits:
            self.reader.commit(slot, tokens)

    def release(self, slot: int) -> None:
        self.reader.release(slot)

    @property
    def num_bytes(self) -> int:
        return self.reader.num_bytes


def frontier_tree(growth: Growth) -> tuple[Tree, dict[int, int]]:
    """Return the frontier nodes with their ancestors, and the row of each of them (the root, -1, is row 0)."""
    needed: set[int] = set()
    for node in growth.frontier:
        while node >= 0:
            needed.add(node)
            node = growth.candidates.parents[node]
    kept = sorted(needed)
    rows = {-1: 0} | {node: place + 1 for place, node in enumerate(kept)}
    tokens = [growth.candidates.tokens[node] for node in kept]
    return Tree(tokens, [rows[growth.candidates.parents[node]] - 1 for node in kept]), rows
