"""Draft models, loaded as targets.

A slim draft model (`outrider.formats.hf_draft`) gets the embedding and the output head of its target, shared in memory
if the target is native.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK, StoredDraft, check_vocabulary, draft_facts, read_draft
from outrider.formats.locate import locate
from outrider.models.decoder import Decoder
from outrider.models.spec import DecoderSpec
from outrider.ops.select import choose_ops
from outrider.records.json_fields import read_json
from outrider.target import Target
from outrider.targets import load_target
from outrider.targets.native import NativeTarget

__all__ = ["LoadedDraft", "load_draft"]


@dataclass(frozen=True, eq=False)
class LoadedDraft:
    """A loaded draft model, its raw config, and its bytes of memory beyond those shared with the target."""

    model: Target
    config: Mapping[str, Any]
    num_bytes: int


def load_draft(name: str, target: Target) -> LoadedDraft:
    """Load a draft model of either form in the target's dtype: a directory, a GGUF file or a hub id.

    Raises:
        CheckpointError: if it cannot be read, shares weights with another target, or has another vocabulary.
    """
    config = read_json(locate(name) / "config.json")
    if draft_facts(config).get("shares"):
        return _surrounded(name, read_draft(name, target), target)
    spec = target.spec
    model = load_target(
        name, dtype=str(spec.dtype).removeprefix("torch."), device=str(spec.device), trust_remote_code=spec.trusts_code
    )
    check_vocabulary(target, model)
    return LoadedDraft(model, config, model.spec.weight_bytes)


def _surrounded(name: str, stored: StoredDraft, target: Target) -> LoadedDraft:
    """Combine a slim draft model with the target's embedding and head; its mask keeps an embedding of its own."""
    dtype = target.spec.dtype
    own = {key: tensor.to(dtype) for key, tensor in stored.tensors.items()}
    decoder = _surround(stored.spec, own, target)
    num_bytes = sum(layer.num_bytes for layer in decoder.layers)
    if stored.mask_id is not None:
        decoder.read_as(stored.mask_id, own[MASK])
        num_bytes += own[MASK].nbytes
    return LoadedDraft(NativeTarget(decoder, name, dtype, target.tokenizer), stored.config, num_bytes)


def _surround(spec: DecoderSpec, own: Mapping[str, Tensor], target: Target) -> Decoder:
    """Build a decoder from the draft's layers and the target's embedding and head, shared with a native target."""
    if target.native is not None:
        tied = target.native.spec.tie_word_embeddings
        return target.native.around(replace(spec, tie_word_embeddings=tied), own)
    shared = target.shared_weights()
    weights = {**own, EMBEDDING: shared.embedding_VE, HEAD: shared.head_VE}
    # embedding and head come from a foreign target and may differ
    untied = replace(spec, tie_word_embeddings=False)
    return Decoder(untied, weights, choose_ops(target.spec.device, target.spec.dtype), target.spec.device)
