"""Suspects of an EAGLE-3 head.

    feature layers   ids shifted by 1 or 2, the published three, the reverse order: engines differ on whether id k
                     is the state before or after layer k
    norm flags       `norm_before_residual`, `norm_output` and others, which engines read with different defaults
    vocabulary map   `d2t` as offsets, as ids, or recovered from the output head's rows
    input halves     token and state the other way round
    embedding        the target's instead of the head's own

Example: a head of SmolLM2 with ids 3, 16, 28 is right less often than with 2, 15, 27, and the variant says so.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from outrider.doctor.finding import Finding
from outrider.doctor.heads.layer import MOVED_NORMS, layer_variants, moved_norms, norm_names
from outrider.doctor.heads.maps import are_tokens, offset_maps
from outrider.doctor.variant import Config, Tensors, Variant
from outrider.errors import CheckpointError
from outrider.formats.eagle3_config import LAYER_IDS, TARGET_LAYER_IDS, spec_of
from outrider.formats.eagle3_speculators import is_speculators, native_of
from outrider.formats.eagle3_tensors import canonical_names
from outrider.formats.locate import CONFIG
from outrider.formats.weights import read_weights
from outrider.models.eagle3 import LAYER, MASK, default_layer_ids
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import Fields, read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = True
SHIFTS: Final = (-1, 1, -2, 2)
FLAGS: Final = ("norm_before_residual", "norm_output", "norm_before_fc", "fc_norm")
OTHER_IDS: Final = ("aux_hidden_state_layer_ids", LAYER_IDS, TARGET_LAYER_IDS)
PROJECTIONS: Final = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like one of these heads."""
    if any(name.endswith(MASK) for name in names):
        return False
    kind = config.get("speculators_model_type")
    is_native = "draft_vocab_size" in config or any("midlayer." in name for name in names)
    return kind == "eagle3" or (kind is None and is_native)


def feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return every feature layer that a variant may read."""
    return tuple(range(num_layers + 2))


def variants(directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants to try.

    Raises:
        CheckpointError: if the config or the header of the weights cannot be read.
    """
    raw = read_json(directory / CONFIG)
    weights = read_weights(directory)
    names = canonical_names(weights, directory)
    shapes = {name: weights.shape(stored) for name, stored in names.items()}
    found = [*_layers(raw, directory, shapes, target), *_flags(raw)]
    found += offset_maps(weights, names, target)
    found += _halves(names, shapes)
    if "embed_tokens.weight" in names:
        found.append(_shared_embedding(names["embed_tokens.weight"]))
    stored = {name: weights.shape(name) for name in weights}
    found += layer_variants(raw.plain(), stored, spec)
    norms = norm_names(stored)
    if norms and min(float(weights[name].float().mean()) for name in norms) < MOVED_NORMS:
        found.append(moved_norms(norms))
    return found


def _layers(raw: Fields, directory: Path, shapes: Mapping[str, tuple[int, ...]], target: Target) -> Iterator[Variant]:
    """Yield other feature layers; a list that cannot be read is replaced by the published three."""
    num_layers, file = target.spec.num_layers, directory / CONFIG
    published = default_layer_ids(num_layers)
    try:
        config = native_of(raw, file) if is_speculators(raw) else raw.plain()
        spec = spec_of(config, file, shapes, target.spec.hidden_size)
        ids = published if spec.layer_ids is None else spec.layer_ids
    except CheckpointError:
        yield _with_layers("a list that cannot be read", published, is_expected=True)
        return
    if not ids:
        return
    now = f"states before layers {', '.join(map(str, ids))}"
    shifted = [tuple(layer + shift for layer in ids) for shift in SHIFTS]
    for other in dict.fromkeys([published, *shifted, ids[::-1]]):
        if other != ids and len(other) == len(ids) and all(0 <= layer <= num_layers for layer in other):
            yield _with_layers(now, other, is_expected=other == published)


def _with_layers(now: str, ids: Sequence[int], is_expected: bool) -> Variant:
    def change(config: Config) -> None:
        nested = config.get("eagle_config")
        for place in (config, nested if isinstance(nested, dict) else {}):
            for key in OTHER_IDS:
                place.pop(key, None)
        config[LAYER_IDS] = list(ids)

    listed = ", ".join(map(str, ids))
    return Variant(
        check="feature layers",
        now=now,
        instead=f"those before layers {listed}" + (", the published choice" if is_expected else ""),
        remedy=f"set {LAYER_IDS} to [{listed}]: id k is the state before layer k, hidden_states[k]",
        is_expected=is_expected,
        config=change,
    )


def _flags(raw: Fields) -> Iterator[Variant]:
    nested = raw.get("eagle_config")
    for flag in FLAGS:
        places = (raw, nested) if isinstance(nested, Mapping) else (raw,)
        is_set = any(place.get(flag) is True for place in places)
        yield Variant(
            check="norm flags",
            now=f"{flag} is {str(is_set).lower()}",
            instead=str(not is_set).lower(),
            remedy=f"set {flag} to {str(not is_set).lower()}",
            config=_setting_flag(flag, not is_set),
        )


def _setting_flag(flag: str, value: bool) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        if isinstance(config.get("eagle_config"), dict):
            config["eagle_config"].pop(flag, None)
        config[flag] = value

    return change


def stored_findings(directory: Path, target: Target) -> list[Finding]:
    """Return a finding if the map holds token ids, which are read here, where other engines expect offsets.

    Raises:
        CheckpointError: if the header of the weights cannot be read.
    """
    weights = read_weights(directory)
    names = canonical_names(weights, directory)
    if "d2t" not in names:
        return []
    d2t_K = weights.integers(names["d2t"])
    moved_K, vocab_size = d2t_K + torch.arange(len(d2t_K)), target.spec.vocab_size
    if are_tokens(moved_K, vocab_size) or not are_tokens(d2t_K, vocab_size):
        return []
    evidence = f"d2t holds token ids up to {int(d2t_K.max())}; vLLM and SGLang add the column's number to each"
    remedy = "write d2t as offsets, token id = column + d2t[column]; `outrider export` does so"
    return [Finding("vocabulary map", "problem", evidence, remedy)]


def _halves(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Variant]:
    both = [f"{LAYER}self_attn.{part}" for part in PROJECTIONS]
    wide = [name for name in both if name in names and len(shapes[name]) == 2 and shapes[name][1] % 2 == 0]
    if len(wide) == len(PROJECTIONS):
        yield Variant(
            check="input halves",
            now="the layer reads the token's embedding first, then the state",
            instead="the state first",
            remedy="swap the two halves of the columns of q_proj, k_proj and v_proj: the embedding comes first",
            tensors=_swapping([names[name] for name in wide]),
        )


def _swapping(stored: Sequence[str]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in stored:
            tensors[name] = torch.cat(tensors[name].chunk(2, dim=1)[::-1], dim=1).contiguous()

    return change


def _deleting(stored: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[stored]

    return change


def _shared_embedding(stored: str) -> Variant:
    return Variant(
        check="embedding",
        now="the head reads tokens by its own embedding",
        instead="by the target's",
        remedy=f"delete {stored}: the head was trained with the target's embedding",
        tensors=_deleting(stored),
    )
