"""The fast target: a Llama-family model on the native decoder.

Weights are read once and packed for the device; every engine that opens the target shares them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft
from outrider.errors import CheckpointError
from outrider.models.decoder import Decoder
from outrider.models.ops import Placement, Programs, choose_ops
from outrider.models.spec import DecoderSpec
from outrider.models.weights import read_weights
from outrider.target import Forward, SharedWeights, Target, TargetSession, TargetSpec
from outrider.targets.prefill import read_prompts

__all__ = ["NativeSession", "NativeTarget"]


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
            exact_rows=self.decoder.device.type == "cpu" and self.dtype in (torch.bfloat16, torch.float32),
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

    def hosting(self) -> AbstractContextManager[None]:
        return self.decoder.ops.hosting()

    def project(self, states_RE: Tensor) -> Tensor:
        ops = self.decoder.ops
        return ops.norm_project(states_RE.to(ops.activation_dtype).contiguous(), None, 0.0, self.decoder.head)

    def shared_weights(self) -> SharedWeights:
        embedding_VE = self.decoder.embed_VE
        tied = self.decoder.spec.tie_word_embeddings
        head_VE = embedding_VE if tied else self.decoder.ops.unpack(self.decoder.head)
        return SharedWeights(embedding_VE, head_VE)


@final
class NativeSession(TargetSession):
    """A cache over the native decoder."""

    def __init__(self, decoder: Decoder, cache: KVCache, taps: tuple[int, ...]) -> None:
        self.decoder = decoder
        self.taps = taps
        self._cache = cache
        self._programs: Programs = {}

    @property
    def cache(self) -> KVCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        width = len(self.taps) * self.decoder.spec.hidden_size
        blank_0F = torch.zeros(0, width, dtype=self.decoder.ops.activation_dtype, device=self._cache.device)
        return read_prompts(self._cache, slots, prompts, self._read_chunk, blank_0F if self.taps else None)

    def _read_chunk(self, tokens_BM: Tensor, placement: Placement) -> Tensor | None:
        return self.decoder(tokens_BM, placement, self._cache, taps=self.taps, want_logits=False).features_BMF

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        roots_B1 = torch.tensor(roots, device=self._cache.device)[:, None]
        tokens_BM = torch.cat([roots_B1, draft.tokens_BN], dim=1)
        placement = self._cache.place_draft(slots, draft)
        if self._is_ragged(draft):
            return self._forward_ragged(tokens_BM, placement, draft)
        output = self.decoder(tokens_BM, placement, self._cache, taps=self.taps, programs=self._programs)
        assert output.logits_BMV is not None
        return Forward(output.logits_BMV, output.features_BMF)

    def _is_ragged(self, draft: Draft) -> bool:
        """Whether leaving padding out pays: on the CPU, where every row costs and shapes need not be static."""
        windows = [window for window in self.decoder.spec.windows if window is not None]
        padded = len(draft.real_rows) < draft.num_slots * draft.num_rows
        return padded and self._cache.device.type == "cpu" and draft.num_rows <= min(windows, default=draft.num_rows)

    def _forward_ragged(self, tokens_BM: Tensor, placement: Placement, draft: Draft) -> Forward:
        """The real rows alone; padding rows of the result are zeros."""
        rows_R = torch.tensor(draft.real_rows, device=self._cache.device)
        tokens_R1 = tokens_BM.flatten()[rows_R][:, None]
        only = placement.only(rows_R)
        output = self.decoder(tokens_R1, only, self._cache, taps=self.taps, programs=self._programs)
        assert output.logits_BMV is not None
        shape = (draft.num_slots, draft.num_rows, -1)
        features = output.features_BMF
        return Forward(
            _spread(output.logits_BMV[:, 0], rows_R, tokens_BM.numel()).view(shape),
            None if features is None else _spread(features[:, 0], rows_R, tokens_BM.numel()).view(shape),
        )


def _spread(some_RX: Tensor, rows_R: Tensor, num_rows: int) -> Tensor:
    all_RX = some_RX.new_zeros(num_rows, some_RX.shape[1])
    all_RX[rows_R] = some_RX
    return all_RX
