"""Training multi-token prediction modules for a target that has none.

The modules of `mtp_network.py` read the target's last state and the tokens that follow, with the target's embedding and
output head frozen. Depth k predicts the k-th token after the root; the loss is

    sum_k w_k mean_t loss(head(y_{t,k}), x_{t+1+k})         w_k = beta^{k-1} / sum_j beta^{j-1},   beta = 0.6

with the text's own tokens throughout. One module is applied again and again, as at run time (FastMTP); several modules
are DeepSeek-V3's (arXiv 2412.19437, section 2.2). Only tokens that the target wrote are predicted.

Training starts from the target's last layer and final norm where its files are at hand, with `input_proj` reading the
state alone: its hidden half is the identity, its token half zero.

Worked example: text x0 x1 x2 x3 x4, answer x2..x4, three depths. Slot 1 has root x2, reads h1 and x2 and learns x3 at
depth 1, x4 at depth 2. Slot 0, root x1, learns x2, x3 and x4, but x1 is the prompt's, so it is no anchor for tau.

Shapes: B rows, L positions, E hidden size, V vocabulary, K depths, R rows that are scored, or all B * L anchors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from outrider.data.texts import Corpus
from outrider.errors import ConfigError, check_setting
from outrider.formats.mtp import (
    FINAL_NORM,
    MtpCheckpoint,
    State,
    block_spec,
    final_norm_E,
    module_prefix,
    write_mtp,
)
from outrider.formats.store import provenance
from outrider.formats.weights import Weights, read_weights
from outrider.models.spec import DecoderSpec
from outrider.target import Target
from outrider.train.batch import Batch
from outrider.train.objective import Objective, Outcome, Teacher
from outrider.train.objectives.columns import Columns
from outrider.train.objectives.layers import draw_weights
from outrider.train.objectives.losses import Loss
from outrider.train.objectives.mtp_network import MtpInputs, MtpNetwork
from outrider.train.objectives.scoring import Depths, Scorer

__all__ = ["MtpObjective", "MtpObjectiveConfig"]


@dataclass(frozen=True, kw_only=True)
class MtpObjectiveConfig:
    """Settings of multi-token prediction training."""

    num_modules: int = 1
    """1 trains one module to be applied again; more are one module for each depth."""
    num_depths: int = 3
    """Tokens predicted after each root; with several modules, their number."""
    beta: float = 0.6
    """Weight of each depth relative to the one before."""
    loss: Loss = "ce"
    """ce learns the target's text; kl, tv and log_alpha its whole distribution."""
    draft_vocab: int = 0
    """Learn only this many tokens, those the target writes most often; 0 for all. Any number can be drafted from."""
    state: State = "residual"
    """The target's state that is read: residual, before its final norm (as MiMo and vLLM have it), or normed, after."""
    start_from_target: bool = True
    """Start from the target's last layer and final norm where its files are at hand and shapes allow."""

    def __post_init__(self) -> None:
        check_setting(self, "num_modules", 1 <= self.num_modules <= 16, "between 1 and 16")
        check_setting(self, "num_depths", 1 <= self.num_depths <= 16, "between 1 and 16")
        if self.num_modules > 1 and self.num_depths != self.num_modules:
            raise ConfigError(
                f"num_depths={self.num_depths} does not fit num_modules={self.num_modules}; several modules predict "
                f"one token each, so set num_depths={self.num_modules}"
            )
        check_setting(self, "draft_vocab", self.draft_vocab >= 0, "0 (all tokens) or positive")
        check_setting(self, "beta", 0 < self.beta <= 1, "above 0 and at most 1")


@final
class MtpObjective(Objective):
    """One network, and the frozen target it learns from."""

    Config = MtpObjectiveConfig
    method = "mtp"

    def __init__(
        self,
        teacher: Teacher,
        config: MtpObjectiveConfig,
        network: MtpNetwork,
        norm_E: Tensor | None,
        columns: Columns,
    ) -> None:
        self.teacher = teacher
        self.scorer = Scorer(config.loss, teacher, columns)
        self.config = config
        self.network = network
        self.norm_E = norm_E

    @classmethod
    def create(cls, teacher: Teacher, config: MtpObjectiveConfig, corpus: Corpus, seed: int) -> Self:
        target = teacher.target
        spec = block_spec(target)
        network = MtpNetwork(spec, config.num_modules)
        draw_weights(network, seed)
        directory = target.checkpoint() if config.start_from_target else None
        if directory is not None:
            copy_from(read_weights(directory), target, network)
        norm_E = final_norm_E(target).to(teacher.embedding_VE) if config.state == "residual" else None
        columns = Columns.most_frequent(teacher, corpus, config.draft_vocab)
        return cls(teacher, config, network.to(teacher.embedding_VE), norm_E, columns)

    @classmethod
    def starts_trained(cls, config: MtpObjectiveConfig) -> bool:
        return config.start_from_target

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return (self.teacher.target.spec.num_layers,)

    @property
    def num_depths(self) -> int:
        return self.config.num_depths

    def __call__(self, batch: Batch, generator: torch.Generator) -> Outcome:
        features_BLE, powers = self._features(batch), [self.config.beta**depth for depth in range(self.num_depths)]
        depths = Depths(batch, self.scorer, [power / sum(powers) for power in powers])
        predict = self.scorer.predict_by(self.teacher.head_VE)
        for depth, out_BLE in enumerate(self.network(self.inputs(batch))):
            rows_BL = depths.rows_KBL[depth]
            teach = self.scorer.teach_by(batch.shifted(features_BLE, depth + 1)[rows_BL])
            depths.add(predict, out_BLE[rows_BL], teach)
        return depths.outcome()

    def inputs(self, batch: Batch) -> MtpInputs:
        """Return the inputs of the network for a batch."""
        features_BLE = self._features(batch)
        embeds = [
            self.teacher.embedding_VE[batch.shifted(batch.tokens_BL, depth + 1)] for depth in range(self.num_depths)
        ]
        states_BLE = features_BLE if self.norm_E is None else features_BLE / self.norm_E
        return MtpInputs(states_BLE, embeds, batch.positions_BL, batch.causal_BLL())

    def _features(self, batch: Batch) -> Tensor:
        assert batch.features_BLF is not None, "the batch was collated without features"
        return batch.features_BLF.to(self.teacher.embedding_VE.dtype)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        config = self.config
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.norm_E is not None:
            tensors[FINAL_NORM] = self.norm_E
        facts = provenance(
            self.teacher.target, state=config.state, num_depths=config.num_depths, beta=config.beta, loss=config.loss
        )
        written = MtpCheckpoint(
            spec=self.network.spec,
            num_modules=config.num_modules,
            state=config.state,
            tensors=tensors,
            provenance=facts,
        )
        write_mtp(directory, written, dtype)


def copy_from(weights: Weights, target: Target, network: MtpNetwork) -> None:
    """Start every module from the target's last layer and final norm, as far as names and shapes agree.

    An attention whose queries and keys are normalised (Qwen3) computes something else and is left fresh.
    """
    spec: DecoderSpec = network.spec
    last = f"model.layers.{target.spec.num_layers - 1}."
    normed = f"{last}self_attn.q_norm.weight" in weights
    own = network.state_dict()
    with torch.no_grad():
        for index in range(len(network.mtp_layers)):
            prefix = module_prefix(index).removeprefix("model.")
            for name, parameter in own.items():
                part = name.removeprefix(prefix)
                source = FINAL_NORM if part == "final_layernorm.weight" else last + part
                if not name.startswith(prefix) or source not in weights or weights.shape(source) != parameter.shape:
                    continue
                if not (normed and part.startswith("self_attn.")):
                    parameter.copy_(weights[source])
            # the hidden half is the identity, the token half zero
            input_EF = own[f"{prefix}input_proj.weight"]
            input_EF.zero_()
            input_EF[:, : spec.hidden_size].fill_diagonal_(1.0)
