"""The start of a draft model: a given model, some of the target's layers, or random weights.

    checkpoint   a small model of the target's family (PARD's way): its own embedding and head, padded to the target's
                 number of tokens if it has fewer; or a draft model that was trained here, to go on with it
    layers       a copy of some of the target's layers and of its final norm, between the target's embedding and head
    num_layers   fresh layers of the target's shape, or narrower with `hidden_size`

With the target's embedding and head (`share`), only the layers are trained and stored. That needs the target's hidden
size, and is the default wherever it has it, except for a small model that brings its own.

Worked example: SmolLM2-135M with layers="0,1,29" trains 3 layers, 10.6 million parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outrider.errors import ConfigError, check_setting
from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK, read_draft, widened
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposers.draft_model import layer_list
from outrider.target import Target
from outrider.train.objective import Teacher
from outrider.train.objectives.decoder import DraftNetwork

__all__ = ["StartConfig", "begin"]

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Start of a draft model, and the form in which it is stored."""

    checkpoint: str | None = None
    """Start from this draft model: a directory or a hub id."""
    layers: str | None = None
    """Start from these layers of the target, for example "0,1,2,29"."""
    num_layers: int = 2
    """Number of fresh layers, without checkpoint and layers."""
    hidden_size: int | None = None
    """Hidden size of fresh layers; by default the target's."""
    share: bool | None = None
    """Use the target's embedding and head, frozen and not stored; by default unless a checkpoint brings its own."""
    complete: bool = False
    """Store what is shared too, so that other engines can load the model."""
    draft_vocab: int = 0
    """Learn only this many tokens, those the target writes most often; 0 for all. Any number can be drafted from."""

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.layers is not None:
            raise ConfigError("give checkpoint or layers, not both; either is a whole draft model to begin with")
        if self.hidden_size is not None and (self.checkpoint is not None or self.layers is not None):
            raise ConfigError(f"hidden_size={self.hidden_size} is for fresh layers; leave out checkpoint and layers")
        check_setting(self, "draft_vocab", self.draft_vocab >= 0, "0 (all tokens) or positive")
        check_setting(self, "num_layers", self.num_layers >= 1, "at least 1")


def begin(teacher: Teacher, config: StartConfig, mask_id: int | None, seed: int) -> DraftNetwork:
    """Return the network before training, on the teacher's device.

    Raises:
        ConfigError: for settings that do not fit the target.
        CheckpointError: if a checkpoint cannot be read or has other tokens.
    """
    if config.checkpoint is not None:
        network = _from_checkpoint(teacher, config, config.checkpoint, mask_id)
    elif config.layers is not None:
        network = _from_layers(teacher, config, config.layers, mask_id)
    else:
        network = _fresh(teacher, config, mask_id, seed)
    return network.to(teacher.embedding_VE.device)


def _from_checkpoint(teacher: Teacher, config: StartConfig, name: str, mask_id: int | None) -> DraftNetwork:
    stored = read_draft(name, teacher.target)
    share = config.share if config.share is not None else stored.is_slim
    if stored.is_slim and not share:
        raise ConfigError(f"{name} has no embedding and head of its own; leave out share=False")
    tensors = widened(stored.tensors, teacher.target.spec.vocab_size)
    if mask_id is not None and share and MASK not in tensors:
        tensors[MASK] = tensors[EMBEDDING][mask_id] if EMBEDDING in tensors else _mean(teacher)
    return _network(teacher, stored.spec, tensors, share, mask_id)


def _from_layers(teacher: Teacher, config: StartConfig, layers: str, mask_id: int | None) -> DraftNetwork:
    target = teacher.target
    directory = target.checkpoint()
    if target.native is None or directory is None:
        raise ConfigError(f"layers={layers} needs a target on the native decoder, loaded from files; give a checkpoint")
    kept = layer_list(target, layers)
    weights = read_weights(directory)
    tensors = {
        EMBEDDING: teacher.embedding_VE,
        HEAD: teacher.head_VE,
        "model.norm.weight": weights["model.norm.weight"],
    }
    spec = target.native.keep(kept).spec
    for name in spec.weight_shapes():
        if name.startswith("model.layers."):
            _, _, place, rest = name.split(".", 3)
            tensors[name] = weights[f"model.layers.{kept[int(place)]}.{rest}"]
    tensors[MASK] = _mean(teacher)
    return _network(teacher, spec, tensors, config.share is not False, mask_id)


def _fresh(teacher: Teacher, config: StartConfig, mask_id: int | None, seed: int) -> DraftNetwork:
    target = teacher.target
    width = config.hidden_size or target.spec.hidden_size
    spec = _fresh_spec(target, width, config.num_layers)
    share = config.share if config.share is not None else width == target.spec.hidden_size
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _drawn(name, shape, spec, generator) for name, shape in spec.weight_shapes().items()}
    tensors[MASK] = _mean(teacher)
    if width == target.spec.hidden_size:
        tensors |= {EMBEDDING: teacher.embedding_VE, HEAD: teacher.head_VE}
        if target.native is not None:
            tensors["model.norm.weight"] = target.native.norm_E
    return _network(teacher, spec, tensors, share, mask_id)


def _drawn(name: str, shape: tuple[int, ...], spec: DecoderSpec, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    # GPT-2's rule: what adds to the residual stream is smaller, the more layers add
    std = (
        INIT_STD / math.sqrt(2 * spec.num_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
    )
    return torch.randn(shape, generator=generator) * std


def _fresh_spec(target: Target, width: int, num_layers: int) -> DecoderSpec:
    known = target.native.spec if target.native is not None else _plain_spec(target)
    spec = replace(known.dense(), num_layers=num_layers, windows=(None,) * num_layers)
    if width == known.hidden_size:
        return spec
    num_heads = max(1, round(known.num_heads * width / known.hidden_size))
    num_kv_heads = next(n for n in range(min(num_heads, known.num_kv_heads), 0, -1) if num_heads % n == 0)
    inner = max(8, 8 * round(known.intermediate_size * width / known.hidden_size / 8))
    return replace(spec, hidden_size=width, num_heads=num_heads, num_kv_heads=num_kv_heads, intermediate_size=inner)


def _plain_spec(target: Target) -> DecoderSpec:
    """Return the spec of a Llama for a target of another family."""
    ours = target.spec
    head_dim = 64 if ours.hidden_size % 64 == 0 else ours.hidden_size
    return DecoderSpec(
        family="llama",
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=8 * math.ceil(ours.hidden_size / 3),
        num_layers=1,
        num_heads=ours.hidden_size // head_dim,
        num_kv_heads=ours.hidden_size // head_dim,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        max_position_embeddings=ours.max_positions,
        rope=RopeSpec(),
        windows=(None,),
        eos_ids=ours.eos_ids,
    )


def _network(
    teacher: Teacher, spec: DecoderSpec, tensors: Mapping[str, Tensor], share: bool, mask_id: int | None
) -> DraftNetwork:
    ours = teacher.target.spec
    if spec.mlp_bias:
        raise ConfigError("a draft model with biases in its MLP (mlp_bias) cannot be trained here; begin with another")
    if spec.experts or spec.fused or spec.interleaved:
        what = "a mixture of experts" if spec.experts else f"layers of the family {spec.family}"
        raise ConfigError(f"a draft model with {what} cannot be trained here; begin with another")
    if share and spec.hidden_size != ours.hidden_size:
        raise ConfigError(
            f"share=True needs the target's hidden size {ours.hidden_size}, not {spec.hidden_size}; leave it out"
        )
    tied = teacher.head_VE is teacher.embedding_VE if share else spec.tie_word_embeddings
    spec = replace(spec, vocab_size=ours.vocab_size, tie_word_embeddings=tied)
    network = DraftNetwork(spec, teacher if share else None, mask_id)
    names = network.state_dict()
    network.load_state_dict({name: tensors[name].detach().to("cpu", torch.float32) for name in names})
    return network


def _mean(teacher: Teacher) -> Tensor:
    return teacher.embedding_VE.mean(0)
