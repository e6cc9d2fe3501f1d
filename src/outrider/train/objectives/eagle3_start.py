"""An EAGLE-3 or P-EAGLE head in training: its sizes, the tokens it can draft, its first weights, and its files.

    sizes     the target's own layers, without biases and head norms; its rotary positions
    columns   the tokens that the target wrote most often, special and end-of-text tokens first, ascending
    weights   norms one, matrices normal with variance 1 / inputs; the output head is the target's rows of its columns

A layer of the target may be the start (`start_layer`): its projections read the state, and nothing of the token. Only
the head's first layer starts so.

Worked example: counts 5, 0, 9, 1 with end-of-text token 1 and room for 3 columns give tokens 0, 1 and 2.

Shapes: V vocabulary, K columns, E hidden size.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from outrider.data.texts import Corpus
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.eagle3 import Eagle3Checkpoint, write_native
from outrider.formats.store import provenance
from outrider.formats.weights import read_weights
from outrider.models.eagle3 import LAYER, Eagle3Spec
from outrider.models.spec import DecoderSpec
from outrider.target import Target
from outrider.train.batch import Batch
from outrider.train.objective import Teacher
from outrider.train.objectives.columns import Columns, choose_columns
from outrider.train.objectives.eagle3_network import Eagle3Network, plain
from outrider.train.objectives.layers import draw_weights
from outrider.train.objectives.losses import Loss
from outrider.train.objectives.scoring import Scorer

__all__ = ["HeadFeatures", "TrainedHead", "decoder_spec", "parse_layer_ids"]

MASK_STD = 0.02
BESIDE_TOKEN = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


class HeadFeatures(NamedTuple):
    """A batch's captured states: those that the head fuses [B, L, F], and the target's final ones [B, L, E]."""

    fused_BLF: Tensor
    final_BLE: Tensor


@final
@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A network, the frozen target it learns from, and the tokens of its columns.

    config   settings of the objective
    """

    teacher: Teacher
    config: Any
    network: Eagle3Network
    ids_K: Tensor

    @classmethod
    def create(
        cls, teacher: Teacher, config: Any, corpus: Corpus, seed: int, *, mask_id: int | None = None, norm_output: bool
    ) -> Self:
        """Build a network with the sizes of the target's own layers.

        Args:
            mask_id: the token of masked slots, of a head that drafts all tokens in one pass.
            norm_output: the head feeds on its own normalised output.

        Raises:
            ConfigError: if the target is not of the Llama family, or a layer id does not fit it.
        """
        target, found = teacher.target, decoder_spec(teacher.target)
        ids_K = choose_columns(target, corpus, config.draft_vocab)
        size = config.intermediate_size or found.intermediate_size
        spec = Eagle3Spec(
            layer=replace(plain(found, config.num_layers), intermediate_size=size),
            draft_vocab_size=len(ids_K),
            target_hidden_size=found.hidden_size,
            layer_ids=None if config.layer_ids is None else parse_layer_ids(config.layer_ids, target),
            mask_id=mask_id,
            norm_before_residual=config.norm_before_residual,
            norm_before_fc=config.norm_before_fc,
            fc_norm=config.fc_norm,
            norm_output=norm_output,
        )
        network = Eagle3Network(spec)
        begin(network, teacher, ids_K, seed=seed, start_head=config.start_head, start_layer=config.start_layer)
        network.lm_head.requires_grad_(config.train_head)
        return cls(teacher, config, network.to(teacher.embedding_VE.device), ids_K)

    @property
    def spec(self) -> Eagle3Spec:
        """The config of the network."""
        return self.network.spec

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The states that the head fuses, and the target's final one."""
        num_layers = self.teacher.target.spec.num_layers
        return (*self.spec.feature_layers(num_layers), num_layers)

    def scorer(self, loss: Loss) -> Scorer:
        """Return the scorer of its columns."""
        columns = Columns(self.ids_K, self.spec.layer.vocab_size, self.teacher.embedding_VE.device)
        return Scorer(loss, self.teacher, columns)

    def features(self, batch: Batch) -> HeadFeatures:
        """Return the states of `feature_layers` in the precision of the network."""
        assert batch.features_BLF is not None, "the batch was made without features"
        features_BLF = batch.features_BLF.to(self.network.norm.weight.dtype)
        return HeadFeatures(features_BLF[..., : self.spec.features], features_BLF[..., self.spec.features :])

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write the head in the native layout, weights in `dtype`, into an existing directory."""
        tensors = {name: tensor.detach() for name, tensor in self.network.state_dict().items()}
        about = provenance(self.teacher.target, training=asdict(self.config))
        saved = Eagle3Checkpoint(spec=self.spec, tensors=tensors, ids_K=self.ids_K.cpu(), provenance=about)
        write_native(directory, saved, dtype)


def decoder_spec(target: Target) -> DecoderSpec:
    """Return the spec of the target's own decoder."""
    if target.native is not None:
        return target.native.spec
    directory = target.checkpoint()
    if directory is None:
        raise ConfigError(
            f"a head needs a target of the Llama family, whose sizes are known; {target.spec.name} is none"
        )
    try:
        return DecoderSpec.from_config_file(directory)
    except CheckpointError as error:
        raise ConfigError(f"a head needs a target of the Llama family: {error}") from error


def parse_layer_ids(text: str, target: Target) -> tuple[int, ...]:
    """Parse layer ids such as "2,14,25"."""
    try:
        ids = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"layer_ids={text} is not a list of numbers such as 2,14,25") from None
    for layer in ids:
        if not 0 <= layer < target.spec.num_layers:
            raise ConfigError(f"layer {layer} does not exist; the target has layers 0 to {target.spec.num_layers - 1}")
    return ids


def begin(
    network: Eagle3Network, teacher: Teacher, ids_K: Tensor, *, seed: int, start_head: bool, start_layer: int | None
) -> None:
    """Give a network its first weights.

    Raises:
        ConfigError: if `start_layer` is not a layer of the target, or its files are not at hand.
    """
    draw_weights(network, seed)
    with torch.no_grad():
        if network.spec.mask_id is not None:
            network.mask_hidden.normal_(std=MASK_STD, generator=torch.Generator().manual_seed(seed))
        if start_head:
            network.lm_head.weight.copy_(teacher.head_VE[ids_K.to(teacher.head_VE.device)])
        if start_layer is not None:
            copy_layer(network, teacher.target, start_layer)


def copy_layer(network: Eagle3Network, target: Target, layer: int) -> None:
    """Copy a layer of the target, wherever shapes agree; what reads the token starts at zero."""
    num_layers = target.spec.num_layers
    if not -num_layers <= layer < num_layers:
        raise ConfigError(f"start_layer={layer} does not exist; the target has layers 0 to {num_layers - 1}")
    directory = target.checkpoint()
    if directory is None:
        raise ConfigError(f"start_layer={layer} needs the files of the target; load it from a directory or the hub")
    weights, prefix = read_weights(directory), f"model.layers.{layer % num_layers}."
    width = network.spec.layer.hidden_size
    for name, parameter in network.named_parameters():
        source = prefix + name.removeprefix(LAYER)
        if not name.startswith(LAYER) or source not in weights:
            continue
        found = weights[source]
        if name.endswith(BESIDE_TOKEN):
            parameter[:, :width] = 0
            parameter[:, width:] = found
        elif found.shape == parameter.shape:
            parameter.copy_(found)
    if f"{prefix}input_layernorm.weight" in weights:
        network.midlayer.hidden_norm.weight.copy_(weights[f"{prefix}input_layernorm.weight"])
