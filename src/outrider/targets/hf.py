"""Any other decoder-only model of `transformers`, on our cache.

A `Placement` says where the rows of a step are stored and what each may see. `transformers` accepts this as a 4-D
attention mask, position ids, and a cache object, so its model code runs unchanged on prompts, roots and trees:

    mask[b, m, s]    0 if row m of slot b sees cached position s, else the lowest number of the dtype
    position_ids     the placement's: siblings share a position
    SlotCache        writes keys and values as the placement says, and returns the slots' first `limit` positions

Some models ignore these arguments: they count positions themselves (ALiBi), or keep a state that cannot be undone
(Mamba). Those known from the config are refused by name (`layers.py`); for the rest, loading ends with a rehearsal
(`rehearsal.py`) that compares a drafted step with a plain forward. Example: BLOOM's forward has no position_ids.

This path is slower than the native decoder: every layer copies keys and values out of the slots.

Shapes: B slots, M rows, S cached positions, H key/value heads, D head size, F features, L layers, C slots of the cache.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.foreign import reading
from outrider.formats.weights import check_finite, read_weights
from outrider.placement import Placement, place_draft
from outrider.records.display import shown_json
from outrider.records.json_fields import read_json
from outrider.target import Forward, SharedWeights, Target, TargetSession, TargetSpec
from outrider.targets.layers import LayerMasks
from outrider.targets.prefill import read_prompts
from outrider.targets.rehearsal import CacheShape, cache_shape, rehearse

__all__ = ["HFSession", "HFTarget"]

_TURN = threading.RLock()
"""Held while a model runs or loads: `transformers` changes PyTorch's default dtype and some rotary tables in place."""


@final
class HFTarget(Target):
    """A `transformers` model, its name and its tokenizer."""

    def __init__(self, model: Any, name: str, tokenizer: Any = None, directory: Path | None = None) -> None:
        """Wrap a model in memory and put it into evaluation mode.

        Raises:
            CheckpointError: if the model does not follow a given cache, given masks or positions.
        """
        with _TURN:
            self._adopt(model, name, tokenizer, directory)

    def _adopt(self, model: Any, name: str, tokenizer: Any, directory: Path | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.directory = directory
        self._tokenizer = tokenizer
        self._masks = LayerMasks.of(model, name)
        self._shape: CacheShape = cache_shape(model, name)
        self._spec = self._describe()
        rehearse(self, model)

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        name: str,
        dtype: torch.dtype,
        device: torch.device | str,
        tokenizer: Any,
        trust_remote_code: bool = False,
    ) -> "HFTarget":
        """Read a Hugging Face directory: safetensors only, and its model code only with `trust_remote_code`.

        Raises:
            CheckpointError: if a file or a tensor is missing, truncated or misshapen, or the model cannot be run here.
        """
        _check_layers(directory, len(read_weights(directory)))
        remedy = "check that config.json and the weights are whole"
        with reading(f"transformers cannot load {directory}", directory, trust_remote_code, remedy), _TURN:
            model, loading = AutoModelForCausalLM.from_pretrained(
                str(directory),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
        _check_complete(directory, loading, model)
        _check_finite(directory, model)
        target = cls(model.to(device), name, tokenizer, directory)
        target._spec = replace(target._spec, trusts_code=trust_remote_code)
        return target

    def _describe(self) -> TargetSpec:
        config = self.model.config.get_text_config()
        max_positions = getattr(config, "max_position_embeddings", None)
        if not max_positions:
            raise CheckpointError(f"the config of {self.name} has no max_position_embeddings; add its context limit")
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return TargetSpec(
            name=self.name,
            source=None if self.directory is None else str(self.directory),
            vocab_size=self._shape.vocab_size,
            hidden_size=self._shape.hidden_size,
            num_layers=self._shape.num_states - 1,
            max_positions=min(int(max_positions), _one_scaling(config, int(max_positions))),
            eos_ids=_eos_ids(self.model),
            dtype=self.model.dtype,
            device=self.model.device,
            weight_bytes=sum(tensor.nbytes for tensor in tensors),
            batch_invariant=False,
            weights=str(self.model.dtype).removeprefix("torch."),
        )

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        return CachePlan(
            num_layers=self._shape.num_layers,
            num_slots=num_slots,
            num_kv_heads=self._shape.num_kv_heads,
            head_dim=self._shape.head_dim,
            capacity=capacity,
            tail=tail,
            dtype=self._spec.dtype,
        )

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> "HFSession":
        return HFSession(self.model, self._masks, KVCache(plan, self._spec.device), feature_layers)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return nullcontext()

    @torch.inference_mode()
    def project(self, states_RE: Tensor) -> Tensor:
        logits_RV: Tensor = self.model.get_output_embeddings()(states_RE.to(self.model.dtype))
        return logits_RV

    def shared_weights(self) -> SharedWeights:
        embedding_VE: Tensor = self.model.get_input_embeddings().weight.detach()
        return SharedWeights(embedding_VE, self.model.get_output_embeddings().weight.detach())


@final
class HFSession(TargetSession):
    """A cache over a `transformers` model."""

    def __init__(
        self, model: PreTrainedModel, masks: LayerMasks, cache: KVCache, feature_layers: tuple[int, ...]
    ) -> None:
        num_layers = model.config.get_text_config().num_hidden_layers
        if max(feature_layers, default=0) > num_layers:
            raise ConfigError(
                f"this head reads the stream behind layer {num_layers - 1}, before the final norm, which only targets "
                "on the native decoder give; use another head"
            )
        self.model = model
        self.masks = masks
        self.feature_layers = feature_layers
        self._cache = cache

    @property
    def cache(self) -> KVCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        width = len(self.feature_layers) * self.model.config.get_text_config().hidden_size
        feature = torch.empty(width, dtype=self.model.dtype, device=self._cache.device) if self.feature_layers else None
        return read_prompts(self._cache, slots, prompts, self._read_chunk, feature)

    def _read_chunk(self, tokens_BM: Tensor, placement: Placement) -> Tensor | None:
        return self._features(self._run(self.model.base_model, tokens_BM, placement))

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        roots_B1 = torch.tensor(roots, device=self._cache.device)[:, None]
        tokens_BM = torch.cat([roots_B1, draft.tokens_BN], dim=1)
        output = self._run(self.model, tokens_BM, place_draft(self._cache, slots, draft))
        return Forward(output.logits, self._features(output))

    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        roots_B1 = torch.tensor(roots, device=self._cache.device)[:, None]
        tokens_BM = torch.cat([roots_B1, draft.tokens_BN], dim=1)
        output = self._run(self.model.base_model, tokens_BM, place_draft(self._cache, slots, draft))
        states_BME: Tensor = output.last_hidden_state
        return states_BME

    @torch.inference_mode()
    def _run(self, module: Any, tokens_BM: Tensor, placement: Placement) -> Any:
        with _TURN:
            return module(
                input_ids=tokens_BM,
                attention_mask=self.masks(placement, self.model.dtype),
                position_ids=placement.positions_BM,
                past_key_values=SlotCache(self._cache, placement),
                use_cache=True,
                output_hidden_states=bool(self.feature_layers),
                return_dict=True,
            )

    def _features(self, output: Any) -> Tensor | None:
        return (
            torch.cat([output.hidden_states[feature_layer] for feature_layer in self.feature_layers], dim=-1)
            if self.feature_layers
            else None
        )


@final
class SlotCache(Cache):  # type: ignore[misc]
    """The engine's cache as `transformers` expects it, for the rows of one forward."""

    def __init__(self, cache: KVCache, placement: Placement) -> None:
        super().__init__(layers=[])
        self.cache = cache
        self.placement = placement

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the rows of one layer, [B, H, M, D] each, and return its slots' content, [B, H, S, D] each."""
        placement = self.placement
        held: list[Tensor] = []
        for new_BHMD, cached_LCHSD in (
            (key_states, self.cache.keys_LCHSD),
            (value_states, self.cache.values_LCHSD),
        ):
            cached_CHSD = cached_LCHSD[layer_idx]
            cached_CHSD[placement.slots_B[:, None], :, placement.write_BM] = new_BHMD.transpose(1, 2)
            held.append(cached_CHSD[placement.slots_B, :, : placement.limit])
        return held[0], held[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions before this forward's rows; models use it only for positions and masks, given here."""
        return self.placement.limit - int(self.placement.positions_BM.shape[1])

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.placement.limit, 0


def _eos_ids(model: Any) -> tuple[int, ...]:
    """Return every end-of-text id, the generation config's first."""
    found: list[int] = []
    for config in (model.generation_config, model.config.get_text_config()):
        ids = None if config is None else config.eos_token_id
        found += [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return tuple(dict.fromkeys(found))


def _one_scaling(config: Any, max_positions: int) -> int:
    """Return the number of positions that one set of rotary frequencies serves.

    LongRoPE switches to a second set when a text outgrows the first, but cached keys keep the first: texts end there.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    is_long = isinstance(rope, Mapping) and rope.get("rope_type") == "longrope"
    return int(rope.get("original_max_position_embeddings") or max_positions) if is_long else max_positions


def _check_layers(directory: Path, num_tensors: int) -> None:
    """Refuse more layers than tensors; `transformers` would build them for hours before it missed any."""
    config = read_json(directory / "config.json").plain()
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        for section in (config, config.get("text_config")):
            wanted = section.get(key) if isinstance(section, Mapping) else None
            if isinstance(wanted, int) and wanted > num_tensors:
                raise CheckpointError(
                    f"{directory / 'config.json'} asks for {key} {shown_json(wanted)}, but the weights are"
                    f" {num_tensors} tensors in all; check that config.json belongs to these weights"
                )


def _check_complete(directory: Path, loading: Mapping[str, Any], model: Any) -> None:
    """Refuse missing, misshapen and unknown tensors, which `transformers` fills with random numbers or drops.

    An unknown tensor counts if it belongs to a module of the model, as a bias, a scale or an adapter does, and not if
    it belongs to another part, such as a vision tower.
    """
    modules = {name for name, _ in model.named_modules() if name}
    unknown = [name for name in sorted(loading["unexpected_keys"]) if _changes_a_module(name, modules)]
    missing = sorted(loading["missing_keys"])
    misshapen = sorted(name for name, *_ in loading["mismatched_keys"])
    for problem, names in (("lack", missing), ("misshape", misshapen), ("hold an unknown tensor", unknown)):
        if names:
            raise CheckpointError(
                f"the weights in {directory} {problem} {names[0]} ({len(names)} such in all);"
                " check that config.json belongs to these weights"
            )


def _changes_a_module(name: str, modules: Collection[str]) -> bool:
    parents = [name[:at] for at, letter in enumerate(name) if letter == "."]
    owned = any(parent in modules for parent in parents[-3:] if parent.count(".") > 1)
    return owned and not name.endswith((".inv_freq", ".masked_bias", ".attn.bias"))


def _check_finite(directory: Path, model: Any) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        check_finite(tensor.detach(), f"tensor {name} in {directory}, as {str(tensor.dtype).removeprefix('torch.')},")
