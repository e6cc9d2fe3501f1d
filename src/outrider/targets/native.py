"""The fast target: a Llama-family model on the native decoder.

Weights are read once and packed for the device; every engine that opens the target shares them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft
from outrider.errors import CheckpointError
from outrider.models.decoder import Decoder
from outrider.models.ops import choose_ops
from outrider.models.spec import DecoderSpec
from outrider.models.weights import read_weights
from outrider.target import Forward, Target, TargetSession, TargetSpec

__all__ = ["NativeSession", "NativeTarget"]

PREFILL_ROWS = 256


@final
class NativeTarget(Target):
    """A decoder, its name and its tokenizer."""

    def __init__(self, decoder: Decoder, name: str, dtype: torch.dtype, tokenizer: Any = None) -> None:
        self.decoder = decoder
        self.name = name
        self.dtype = dtype
        self.directory: Path | None = None
        self._tokenizer = tokenizer

    @classmethod
    def from_directory(
        cls, directory: Path, name: str, dtype: torch.dtype, device: torch.device | str, tokenizer: Any
    ) -> "NativeTarget":
        """Read a Hugging Face directory.

        Raises:
            CheckpointError: if a file or a tensor is missing, truncated or misshapen.
        """
        spec = DecoderSpec.from_config_file(directory)
        weights = read_weights(directory)
        weights.check(spec.weight_shapes(), optional=("lm_head.weight",) if spec.tie_word_embeddings else ())
        target = cls.from_weights(spec, weights, name, dtype, device, tokenizer)
        target.directory = directory
        return target

    @classmethod
    def from_weights(
        cls,
        spec: DecoderSpec,
        weights: Mapping[str, Tensor],
        name: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        tokenizer: Any = None,
    ) -> "NativeTarget":
        """Use tensors in memory, under their Hugging Face names."""
        if spec.mlp_bias:
            raise CheckpointError(f"{name} has biases in its MLP (mlp_bias), which needs the hf target: pass native=no")
        cast = {key: weights[key].to(dtype) for key in spec.weight_shapes()}
        return cls(Decoder(spec, cast, choose_ops(device, dtype), device), name, dtype, tokenizer)

    @property
    def spec(self) -> TargetSpec:
        decoder = self.decoder.spec
        return TargetSpec(
            name=self.name,
            directory=None if self.directory is None else str(self.directory),
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            num_layers=decoder.num_layers,
            max_positions=decoder.max_position_embeddings,
            eos_ids=decoder.eos_ids,
            dtype=self.dtype,
            device=self.decoder.device,
            weight_bytes=self.decoder.num_bytes,
            exact_rows=self.decoder.device.type == "cpu" and self.dtype != torch.float64,
        )

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        spec = self.decoder.spec
        return CachePlan(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            capacity=capacity,
            tail=tail,
            dtype=self.dtype,
        )

    def open(self, plan: CachePlan, taps: tuple[int, ...] = ()) -> "NativeSession":
        return NativeSession(self.decoder, KVCache(plan, self.decoder.device), taps)


@final
class NativeSession(TargetSession):
    """A cache over the native decoder."""

    def __init__(self, decoder: Decoder, cache: KVCache, taps: tuple[int, ...]) -> None:
        self.decoder = decoder
        self.taps = taps
        self._cache = cache

    @property
    def cache(self) -> KVCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        parts: dict[int, list[Tensor]] = {slot: [] for slot in slots}
        left = {slot: list(prompt) for slot, prompt in zip(slots, prompts, strict=True)}
        while rest := [slot for slot in slots if left[slot]]:
            chunk = max(1, PREFILL_ROWS // len(rest))
            heads = [left[slot][:chunk] for slot in rest]
            for slot, head, features_MF in zip(rest, heads, self._read_chunk(rest, heads), strict=True):
                left[slot] = left[slot][len(head) :]
                parts[slot].extend(() if features_MF is None else (features_MF,))
        return [self._joined(parts[slot]) for slot in slots]

    def _read_chunk(self, slots: list[int], heads: list[list[int]]) -> list[Tensor | None]:
        counts = [len(head) for head in heads]
        width = max(counts)
        tokens_BM = torch.tensor([head + [0] * (width - len(head)) for head in heads], device=self._cache.device)
        placement = self._cache.place_chunk(slots, counts)
        output = self.decoder(tokens_BM, placement, self._cache, taps=self.taps, want_logits=False)
        self._cache.extend(slots, counts)
        if output.features_BMF is None:
            return [None] * len(slots)
        return [output.features_BMF[b, :count] for b, count in enumerate(counts)]

    def _joined(self, parts: list[Tensor]) -> Tensor | None:
        if not self.taps:
            return None
        if parts:
            return torch.cat(parts)
        width = len(self.taps) * self.decoder.spec.hidden_size
        return torch.zeros(0, width, dtype=self.decoder.ops.activation_dtype, device=self._cache.device)

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        roots_B1 = torch.tensor(roots, device=self._cache.device)[:, None]
        tokens_BM = torch.cat([roots_B1, draft.tokens_BN], dim=1)
        placement = self._cache.place_draft(slots, draft)
        output = self.decoder(tokens_BM, placement, self._cache, taps=self.taps)
        assert output.logits_BMV is not None
        return Forward(output.logits_BMV, output.features_BMF)
