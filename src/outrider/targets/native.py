"""The fast target: a Llama-family model on the native decoder.

Weights are read and packed for the device once; all engines that open the target share them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.locate import locate
from outrider.formats.quantised import quantised_weights
from outrider.formats.quantised.widened import Widened
from outrider.formats.weights import HEAD, read_weights, settle_head
from outrider.loop.memory import give_back
from outrider.models.decoder import Decoder, Output
from outrider.models.spec import DecoderSpec
from outrider.models.weight_kinds import KvDtype, WeightsChoice
from outrider.ops.base import GraphCache, Ops
from outrider.ops.cpu import CpuOps
from outrider.ops.quantised import Matrix, kinds_of
from outrider.ops.select import choose_ops
from outrider.placement import Placed, Placement, place_chains, place_draft, place_real_rows
from outrider.records.progress import Listener, Progress, unheard
from outrider.target import Forward, Mixture, SharedWeights, Target, TargetSession, TargetSpec
from outrider.targets.prefill import read_prompts

__all__ = ["NativeSession", "NativeTarget"]


SILENT_S: Final = 2.0
"""Seconds of packing before a listener hears of it."""


@final
class _Reported(Mapping[str, Matrix]):
    """Weights whose lookups a listener hears of, once packing has taken a while."""

    def __init__(self, weights: Mapping[str, Matrix], listen: Listener) -> None:
        self._weights = weights
        self._listen = listen
        self._start = perf_counter()
        self._seen: set[str] = set()

    def __getitem__(self, name: str) -> Matrix:
        if perf_counter() - self._start > SILENT_S:
            self._listen(Progress(len(self._seen), len(self._weights), f"packing {name}"))
        self._seen.add(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights


@final
class NativeTarget(Target):
    """A decoder, its name and its tokenizer."""

    def __init__(self, decoder: Decoder, name: str, dtype: torch.dtype, tokenizer: Any = None) -> None:
        self.decoder = decoder
        self.name = name
        self.dtype = dtype
        self.source: Path | None = None
        self.kind = str(dtype).removeprefix("torch.")
        self.trusts_code = False
        self.kv_dtype: KvDtype = "auto"
        self._tokenizer = tokenizer
        self._shared: SharedWeights | None = None

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        name: str,
        dtype: torch.dtype,
        device: torch.device | str,
        tokenizer: Any,
        kind: WeightsChoice = "bf16",
        listen: Listener = unheard,
    ) -> "NativeTarget":
        """Read a Hugging Face directory; with "bf16", weights that are published quantised are widened.

        Raises:
            CheckpointError: if a file or a tensor is missing, truncated or misshapen.
        """
        spec = DecoderSpec.from_config_file(directory)
        quantised = quantised_weights(directory, "stored" if kind == "bf16" else kind, listen)
        weights: Mapping[str, Matrix]
        if quantised is not None:
            spec, weights = replace(spec, tie_word_embeddings=HEAD not in quantised), quantised
            if kind != "bf16":
                return cls.from_stored(spec, weights, name, dtype, directory, tokenizer, listen)
        else:
            weights = stored = read_weights(directory)
            spec = settle_head(spec, stored)
        target = cls.from_weights(spec, weights, name, dtype, device, tokenizer)
        target.source = directory
        give_back()
        return target

    @classmethod
    def from_stored(
        cls,
        spec: DecoderSpec,
        weights: Mapping[str, Matrix],
        name: str,
        dtype: torch.dtype,
        source: Path,
        tokenizer: Any,
        listen: Listener = unheard,
    ) -> "NativeTarget":
        """Pack weights as they are stored, on the CPU; `dtype` is that of the cache, `listen` is told of the progress.

        Raises:
            CheckpointError: if a matrix cannot be read, or holds scales that are not finite.
        """
        _refuse_biases(spec, name)
        target = cls(Decoder(spec, _Reported(weights, listen), CpuOps(dtype, exact=True)), name, dtype, tokenizer)
        target.source = source
        target.kind = kinds_of(weights)
        give_back()
        return target

    @classmethod
    def from_weights(
        cls,
        spec: DecoderSpec,
        weights: Mapping[str, Matrix],
        name: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        tokenizer: Any = None,
        ops: Ops | None = None,
    ) -> "NativeTarget":
        """Load weights by their Hugging Face names, widened to `dtype`; `ops` defaults to the device's fastest ones."""
        _refuse_biases(spec, name)
        decoder = Decoder(spec, Widened(weights, dtype), ops or choose_ops(device, dtype), device)
        return cls(decoder, name, dtype, tokenizer)

    def with_kv_dtype(self, kv_dtype: KvDtype) -> "NativeTarget":
        """Return this target with keys and values in that dtype; it shares the weights.

        Raises:
            ConfigError: if the operations of its device do not read them.
        """
        if kv_dtype != "auto" and not self.decoder.ops.caches_int8:
            raise ConfigError(f"kv_dtype={kv_dtype!r} runs on the CPU, not on {self.decoder.device}; leave it out")
        target = copy(self)
        target.kv_dtype = kv_dtype
        return target

    @property
    def spec(self) -> TargetSpec:
        decoder = self.decoder.spec
        return TargetSpec(
            name=self.name,
            source=None if self.source is None else str(self.source),
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            num_layers=decoder.num_layers,
            max_positions=decoder.max_positions,
            eos_ids=decoder.eos_ids,
            dtype=self.dtype,
            device=self.decoder.device,
            weight_bytes=self.decoder.num_bytes,
            batch_invariant=self.decoder.device.type == "cpu" and self.dtype in (torch.bfloat16, torch.float32),
            weights=self.kind,
            trusts_code=self.trusts_code,
            mixture=_mixture(self.decoder),
            kv_dtype=self.kv_dtype,
        )

    def checkpoint(self) -> Path | None:
        return None if self.source is None else locate(self.source)

    @property
    def native(self) -> Decoder:
        return self.decoder

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        dtype = self.dtype if self.kv_dtype == "auto" else torch.int8
        transposed, layers = self.decoder.ops.transposes_keys, self.decoder.spec
        return layers.cache_plan(num_slots, capacity, tail, dtype, transposed_keys=transposed)

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> "NativeSession":
        return NativeSession(self.decoder, KVCache(plan, self.decoder.device), feature_layers, self.dtype)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return self.decoder.ops.decoding_threads()

    def project(self, states_RE: Tensor) -> Tensor:
        ops = self.decoder.ops
        return ops.norm_project(states_RE.to(ops.activation_dtype).contiguous(), None, 0.0, self.decoder.head)

    def shared_weights(self) -> SharedWeights:
        if self._shared is None:
            ops, table = self.decoder.ops, self.decoder.embed_VE
            embedding_VE = table if isinstance(table, Tensor) else ops.unpack(table)
            tied = self.decoder.spec.tie_word_embeddings
            self._shared = SharedWeights(embedding_VE, embedding_VE if tied else ops.unpack(self.decoder.head))
        return self._shared


@final
class NativeSession(TargetSession):
    """A cache over the native decoder; features have the dtype of the target."""

    def __init__(self, decoder: Decoder, cache: KVCache, feature_layers: tuple[int, ...], dtype: torch.dtype) -> None:
        self.decoder = decoder
        self.feature_layers = feature_layers
        self._cache = cache
        self._dtype = dtype
        self._graph_cache = GraphCache(reuse_logits=True)

    @property
    def cache(self) -> KVCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        width = len(self.feature_layers) * self.decoder.spec.hidden_size
        feature = torch.empty(width, dtype=self._dtype, device=self._cache.device) if self.feature_layers else None
        return read_prompts(self._cache, slots, prompts, self._read_chunk, feature)

    def _read_chunk(self, tokens_BM: Tensor, placement: Placement) -> Tensor | None:
        return self.decoder(
            tokens_BM, placement, self._cache, feature_layers=self.feature_layers, want_logits=False
        ).features_BMF

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        logits_BMV, features_BMF = self._read(slots, roots, draft, self.feature_layers, want_logits=True)
        assert logits_BMV is not None
        features_BMF = None if features_BMF is None else _spread(features_BMF, draft)
        if _has_all_rows(logits_BMV, draft):
            return Forward(logits_BMV, features_BMF)
        return Forward(list(torch.split(logits_BMV[:, 0], [count + 1 for count in draft.num_nodes])), features_BMF)

    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        output = self._read(slots, roots, draft, (self.decoder.spec.num_layers,), want_logits=False)
        assert output.features_BMF is not None
        return _spread(output.features_BMF, draft)

    def _read(
        self,
        slots: Sequence[int],
        roots: Sequence[int],
        draft: Draft,
        feature_layers: tuple[int, ...],
        want_logits: bool,
    ) -> Output:
        """Return outputs of all rows [B, M, X], or of the real rows alone [R, 1, X]."""
        if self._leaves_out_padding(draft):
            placement = place_real_rows(self._cache, slots, draft)
            tokens = [token for root, tree in zip(roots, draft.trees, strict=True) for token in (root, *tree.tokens)]
            tokens_BM = torch.tensor(tokens).view(placement.positions_BM.shape)
        else:
            roots_B1, placement = self._place(slots, roots, draft)
            tokens_BM = torch.cat([roots_B1, draft.tokens_BN], dim=1)
        return self.decoder(
            tokens_BM,
            placement,
            self._cache,
            feature_layers=feature_layers,
            want_logits=want_logits,
            graph_cache=self._graph_cache,
        )

    def _place(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Placed:
        if self.decoder.ops.static_shapes and draft.is_chain:
            return place_chains(self._cache, slots, roots, draft)
        roots_B1 = torch.tensor(roots, device=self._cache.device)[:, None]
        return Placed(roots_B1, place_draft(self._cache, slots, draft))

    def _leaves_out_padding(self, draft: Draft) -> bool:
        """Return whether to read real rows only: on the CPU padding costs time, and shapes need not be static."""
        # a sliding window narrower than the draft needs the positions of all tail rows
        within = all(window is None or draft.num_rows <= window for window in self.decoder.spec.windows)
        chunk = self.decoder.spec.smallest_chunk
        if chunk is not None:  # and so does a chunk's end within the draft
            lengths = self._cache.lengths
            within = within and all(length % chunk + draft.num_rows <= chunk for length in lengths)
        on_cpu = self._cache.device.type == "cpu" and not self.decoder.ops.static_shapes
        return on_cpu and draft.on_host and within


def _has_all_rows(some_BMX: Tensor, draft: Draft) -> bool:
    """Return whether a tensor is [B, M, X], not the real rows alone [R, 1, X]."""
    return some_BMX.shape[:2] == (draft.num_slots, draft.num_rows)


def _spread(some_BMX: Tensor, draft: Draft) -> Tensor:
    """Return [B, M, X]; real rows alone are moved to their places, with zeros as padding."""
    if _has_all_rows(some_BMX, draft):
        return some_BMX
    all_RX = some_BMX.new_zeros(draft.num_slots * draft.num_rows, some_BMX.shape[2])
    all_RX[torch.tensor(draft.real_rows)] = some_BMX[:, 0]
    return all_RX.view(draft.num_slots, draft.num_rows, -1)


def _mixture(decoder: Decoder) -> Mixture | None:
    """Return the experts of all layers, in bytes."""
    found = [layer.experts for layer in decoder.layers if layer.experts is not None]
    if not found:
        return None
    num_experts, num_chosen = found[0].router.out_features, found[0].routing.num_chosen
    size = sum(experts.gate_up.num_bytes + experts.down.num_bytes for experts in found)
    return Mixture(size=size, num_experts=num_experts, num_chosen=num_chosen)


def _refuse_biases(spec: DecoderSpec, name: str) -> None:
    if spec.mlp_bias:
        raise CheckpointError(
            f"{name} has biases in its MLP (mlp_bias), which the native decoder does not support; use backend='hf'"
        )
