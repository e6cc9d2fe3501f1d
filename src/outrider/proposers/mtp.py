"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437; FastMTP trains one module to be applied again).

Small modules, trained for the target, read its last hidden state and the token after it and predict one token further;
`outrider.models.mtp` has the network. With one module the draft grows by applying it to its own output (FastMTP; also
what vLLM does), as a chain or as a tree. With several, module k drafts token k (`mtp_modules.py`), as a chain.

    state of x_n-1, root x_n        -> draft 1        one module: its output and draft 1 one slot on  -> draft 2
                                                      several: module 1 at the same slot, and draft 1 -> draft 2

Worked example: `load_proposer("mtp", target, checkpoint="run/final")` drafts as many tokens as it was trained for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

from outrider.errors import ConfigError
from outrider.formats.locate import locate
from outrider.formats.mtp import (
    FINAL_NORM,
    MtpCheckpoint,
    State,
    block_spec,
    final_norm_E,
    module_prefix,
    module_shapes,
    read_mtp,
)
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.models.mtp import MtpModule
from outrider.models.rope import reach
from outrider.proposer import Proposer, ProposerSpec, Session, SessionPlan
from outrider.proposers.drafting.mtp_modules import MtpModulesSession
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds, check_window, window_of
from outrider.target import Target
from outrider.targets.output_head import output_head

__all__ = ["MtpConfig", "MtpProposer", "trained_depths"]

DEFAULT_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class MtpConfig:
    """Settings of multi-token prediction.

    checkpoint   directory or hub id of the modules; a target's own directory, if they lie among its layers; by default
                 those that are shipped for the target
    num_nodes    drafted tokens per step; by default as many as the modules were trained for (3 where that is unknown)
    width        1 drafts a chain; above 1, the branching of a tree (one module only)
    depth        most levels of a tree; by default as many as the module was trained for
    sampled      draw the drafts instead of taking the most probable token (chains only); None draws them where that
                 costs no more: on the CPU, with the target's noise
    draft_vocab  draft only that many of the most frequent tokens, 0 for all; by default 8192 where training left a
                 ranking beside the checkpoint, else all
    window       read only the last so many positions of the text, and the first few; None for all of it (one module
                 only)
    sinks        the first positions that a window keeps, by default 4
    """

    checkpoint: str | None = None
    num_nodes: int | None = None
    width: int = 1
    depth: int | None = None
    sampled: bool | None = None
    draft_vocab: int | None = None
    window: int | None = None
    sinks: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_window(self)
        check_bounds(self, num_nodes=(1, 256), width=(1, 32), depth=(1, 64))
        if self.depth is not None and self.width == 1:
            raise ConfigError(f"depth={self.depth} bounds a tree; a chain is as deep as num_nodes")
        if self.sampled and self.width > 1:
            raise ConfigError("sampled=True drafts chains; set width=1")


@final
class MtpProposer(Proposer):
    """The modules of one checkpoint, on the target's device."""

    Config = MtpConfig
    shipped = "mtp"

    def __init__(
        self, target: Target, checkpoint: MtpCheckpoint, config: MtpConfig, ids_K: Tensor | None = None
    ) -> None:
        """Pack the modules. `ids_K` are the tokens that are drafted, None for all.

        Raises:
            ConfigError: if several modules cannot draft as the settings say.
        """
        several = checkpoint.num_modules > 1
        trained = checkpoint.num_modules if several else trained_depths(checkpoint)
        self.config = config
        self.vocab_size = target.spec.vocab_size
        self.num_nodes = trained if config.num_nodes is None else config.num_nodes
        self.depth = trained if config.depth is None else config.depth
        if several and config.width > 1:
            raise ConfigError(f"width={config.width}: {checkpoint.num_modules} modules draft chains; set width=1")
        if several and config.window is not None:
            raise ConfigError(
                f"window={config.window} works with one module, and {config.checkpoint} has {checkpoint.num_modules};"
                " leave window out"
            )
        self.window = window_of(config, (None,))
        if several and self.num_nodes > trained:
            raise ConfigError(
                f"num_nodes={self.num_nodes} exceeds the {trained} modules of {config.checkpoint}, which draft one "
                f"token each; set num_nodes={trained} or less"
            )
        embedding_VE = target.shared_weights().embedding_VE
        self.output = output_head(target, ids_K)
        self.modules = [
            MtpModule(
                checkpoint.spec,
                checkpoint.tensors,
                module_prefix(index),
                target.spec.device,
                target.spec.dtype,
                embedding_VE,
                self.output,
                checkpoint.state_norm_E,
            )
            for index in range(checkpoint.num_modules)
        ]

    @classmethod
    def load(cls, target: Target, config: MtpConfig) -> Self:
        directory = Path(locate(config.checkpoint or ""))
        return cls(target, read_mtp(directory, target), config, drafted_ids(directory, target, config.draft_vocab))

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        num_modules = 1 + seed % 3
        width = 1 + (seed // 3) % 2 * 2 if num_modules == 1 else 1
        config = MtpConfig(
            checkpoint="example",
            num_nodes=2 + seed % 4 if num_modules == 1 else num_modules,
            width=width,
            depth=2 if width > 1 else None,
            sampled=(seed % 2 == 1 and width == 1) or None,
            window=7 if num_modules == 1 and seed % 2 == 0 else None,
        )
        checkpoint = random_checkpoint(target, num_modules, "normed" if seed % 2 else "residual", seed)
        ids_K = torch.arange(seed % 2, target.spec.vocab_size, 2) if seed % 5 < 2 else None
        return cls(target, checkpoint, config, ids_K)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(
            max_nodes=self.num_nodes,
            feature_layers=self.modules[0].feature_layers,
            num_bytes=self.output.num_bytes + sum(module.num_bytes for module in self.modules),
        )

    def open(self, plan: SessionPlan) -> Session:
        return within_reach(reach(self.modules[0].spec), plan, self._open)

    def _open(self, plan: SessionPlan) -> Session:
        if len(self.modules) > 1:
            return MtpModulesSession(
                self.modules,
                plan,
                vocab_size=self.vocab_size,
                num_nodes=self.num_nodes,
                sampled=bool(self.config.sampled),
            )
        return RecurrentSession(
            self.modules[0],
            plan,
            vocab_size=self.vocab_size,
            num_nodes=self.num_nodes,
            depth=self.num_nodes if self.config.width == 1 else self.depth,
            width=self.config.width,
            window=self.window,
            sampled=self.config.sampled,
        )


def random_checkpoint(target: Target, num_modules: int, state: State, seed: int) -> MtpCheckpoint:
    """Make modules with random weights of the right shapes, in the target's dtype."""
    spec = block_spec(target)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in module_shapes(spec, num_modules).items():
        noise = torch.randn(shape, generator=generator).to(target.spec.dtype)
        tensors[name] = 1 + 0.1 * noise if "norm" in name else noise * shape[-1] ** -0.5
    if state == "residual":
        tensors[FINAL_NORM] = final_norm_E(target)
    return MtpCheckpoint(spec=spec, num_modules=num_modules, state=state, tensors=tensors, provenance={})


def trained_depths(checkpoint: MtpCheckpoint) -> int:
    """Return how many tokens ahead the modules were trained for, or the usual number where that is unknown."""
    known = checkpoint.provenance.get("num_depths")
    return known if isinstance(known, int) and 1 <= known <= 64 else DEFAULT_DEPTH
