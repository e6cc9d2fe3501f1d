"""Suspects of multi-token prediction modules.

    input halves   `input_proj` reads the state first (MiMo) or the token first (DeepSeek, Qwen3-Next)
    input norms    the norms of state and token exchanged
    target state   the stream before the final norm, or the state behind it: published modules say nothing about it

Example: modules that were converted from another family read the token first, and the variant swaps the halves.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from outrider.doctor.finding import Finding
from outrider.doctor.heads.layer import MOVED_NORMS, layer_variants, moved_norms, norm_names
from outrider.doctor.variant import Config, Tensors, Variant
from outrider.formats.locate import CONFIG
from outrider.formats.mtp import FINAL_NORM, final_norm_E
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = True
MODULES = ".mtp_layers."
NORMS = (".hidden_layernorm.weight", ".token_layernorm.weight")


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like prediction modules."""
    return any(MODULES in name for name in names)


def feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return every feature layer that a variant may read: the last state, before and behind the final norm."""
    return num_layers, num_layers + 1


def stored_findings(directory: Path, target: Target) -> list[Finding]:
    """Return findings on the files alone: none for this kind."""
    return []


def variants(directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants to try.

    Raises:
        CheckpointError: if the config or the header of the weights cannot be read.
    """
    config, weights = read_json(directory / CONFIG).plain(), read_weights(directory)
    names = [name for name in weights if MODULES in name]
    shapes = {name: weights.shape(name) for name in names}
    found = [*_inputs(names), *_states(config, target)]
    found += layer_variants(config, shapes, spec)
    norms = norm_names(shapes)
    if norms and min(float(weights[name].float().mean()) for name in norms) < MOVED_NORMS:
        found.append(moved_norms(norms))
    return found


def _inputs(names: Sequence[str]) -> Iterator[Variant]:
    projections = [name for name in names if name.endswith(".input_proj.weight")]
    yield Variant(
        check="input halves",
        now="input_proj reads the state first, then the token",
        instead="the token first",
        remedy="swap the two halves of the columns of input_proj: the state comes first in this layout",
        tensors=_swapping(projections),
    )
    hidden = [name for name in names if name.endswith(NORMS[0])]
    yield Variant(
        check="input norms",
        now="hidden_layernorm is the state's norm and token_layernorm the token's",
        instead="the two exchanged",
        remedy="exchange hidden_layernorm and token_layernorm",
        tensors=_exchanging([(name, name.replace(*NORMS)) for name in hidden]),
    )


def _swapping(names: Sequence[str]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            tensors[name] = torch.cat(tensors[name].chunk(2, dim=1)[::-1], dim=1).contiguous()

    return change


def _exchanging(pairs: Sequence[tuple[str, str]]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for one, other in pairs:
            tensors[one], tensors[other] = tensors[other], tensors[one]

    return change


def _states(config: Mapping[str, Any], target: Target) -> Iterator[Variant]:
    own = config.get("outrider")
    state = own.get("state", "residual") if isinstance(own, Mapping) else "residual"
    other = "normed" if state == "residual" else "residual"
    words = {"residual": "the stream before the final norm", "normed": "the state behind the final norm"}

    def change_config(config: Config) -> None:
        config["outrider"] = {**(config.get("outrider") or {}), "state": other}

    def change_tensors(tensors: Tensors) -> None:
        tensors.pop(FINAL_NORM, None)
        if other == "residual":
            tensors[FINAL_NORM] = final_norm_E(target)

    yield Variant(
        check="target state",
        now=f"the modules read {words.get(str(state), 'an unknown state')}",
        instead=words[other],
        remedy=f'set "outrider": {{"state": "{other}"}} in config.json',
        config=change_config,
        tensors=change_tensors,
    )
