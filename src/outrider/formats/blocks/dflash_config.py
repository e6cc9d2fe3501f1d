"""The spec of a DFlash network from its config, in the authors' layout or that of the speculators library.

The authors' layout (z-lab, SpecForge, SGLang, vLLM) is a Qwen3 config with a section of its own:

    {"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "num_target_layers": 24,
     "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 6, 11, 16, 21]}, ...}

`block_size` may stand in the section too. A target layer id k means the state after layer k. DeepSpec (`DSparkModel` in
the class's name) writes the section's keys at the top, -1 for the embedding, and its root's slot drafts as well. The
speculators layout has the layers' config in `transformer_layer_config` and our meaning of layer ids:

    {"speculators_model_type": "dflash", "block_size": 8, "aux_hidden_state_layer_ids": [2, 7, 12, 17, 22],
     "mask_token_id": 151669, "sample_from_anchor": false, "sliding_window_non_causal": false, ...}

DFlash-2 adds the keys `SECOND` to the section, or flat in the kind "dflash2"; `SCALES` may stand there too.

Whether a layer is causal: `is_causal`, else `dflash_config.causal`, else if it has a sliding window. An unknown key
that can change the numbers is refused by name.

Example: ids [1, 6, 11, 16, 21] of the first layout and [2, 7, 12, 17, 22] of the second give the same spec.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from outrider.errors import CheckpointError
from outrider.models.blocks.dflash import DFlashSpec, default_layer_ids
from outrider.models.blocks.markov import CONFIDENCE, MARKOV
from outrider.models.blocks.selector import SELECTOR
from outrider.models.spec import DecoderSpec, filled_config, is_supported
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["KIND", "KINDS", "LAYER_CONFIG", "SECTION", "Shapes", "native_of", "spec_of"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by its published name."""

SECTION: Final = "dflash_config"
KIND: Final = "speculators_model_type"
LAYER_CONFIG: Final = "transformer_layer_config"
KINDS: Final = ("dflash", "dspark", "dflash2")
LAYER_IDS: Final = "aux_hidden_state_layer_ids"
FAMILIES: Final = ("qwen3", "llama", "qwen2", "mistral")
UNREAD: Final = ("torch_dtype", "dtype", "architectures", "outrider", "auto_map", SECTION)
SECOND: Final = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
SCALES: Final = ("input_embedding_scale", "output_multiplier", "final_logit_softcapping")
SECTION_KEYS: Final = ("mask_token_id", "target_layer_ids", "block_size", "causal", *SECOND, *SCALES)
OWN: Final = (*SECTION_KEYS, "num_target_layers", "is_causal", "sliding_window_non_causal", "sample_from_anchor")
OTHER_NETWORKS: Final = {
    "projector_type": (None, "dflash", "dflash2"),
    "shift_label": (None, False),
    "markov_head_type": (None, "vanilla"),
}
"""Keys of networks that share the layout, and the values with which they change nothing."""
DEEPSPEC: Final = "DSparkModel"
MOST_SLOTS: Final = 256


def native_of(config: Fields, file: Path) -> dict[str, Any]:
    """Convert a config of the speculators layout to the authors' layout.

    Raises:
        CheckpointError: for another kind of drafter, or if a key that decides the arithmetic is missing.
    """
    if config[KIND] not in KINDS:
        raise CheckpointError(f"{file} has {KIND} {shown_json(config[KIND])}; only {', '.join(KINDS)} are read here")
    layer = config.section(LAYER_CONFIG)
    ids = config.integers(LAYER_IDS, low=1, high=10_000)
    section: dict[str, Any] = {
        "mask_token_id": config.integer("mask_token_id", low=0),
        "target_layer_ids": [layer_id - 1 for layer_id in ids],
    }
    if "sliding_attention" in (layer.texts("layer_types", None) or ()):
        # of one default for DFlash-2, of several for DFlash
        flag = config.flag("sliding_window_non_causal", True if config[KIND] == "dflash2" else None)
        if flag is None:
            raise CheckpointError(
                f"{file} does not say sliding_window_non_causal, which engines read differently; add it as it was "
                "trained"
            )
        if flag:
            section["causal"] = False
    outer = {KIND, LAYER_CONFIG, LAYER_IDS, "mask_token_id", "speculators_config", "speculators_version", "model_type"}
    native = {**layer.plain(), **{key: value for key, value in config.items() if key not in outer}, SECTION: section}
    return {"sample_from_anchor": config[KIND] == "dspark"} | native


def spec_of(config: Mapping[str, Any], file: Path, shapes: Shapes, target_layers: int) -> DFlashSpec:
    """Return the spec of a network from its config in the authors' layout and the shapes of its tensors.

    Args:
        target_layers: layers of the target.

    Raises:
        CheckpointError: naming the key that has a wrong type, contradicts the tensors, or is not supported.
    """
    fields = Fields(config, str(file))
    section = _section(fields, file)
    for key, neutral in OTHER_NETWORKS.items():
        if fields.get(key) not in neutral:
            raise CheckpointError(f"{file} has {key} {shown_json(fields[key])}, a network that is not run here")
    decoder = _decoder(fields, file, shapes)
    told = fields.integer("num_target_layers", None, low=1)
    if told not in (None, target_layers):
        raise CheckpointError(
            f"{file} was made for a target with {told} layers, but this one has {target_layers}; load it with its own"
        )
    ids = section.integers("target_layer_ids", None, low=-1, high=10_000)
    layer_ids = tuple(layer + 1 for layer in ids) if ids else default_layer_ids(target_layers, decoder.num_layers)
    if any(layer > target_layers for layer in layer_ids):
        raise CheckpointError(
            f"{file} reads the state after layer {max(layer_ids) - 1}, but the target has layers 0 to "
            f"{target_layers - 1}; load it with its own target"
        )
    is_deepspec = any(DEEPSPEC in name for name in fields.texts("architectures", None) or ())
    fc, columns = shapes.get("fc.weight", ()), shapes.get("lm_head.weight", ())
    if len(fc) != 2 or fc[1] % len(layer_ids):
        raise CheckpointError(
            f"{file} fuses {len(layer_ids)} states, but fc.weight has shape {fc}; correct target_layer_ids"
        )
    block_size = section.integer("block_size", low=2, high=MOST_SLOTS)
    if any(window is not None and window < block_size for window in decoder.windows):
        raise CheckpointError(f"{file} has a sliding_window of fewer positions than a block's {block_size}; correct it")
    spec = DFlashSpec(
        decoder=decoder,
        block_size=block_size,
        mask_id=section.integer("mask_token_id", low=0),
        layer_ids=layer_ids,
        target_hidden_size=fc[1] // len(layer_ids),
        draft_vocab_size=columns[0] if columns else decoder.vocab_size,
        drafts_at_root=is_deepspec or bool(fields.flag("sample_from_anchor", None)),
        causal=_causal(fields, section, decoder),
        markov_rank=_markov_rank(fields, file, shapes),
        confidence_inputs=shapes.get(CONFIDENCE[0], (1, 0))[-1],
        embedding_scale=section.number("input_embedding_scale", 1.0, above=0.0),
        output_scale=section.number("output_multiplier", 1.0, above=0.0),
        softcap=section.number("final_logit_softcapping", 0.0, low=0.0),
    )
    return _second(spec, section, file, shapes)


def _second(spec: DFlashSpec, section: Fields, file: Path, shapes: Shapes) -> DFlashSpec:
    """Return the spec with DFlash-2's convolutions and selector, if keys or tensors tell of them."""
    if not any(key in section for key in SECOND) and SELECTOR[0] not in shapes:
        return spec
    size, group, rank, top_k = (section.integer(key, low=1, high=1 << 16) for key in SECOND)
    width, vocab_size = spec.decoder.hidden_size, spec.decoder.vocab_size
    for is_so, fault in (
        (width % group, f"conv_group_size {group}, which does not divide the hidden size {width}"),
        (size > spec.block_size, f"conv_kernel_size {size}, more than a block's {spec.block_size} slots"),
        (top_k > vocab_size, f"selector_top_k {top_k}, more than its {vocab_size} tokens"),
        (spec.draft_vocab_size != vocab_size, f"a selector, but {spec.draft_vocab_size} of {vocab_size} columns"),
        (spec.drafts_at_root, "a selector that begins at the root's own slot"),
        (spec.markov_rank, "both a selector and a Markov head"),
    ):
        if is_so:
            raise CheckpointError(f"{file} has {fault}; check it against the original")
    return replace(spec, conv_kernel_size=size, conv_group_size=group, selector_rank=rank, selector_top_k=top_k)


def _markov_rank(fields: Fields, file: Path, shapes: Shapes) -> int:
    """Return the rank of the bias from token to token, which config and tensors must agree on."""
    told, stored = fields.integer("markov_rank", 0, low=0), shapes.get(MARKOV[0], (0, 0))[-1]
    if told != stored:
        raise CheckpointError(
            f"{file} has markov_rank {told}, but {MARKOV[0]} has rank {stored}; check that config.json belongs to it"
        )
    if not stored and CONFIDENCE[0] in shapes:
        raise CheckpointError(f"{file} has a confidence head without a Markov head, which is not run here")
    return stored


def _section(fields: Fields, file: Path) -> Fields:
    """Return the method's own keys, wherever they stand."""
    inner = fields.section(SECTION, None) or Fields({}, str(file))
    for key in inner:
        if key not in SECTION_KEYS:
            raise CheckpointError(
                f"{file}: {SECTION}.{key} is {shown_json(inner[key])}, which is not supported; remove the key if it "
                "means nothing here"
            )
        if fields.get(key) not in (None, inner[key]):
            raise CheckpointError(f"{file} has two values of {key}; keep the right one")
    outer = {key: fields[key] for key in SECTION_KEYS if fields.get(key) is not None}
    return Fields({**inner.plain(), **outer}, str(file))


def _causal(fields: Fields, section: Fields, decoder: DecoderSpec) -> tuple[bool, ...]:
    for one, key in ((fields, "is_causal"), (section, "causal")):
        if (flag := one.flag(key, None)) is not None:
            return (flag,) * decoder.num_layers
    return tuple(window is not None for window in decoder.windows)


def _decoder(fields: Fields, file: Path, shapes: Shapes) -> DecoderSpec:
    """Return the layers, with the biases and norms that their tensors have."""
    family = fields.text("model_type", "qwen3")
    if family not in FAMILIES:
        raise CheckpointError(f"{file} has model_type {shown_json(family)}; known: {', '.join(FAMILIES)}")
    known = {key: value for key, value in fields.plain().items() if key not in UNREAD} | {"model_type": family}
    kinds = fields.texts("layer_types", None)
    if kinds is not None and len(kinds) != fields.integer("num_hidden_layers", low=1):
        raise CheckpointError(f"{file} names {len(kinds)} layer_types for another number of layers; correct the list")
    filled = filled_config(known, family, file, own=(*OWN, "layer_types", "sliding_window"))
    reason = is_supported(filled)
    if reason is None and any(".mlp." in name and name.endswith(".bias") for name in shapes):
        reason = "its MLP has biases"
    if reason is not None:
        raise CheckpointError(f"{file} describes layers that cannot be run: {reason}; give another network")
    spec = replace(DecoderSpec.from_config(filled), tie_word_embeddings=False, mlp_bias=False, eos_ids=())
    if kinds is not None:  # the list decides, whatever use_sliding_window says
        window = fields.integer("sliding_window", low=1) if "sliding_attention" in kinds else None
        spec = replace(spec, windows=tuple(window if kind == "sliding_attention" else None for kind in kinds))
    return replace(
        spec,
        qkv_bias=any(name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")) for name in shapes),
        o_bias=any(name.endswith("o_proj.bias") for name in shapes),
        qk_norm=any(name.endswith("q_norm.weight") for name in shapes),
    )
