"""The start of an EAGLE-3 head: its sizes, the tokens it can draft, and its first weights.

    sizes     the target's own layers, without biases and head norms; its rotary positions
    columns   the tokens that the target wrote most often, special and end-of-text tokens first, ascending
    weights   norms one, matrices normal with variance 1 / inputs; the output head is the target's rows of its columns

A layer of the target may be the start (`start_layer`): its projections read the state, and nothing of the token. Only
the head's first layer starts so.

Worked example: counts 5, 0, 9, 1 with end-of-text token 1 and room for 3 columns give tokens 0, 1 and 2.

Shapes: V vocabulary, K columns, E hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.weights import read_weights
from outrider.models.eagle3 import LAYER, Eagle3Spec
from outrider.models.spec import DecoderSpec
from outrider.target import Target
from outrider.train.objective import Teacher
from outrider.train.objectives.eagle3_network import Eagle3Network, plain
from outrider.train.objectives.layers import draw_weights

__all__ = ["begin", "head_spec"]

MASK_STD = 0.02
BESIDE_TOKEN = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def head_spec(
    target: Target,
    *,
    draft_vocab_size: int,
    num_layers: int = 1,
    intermediate_size: int | None,
    layer_ids: str | None,
    mask_id: int | None = None,
    norm_before_residual: bool = False,
    norm_before_fc: bool = False,
    fc_norm: bool = False,
    norm_output: bool = False,
) -> Eagle3Spec:
    """Return the spec of a head with the sizes of the target's own layers.

    Raises:
        ConfigError: if the target is not of the Llama family, or a layer id does not fit it.
    """
    found = decoder_spec(target)
    layer = replace(plain(found, num_layers), intermediate_size=intermediate_size or found.intermediate_size)
    return Eagle3Spec(
        layer=layer,
        draft_vocab_size=draft_vocab_size,
        target_hidden_size=found.hidden_size,
        layer_ids=None if layer_ids is None else parse_layer_ids(layer_ids, target),
        mask_id=mask_id,
        norm_before_residual=norm_before_residual,
        norm_before_fc=norm_before_fc,
        fc_norm=fc_norm,
        norm_output=norm_output,
    )


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
