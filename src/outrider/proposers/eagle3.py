"""EAGLE-3 (Li et al., arXiv 2503.01840): a small head drafts from the target's own states.

The head (`outrider.models.eagle3`) reads three of the target's hidden states at every committed position. One head pass
costs about as much as one target layer and its small output head, so a chain of five or a tree of some dozens of nodes
is cheap. Trees grow by the head's own probabilities (EAGLE-2, arXiv 2406.16858): each level expands the `width` best
nodes into `width` tokens each, and the `num_nodes` most probable of all are kept.

    target 28 layers, feature layers 2, 14, 25
    chain of 5: one read of the accepted pairs, then four reads of one row

`RecurrentSession` holds the state of a running batch, and shows what is read when. A head is trained by
`outrider.train.objectives.eagle3` or comes from any published checkpoint in safetensors.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.eagle3 import Eagle3Checkpoint, read_eagle3
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.eagle3 import Eagle3Head, Eagle3Spec, default_layer_ids
from outrider.models.rope import reach
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposer import Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.drafting.recurrent_tree import parse_paths
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds, check_window, window_of
from outrider.target import Target

__all__ = ["Eagle3Config", "Eagle3Proposer"]


@dataclass(frozen=True, kw_only=True)
class Eagle3Config:
    """Settings of an EAGLE-3 head.

    checkpoint   directory or hub id of the head, in the native or the speculators layout; by default the one that is
                 shipped for the target
    num_nodes    drafted tokens per step
    width        1 drafts a chain; above 1, the branching of a dynamic tree
    depth        the most levels of a draft; None for num_nodes (chains) or 6 (trees)
    tree         a fixed tree instead: nodes as ranks from the root, such as "0 1 0.0 0.1 0.0.0"
    sampled      draw the drafts instead of taking the most probable token (chains only); None draws them where that
                 costs no more: on the CPU, with the target's noise
    draft_vocab  draft only that many of the most frequent tokens, by the ranking that training left beside the
                 checkpoint, as far as the head has columns for them; None or 0 for all of its columns
    window       read only the last so many positions of the text, and the first few; None for all of it
    sinks        the first positions that a window keeps, by default 4
    """

    checkpoint: str | None = None
    num_nodes: int = 5
    width: int = 1
    depth: int | None = None
    tree: str | None = None
    sampled: bool | None = None
    draft_vocab: int | None = None
    window: int | None = None
    sinks: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_window(self)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32), depth=(1, 64))
        if self.tree is not None and self.width > 1:
            raise ConfigError(f"tree fixes the shape of a draft; leave width={self.width} out")
        if self.sampled and (self.width > 1 or self.tree is not None):
            raise ConfigError("sampled=True drafts chains; leave width and tree out")
        if self.tree is not None:
            parse_paths(self.tree)

    @property
    def levels(self) -> int:
        """The most levels of a draft."""
        if self.depth is not None:
            return self.depth
        return self.num_nodes if self.width == 1 else 6


@final
class Eagle3Proposer(Proposer):
    """A head, packed for the target's device, and how it drafts."""

    Config = Eagle3Config
    shipped = "eagle3"

    def __init__(self, head: Eagle3Head, config: Eagle3Config) -> None:
        self.head = head
        self.config = config
        self.window = window_of(config, head.spec.layer.windows)

    @classmethod
    def load(cls, target: Target, config: Eagle3Config) -> Self:
        directory = locate(config.checkpoint or "")
        checkpoint = read_eagle3(directory, target)
        if checkpoint.spec.mask_id is not None:
            raise CheckpointError(f"{directory} drafts all tokens in one pass (P-EAGLE); run it as peagle")
        ids_K = drafted_ids(directory, target, config.draft_vocab or 0)
        return cls(head_of(checkpoint, target, ids_K), config)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        shapes: tuple[dict[str, Any], ...] = (
            {"width": 1},
            {"width": 1 + seed % 4, "depth": 1 + seed % 5},
            {"tree": "0 1 0.0 0.2 0.0.0 0.2.1"},
        )
        shape = shapes[seed % 3]
        sampled = seed % 6 == 0 or None
        window = 1 + seed if seed % 4 == 2 and seed % 7 < 5 else None  # of heads of one layer
        config = Eagle3Config(checkpoint="", num_nodes=2 + seed % 7, sampled=sampled, window=window, **shape)
        return cls(head_of(random_checkpoint(target, seed), target), config)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(
            max_nodes=self.config.num_nodes, feature_layers=self.head.feature_layers, num_bytes=self.head.num_bytes
        )

    def open(self, plan: SessionPlan) -> Session:
        config, layer = self.config, self.head.spec.layer
        return within_reach(
            reach(layer),
            plan,
            lambda plan: RecurrentSession(
                self.head,
                plan,
                vocab_size=layer.vocab_size,
                num_nodes=config.num_nodes,
                depth=config.levels,
                width=config.width,
                paths=None if config.tree is None else parse_paths(config.tree),
                window=self.window,
                sampled=config.sampled,
            ),
        )


def head_of(checkpoint: Eagle3Checkpoint, target: Target, drafted_K: Tensor | None = None) -> Eagle3Head:
    """Pack a head for a target's device and dtype; what the checkpoint does not hold is the target's.

    With `drafted_K`, only the columns of these tokens are kept.
    """
    spec, tensors, ids_K = checkpoint.spec, dict(checkpoint.tensors), checkpoint.ids_K
    own = tensors.get("embed_tokens.weight")
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = target.shared_weights().head_VE
    if drafted_K is not None:
        kept_K = torch.isin(ids_K, drafted_K)
        head_KE, ids_K = tensors["lm_head.weight"], ids_K[kept_K]
        tensors["lm_head.weight"] = head_KE[kept_K.to(head_KE.device)]
        spec = replace(spec, draft_vocab_size=len(ids_K))
    # Column k is token k: no map is needed at run time.
    is_whole = torch.equal(ids_K, torch.arange(spec.layer.vocab_size))
    return Eagle3Head(
        spec,
        tensors,
        embedding_VE=target.shared_weights().embedding_VE if own is None else own.to(target.spec.dtype),
        owns_embedding=own is not None,
        ids_K=None if is_whole else ids_K,
        feature_layers=spec.feature_layers(target.spec.num_layers),
        dtype=target.spec.dtype,
        device=target.spec.device,
    )


def random_checkpoint(target: Target, seed: int) -> Eagle3Checkpoint:
    """Make a head of random weights that fits the target, its variant and vocabulary drawn from `seed`."""
    found, generator = target.spec, torch.Generator().manual_seed(seed)
    num_layers = max(1, seed % 7 - 3)
    layer = DecoderSpec(
        family="qwen3" if seed % 5 == 1 else "llama",
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=2 * found.hidden_size,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1 + seed % 2,
        head_dim=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=found.max_positions,
        rope=RopeSpec(original_max_position_embeddings=found.max_positions),
        qk_norm=seed % 5 == 1,
        windows=(None,) * num_layers,
    )
    count = found.vocab_size if seed % 4 == 3 else max(1, found.vocab_size * 2 // 3)
    spec = Eagle3Spec(
        layer=layer,
        draft_vocab_size=count,
        target_hidden_size=found.hidden_size,
        layer_ids=None if seed % 2 else default_layer_ids(found.num_layers)[:2],
        norm_before_residual=seed % 3 == 1,
        norm_before_fc=seed % 4 == 2,
        fc_norm=seed % 4 == 1,
        norm_output=seed % 3 == 2,
    )
    tensors: dict[str, Tensor] = {}
    for name, shape in spec.shapes().items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else 0.5 * noise
    ids_K = torch.randperm(found.vocab_size, generator=generator)[:count].sort().values
    return Eagle3Checkpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance={})
