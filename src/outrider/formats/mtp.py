"""Multi-token prediction modules on disk, in the layout of MiMo-7B: a few layers beside a Qwen2 decoder.

    model.mtp_layers.{i}.hidden_layernorm.weight   token_layernorm.weight   final_layernorm.weight     [E]
    model.mtp_layers.{i}.input_proj.weight         hidden half first                                   [E, 2E]
    model.mtp_layers.{i}.{input_layernorm, self_attn.*, post_attention_layernorm, mlp.*}               a Qwen2 layer
    model.norm.weight                              the target's final norm, where the modules read the stream before it

vLLM names the layer's submodule `mtp_block`; files with that name are read too. In published files its query, key and
value projections have biases; the stored ones are used. A checkpoint is a directory of its own, or the target's whole
directory with the modules among its layers, of which only these tensors are read.

The config has the target's sizes and vLLM's keys (`MiMoForCausalLM`, `num_nextn_predict_layers`). `model_type` is
written as `qwen2`, since `mimo` needs remote code in `transformers`; both are read. Our key `outrider` holds the
modules' input: "residual" (before the final norm, as published) or "normed".

Worked example: MiMo-7B has hidden size 4096, 32 heads and 8 key/value heads, so
`module_shapes(spec, 1)["model.mtp_layers.0.self_attn.k_proj.weight"] == (1024, 4096)`.

Shapes: E hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.hf_config import config_of
from outrider.formats.store import check_target, write_checkpoint
from outrider.formats.weights import Weights, read_weights
from outrider.models.spec import DecoderSpec, filled_config
from outrider.records.display import shown_json
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = [
    "FINAL_NORM",
    "MtpCheckpoint",
    "State",
    "block_spec",
    "final_norm_E",
    "module_prefix",
    "module_shapes",
    "open_mtp",
    "read_mtp",
    "write_mtp",
]

State = Literal["residual", "normed"]
FINAL_NORM: Final = "model.norm.weight"
MODULES: Final = "model.mtp_layers."
SHARED: Final = ("model.embed_tokens.weight", "lm_head.weight")
FAMILIES: Final = ("mimo", "qwen2")
MOST_MODULES: Final = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class MtpCheckpoint:
    """Prediction modules.

    spec         sizes of a module's layer; `num_layers` is the target's
    state        the state of the target that the first module reads
    tensors      tensors by published name, with the target's final norm if `state` is "residual"; those of a directory
                 are read on lookup
    provenance   `outrider` key of the config, empty for foreign files
    """

    spec: DecoderSpec
    num_modules: int
    state: State
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every required tensor, by name."""
        norm = {FINAL_NORM: (self.spec.hidden_size,)} if self.state == "residual" else {}
        return module_shapes(self.spec, self.num_modules) | norm

    @property
    def state_norm_E(self) -> Tensor | None:
        return self.tensors[FINAL_NORM] if self.state == "residual" else None


def module_prefix(index: int) -> str:
    return f"{MODULES}{index}."


def module_shapes(spec: DecoderSpec, num_modules: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the modules, linear weights (out, in)."""
    width = spec.hidden_size
    layer = replace(spec, num_layers=1, windows=(None,)).weight_shapes()
    names = {name.removeprefix("model.layers.0."): shape for name, shape in layer.items() if ".layers.0." in name}
    names |= {f"{part}_layernorm.weight": (width,) for part in ("hidden", "token", "final")}
    names["input_proj.weight"] = (width, 2 * width)
    return {module_prefix(index) + name: shape for index in range(num_modules) for name, shape in names.items()}


def block_spec(target: Target) -> DecoderSpec:
    """Return the spec of a Qwen2 layer with the sizes of the target's own layers.

    Raises:
        ConfigError: if the target is not of the Llama family.
    """
    if target.native is not None:
        spec = target.native.spec
    elif (directory := target.checkpoint()) is not None:
        try:
            spec = DecoderSpec.from_config_file(directory)
        except CheckpointError as error:
            raise ConfigError(f"prediction modules need a target of the Llama family: {error}") from error
    else:
        raise ConfigError(f"prediction modules need a target of the Llama family; {target.spec.name} is none")
    qwen2 = replace(spec.dense(), family="qwen2", windows=(None,) * spec.num_layers)
    return replace(qwen2, qkv_bias=True, o_bias=False, mlp_bias=False, qk_norm=False)


def final_norm_E(target: Target) -> Tensor:
    """Return the weight of the target's final norm, on the CPU.

    Raises:
        ConfigError: if it is unknown, or has a zero, which makes the norm impossible to invert.
    """
    if target.native is not None:
        norm_E = target.native.norm_E.cpu()
    elif (directory := target.checkpoint()) is not None and FINAL_NORM in read_weights(directory):
        norm_E = read_weights(directory)[FINAL_NORM]
    else:
        raise ConfigError(f'{target.spec.name} has no tensor {FINAL_NORM}; train with state="normed"')
    if bool((norm_E == 0).any()):
        raise ConfigError(f'{FINAL_NORM} of {target.spec.name} has a zero; train with state="normed"')
    return norm_E


def write_mtp(directory: Path, checkpoint: MtpCheckpoint, dtype: torch.dtype) -> None:
    """Write modules into an existing directory, weights in `dtype`."""
    names = [
        *module_shapes(checkpoint.spec, checkpoint.num_modules),
        *([FINAL_NORM] * (checkpoint.state == "residual")),
    ]
    tensors = {name: checkpoint.tensors[name].to(dtype) for name in names}
    config = _config(checkpoint.spec, checkpoint.num_modules, dtype)
    if checkpoint.provenance or checkpoint.state == "normed":
        config["outrider"] = {**checkpoint.provenance, "state": checkpoint.state}
    write_checkpoint(directory, tensors, config)


def read_mtp(directory: Path, target: Target) -> MtpCheckpoint:
    """Open the modules of a directory for a target; tensors are read on lookup.

    Raises:
        CheckpointError: as `open_mtp`, and for modules of another target.
    """
    checkpoint = open_mtp(directory)
    check_target({"outrider": checkpoint.provenance}, target, directory)
    _check_sizes(checkpoint.spec, target, directory)
    return checkpoint


def open_mtp(directory: Path) -> MtpCheckpoint:
    """Open the modules of a directory: config and headers alone.

    Raises:
        CheckpointError: for a missing, extra or misshapen tensor, or a config without modules.
    """
    file = directory / "config.json"
    config = read_json(file)
    num_modules = config.get("num_nextn_predict_layers")
    if type(num_modules) is not int or not 1 <= num_modules <= MOST_MODULES:
        told = None if num_modules is None else shown_json(num_modules)
        raise CheckpointError(
            f"{file} has num_nextn_predict_layers {told}, so it holds no prediction modules; "
            "give a checkpoint in the MiMo layout"
        )
    spec = _spec(config, file)
    facts = config.get("outrider")
    facts = facts if isinstance(facts, Mapping) else {}
    state = facts.get("state", "residual")
    if state not in ("residual", "normed"):
        raise CheckpointError(f'{file} has state {shown_json(state)} under outrider; it must be "residual" or "normed"')
    weights = _modules_of(read_weights(directory), keep_norm=state == "residual")
    # the stored biases decide, not the config
    spec = replace(spec, qkv_bias=any(name.endswith("_proj.bias") for name in weights))
    found = MtpCheckpoint(spec=spec, num_modules=num_modules, state=state, tensors=weights, provenance=facts)
    weights.check(found.shapes, optional=SHARED)
    return found


def _modules_of(weights: Weights, keep_norm: bool) -> Weights:
    """Return the modules alone if the file holds the whole target; else all tensors, so that a stray one is found."""
    stored = {name.replace(".mtp_block.", "."): tensor for name, tensor in weights.stored.items()}
    # two names may become one; then the file is checked under its own names
    weights = Weights(stored) if len(stored) == len(weights) else weights
    if not any(name.startswith("model.layers.") for name in weights):
        return weights
    return Weights(
        {
            name: stored
            for name, stored in weights.stored.items()
            if name.startswith(MODULES) or (keep_norm and name == FINAL_NORM)
        }
    )


def _check_sizes(spec: DecoderSpec, target: Target, directory: Path) -> None:
    for name, ours, theirs in (
        ("hidden_size", spec.hidden_size, target.spec.hidden_size),
        ("vocab_size", spec.vocab_size, target.spec.vocab_size),
        ("num_hidden_layers", spec.num_layers, target.spec.num_layers),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{directory} was made for a target with {name} {ours}, but {target.spec.name} has {theirs}; "
                "load it with its own target"
            )


def _spec(config: Mapping[str, Any], file: Path) -> DecoderSpec:
    if config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{file} has model_type {shown_json(config.get('model_type'))}; known: {', '.join(FAMILIES)}"
        )
    known = filled_config({**config, "model_type": "qwen2"}, "qwen2", file, own=("attention_bias",))
    spec = DecoderSpec.from_config(known)
    return replace(spec, windows=(None,) * spec.num_layers)


def _config(spec: DecoderSpec, num_modules: int, dtype: torch.dtype) -> dict[str, Any]:
    modules = {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": num_modules, "attention_bias": True}
    return config_of(spec, dtype) | modules
