"""Suspects of a DFlash network.

    feature layers   ids shifted by 1 or 2, the published choice, the reverse order: the authors' layout numbers the
                     state after a layer, the speculators layout the state before it
    mask token       the target's special tokens, unless the mask's embedding is stored
    block size       a block of another size than in training has slots that were never trained
    root slot, causal layers   flags that engines read differently
    vocabulary map   as in other heads with fewer columns than tokens

Example: ids [2, 7, 12] that mean states before layers, written into the authors' layout, read one layer too high.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from outrider.doctor.finding import Finding
from outrider.doctor.heads.layer import MOVED_NORMS, layer_variants, moved_norms, norm_names
from outrider.doctor.heads.maps import offset_maps
from outrider.doctor.heads.masks import mask_tokens
from outrider.doctor.variant import Config, Variant
from outrider.errors import CheckpointError
from outrider.formats.blocks.dflash_config import KIND, KINDS, LAYER_IDS, SECTION, native_of, spec_of
from outrider.formats.locate import CONFIG
from outrider.formats.weights import Weights, read_weights
from outrider.models.blocks.dflash import default_layer_ids
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import Fields, read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = False
FUSION: Final = "fc.weight"
SHIFTS: Final = (-1, 1, -2, 2)
BLOCKS: Final = (4, 8, 10, 16)
"""Block sizes of published networks."""
MASK, BLOCK, ROOT, CAUSAL = "mask_token_id", "block_size", "sample_from_anchor", "is_causal"


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like one of these networks."""
    kind = config.get(KIND)
    fuses = any(name.removeprefix("model.") == FUSION for name in names)
    return kind in KINDS or (kind is None and fuses and (SECTION in config or BLOCK in config))


def feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return every feature layer that a variant may read."""
    return tuple(range(num_layers + 2))


def stored_findings(directory: Path, target: Target) -> list[Finding]:
    """Return findings on the files alone: none for this kind."""
    return []


def variants(directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants to try.

    Raises:
        CheckpointError: if the config or the header of the weights cannot be read.
    """
    raw, weights = read_json(directory / CONFIG), read_weights(directory)
    names = {name.removeprefix("model."): name for name in weights}
    shapes = {name: weights.shape(stored) for name, stored in names.items()}
    config = raw.plain()
    found = [*_layers(raw, directory, shapes, target), *_masks(config, names, target), *_blocks(config)]
    found += _flags(config)
    found += offset_maps(weights, names, target)
    found += layer_variants(config, {name: weights.shape(name) for name in weights}, spec)
    return [*found, *_norms(weights)]


def _norms(weights: Weights) -> list[Variant]:
    norms = norm_names({name: weights.shape(name) for name in weights})
    is_moved = bool(norms) and min(float(weights[name].float().mean()) for name in norms) < MOVED_NORMS
    return [moved_norms(norms)] if is_moved else []


def _told(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key of the method, at the top or in its section."""
    section = config.get(SECTION)
    return config.get(key, section.get(key) if isinstance(section, Mapping) else None)


def _setting(key: str, value: Any) -> Callable[[Config], None]:
    """Return a change that sets a key where the layout has it, and nowhere else."""

    def change(config: Config) -> None:
        inner = config.get(SECTION)
        section: Config = inner if isinstance(inner, dict) else config
        place = config if key in config or key in (CAUSAL, ROOT) else section
        for one in (config, section):
            one.pop(key, None)
        place[key] = value

    return change


def _layers(raw: Fields, directory: Path, shapes: Mapping[str, tuple[int, ...]], target: Target) -> Iterator[Variant]:
    """Yield other feature layers; a list that cannot be read is replaced by the published choice."""
    num_layers, file = target.spec.num_layers, directory / CONFIG
    width = shapes.get(FUSION, (0, 0))[-1]
    published = default_layer_ids(num_layers, max(1, width // target.spec.hidden_size))
    try:
        config = native_of(raw, file) if KIND in raw else raw.plain()
        ids = spec_of(config, file, shapes, num_layers).layer_ids
    except CheckpointError:
        ids = ()
    if len(ids) != len(published):
        yield _with_layers("a list that cannot be read, or of another length", published, is_expected=True)
        return
    now = f"states after layers {_listed(ids)}"
    shifted = [tuple(layer + shift for layer in ids) for shift in SHIFTS]
    for other in dict.fromkeys([published, *shifted, ids[::-1]]):
        if other != ids and len(other) == len(ids) and all(1 <= layer <= num_layers for layer in other):
            yield _with_layers(now, other, is_expected=other == published)


def _listed(ids: Collection[int]) -> str:
    return ", ".join(str(layer - 1) for layer in ids)


def _with_layers(now: str, ids: Collection[int], is_expected: bool) -> Variant:
    after = [layer - 1 for layer in ids]

    def change(config: Config) -> None:
        if KIND in config:
            config[LAYER_IDS] = list(ids)
        else:
            _setting("target_layer_ids", after)(config)

    return Variant(
        check="feature layers",
        now=now,
        instead=f"those after layers {_listed(ids)}" + (", the published choice" if is_expected else ""),
        remedy=f"set target_layer_ids to {after} ({LAYER_IDS} to {list(ids)} in the speculators layout)",
        is_expected=is_expected,
        config=change,
    )


def _masks(config: Mapping[str, Any], names: Collection[str], target: Target) -> Iterator[Variant]:
    if "mask_embedding" in names:
        return
    named = _told(config, MASK)
    for token in mask_tokens(target, named):
        yield Variant(
            check="mask token",
            now=f"the mask is token {named}",
            instead=f"token {token}",
            remedy=f"set {MASK} to {token}",
            config=_setting(MASK, token),
        )


def _blocks(config: Mapping[str, Any]) -> Iterator[Variant]:
    size = _told(config, BLOCK)
    for other in BLOCKS:
        if other != size:
            yield Variant(
                check="block size",
                now=f"blocks of {size} slots",
                instead=f"of {other}",
                remedy=f"set {BLOCK} to {other}",
                config=_setting(BLOCK, other),
            )


def _flags(config: Mapping[str, Any]) -> Iterator[Variant]:
    for check, key, yes, no in (
        ("root slot", ROOT, "the root's slot drafts the first token", "the first mask drafts it"),
        ("causal layers", CAUSAL, "slots see earlier slots only", "slots see each other"),
    ):
        is_set = bool(_told(config, key) or (key == CAUSAL and _told(config, "causal")))
        yield Variant(
            check=check,
            now=yes if is_set else no,
            instead=no if is_set else yes,
            remedy=f"set {key} to {str(not is_set).lower()}",
            config=_setting(key, not is_set),
        )
