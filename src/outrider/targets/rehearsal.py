"""A check of every `transformers` model on loading: does it follow our cache, masks and positions?

A plain forward with the model's own cache gives its logits, and its numbers of layers and heads. The rehearsal then
reads the same tokens as the engine does: two prompts of different length prefilled together, then one step with a tree
in one slot and a chain in the other. If the model ignores a position, the mask or the cache, its logits differ by far
more than rounding, and it is refused.

    tokens 0 1 2 3 4 5 6 7        slot 0: prompt 0..4, root 5, draft: a wrong node, 6, a wrong node, 7 under 6
                                  slot 1: prompt 0..2, root 3, draft: 4 5 6

Difference measured: ||ours - plain|| / ||plain - its mean over the vocabulary||, over all rows of both paths.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from outrider.draft import Draft, Tree
from outrider.errors import CheckpointError
from outrider.target import Target

__all__ = ["CacheShape", "cache_shape", "rehearse"]

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # several models keep their softmax in fp32
LOW_PRECISION_TOLERANCE = 0.1
NUM_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The sizes of a model's cache and outputs. `num_states` is its number of hidden states."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    hidden_size: int
    num_states: int


def cache_shape(model: Any, name: str) -> CacheShape:
    """Run a few tokens through the model's own cache and return its shape.

    Raises:
        CheckpointError: if the model fails, or its layers do not all hold keys and values of one shape.
    """
    cache = DynamicCache()
    output = _plain(model, name, cache)
    shapes = {tuple(side.shape) for layer in cache.layers for side in (layer.keys, layer.values) if side is not None}
    whole = bool(cache.layers) and all(layer.keys is not None for layer in cache.layers)
    if not whole or len(shapes) != 1:
        raise CheckpointError(
            f"{name} cannot verify drafts: its layers hold keys and values of {len(shapes)} shapes in"
            f" {len(cache.layers)} caches, and one shape for all is needed; use a model with uniform attention layers"
        )
    _, heads, _, size = next(iter(shapes))
    return CacheShape(
        num_layers=len(cache.layers),
        num_kv_heads=heads,
        head_dim=size,
        vocab_size=output.logits.shape[-1],
        hidden_size=output.hidden_states[0].shape[-1],
        num_states=len(output.hidden_states),
    )


def rehearse(target: Target, model: Any) -> None:
    """Compare a drafted step with a plain forward.

    Raises:
        CheckpointError: if they differ, or the model fails.
    """
    name, spec = target.spec.name, target.spec
    plain_MV = _plain(model, name, DynamicCache()).logits[0].double()
    try:
        ours_MV = _drafted(target).double()
    except Exception as error:  # any error of the model's code on a foreign cache or mask
        raise _refused(name, f"it fails with {_first_words(error)}") from error
    wanted_MV = plain_MV[[5, 6, 7, 3, 4, 5, 6]]
    spread = (wanted_MV - wanted_MV.mean(-1, keepdim=True)).norm()
    difference = float((ours_MV - wanted_MV).norm() / spread)
    tolerance = TOLERANCE.get(spec.dtype, LOW_PRECISION_TOLERANCE)
    if not difference <= tolerance:
        raise _refused(name, f"its logits change by {difference:.1e} (tolerance {tolerance:.0e})")


def _plain(model: Any, name: str, cache: Any) -> Any:
    tokens_1M = torch.tensor([_tokens(model.config.get_text_config().vocab_size)], device=model.device)
    try:
        with torch.inference_mode():
            return model(input_ids=tokens_1M, past_key_values=cache, use_cache=True, output_hidden_states=True)
    except Exception as error:  # any error of the model's code
        raise CheckpointError(
            f"{name} fails on a plain forward in {model.dtype}: {_first_words(error)}; try another dtype"
        ) from error


def _drafted(target: Target) -> Tensor:
    tokens = _tokens(target.spec.vocab_size)
    wrong = (tokens[6] + 1) % target.spec.vocab_size
    session = target.open(target.plan(2, 2 * NUM_TOKENS, tail=5))
    session.prefill([0, 1], [tokens[:5], tokens[:3]])
    trees = [Tree([wrong, tokens[6], wrong, tokens[7]], [-1, -1, 0, 1]), Tree.chain(tokens[4:7])]
    logits_BMV = session.forward([0, 1], [tokens[5], tokens[3]], Draft.of_trees(trees, target.spec.device)).logits_BMV
    return torch.cat([logits_BMV[0][[0, 2, 4]], logits_BMV[1][:4]])


def _tokens(vocab_size: int) -> list[int]:
    """Return tokens that are distinct if the vocabulary allows it, none of the first few, which are often special."""
    return [(5 + 3 * index) % vocab_size for index in range(NUM_TOKENS)]


def _refused(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot verify drafts: given a cache, a mask and positions, {reason}; use a model that follows them"
    )


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
