"""A reduced draft vocabulary: the target's most frequent tokens (FR-Spec, arXiv 2502.14856).

Training counts the tokens that the target wrote. Those that occurred, most frequent first, special and end-of-text
tokens before all others, are written beside the checkpoint as `token_ranking.json`:

    {"schema": "outrider.token_ranking/1", "outrider": {the target}, "vocab_size": V, "ids": [...]}

Other engines ignore the file. A drafter that shares the target's output head then reads only the rows of the first K
of these tokens (`outrider.models.output_head`). Without the file it drafts from the whole vocabulary.

Worked example: counts 5, 0, 9, 1 with end-of-text token 1 rank the tokens 1, 2, 0, 3; `drafted_ids` with 2 gives 1, 2.

Shapes: V vocabulary, N ranked tokens, K drafted tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.store import check_target, provenance
from outrider.records.display import shown_json
from outrider.records.files import replacing
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["FILE", "check_draft_vocab", "drafted_ids", "rank_tokens", "read_ranking", "special_ids", "write_ranking"]

FILE = "token_ranking.json"
SCHEMA = "outrider.token_ranking/1"
DRAFT_VOCAB = 8192
"""Default number of drafted tokens for a checkpoint with a ranking."""


def special_ids(target: Target) -> list[int]:
    """Return the target's end-of-text and special tokens, ascending."""
    found = set(target.spec.eos_ids)
    if target.tokenizer is not None:
        found |= set(target.tokenizer.all_special_ids)
    return sorted(token for token in found if token < target.spec.vocab_size)


def rank_tokens(target: Target, counts_V: Tensor) -> Tensor:
    """Return int64 [N]: special tokens, then those that occurred, most frequent first, ties by the lower id."""
    weight_V = counts_V.to("cpu", torch.float64, copy=True)
    # a stable sort keeps the special tokens, and equal counts, in ascending order
    weight_V[special_ids(target)] = torch.inf
    order_V = weight_V.sort(descending=True, stable=True).indices
    return order_V[: int((weight_V > 0).sum())]


def write_ranking(directory: Path, ids_N: Tensor, target: Target) -> None:
    """Write the file into an existing directory."""
    content = {
        "schema": SCHEMA,
        "outrider": provenance(target),
        "vocab_size": target.spec.vocab_size,
        "ids": ids_N.tolist(),
    }
    with replacing(directory / FILE) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_ranking(directory: Path, target: Target) -> Tensor | None:
    """Return the ranked tokens, int64 [N], or None without a file.

    Raises:
        CheckpointError: for a file that is damaged, or of another target.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    content = read_json(file)
    check_target(content, target, file)
    vocab_size, ids = target.spec.vocab_size, content.get("ids")
    if content.get("schema") != SCHEMA or content.get("vocab_size") != vocab_size:
        schema, size = (shown_json(content.get(key)) for key in ("schema", "vocab_size"))
        raise CheckpointError(
            f"{file} has schema {schema} and vocab_size {size} instead of "
            f"{SCHEMA!r} and {vocab_size}; delete it to draft from the whole vocabulary"
        )
    if not _are_tokens(ids, vocab_size):
        raise CheckpointError(
            f"ids in {file} must be different tokens below {vocab_size}; delete it to draft from the whole vocabulary"
        )
    return torch.tensor(ids)


def _are_tokens(ids: Any, vocab_size: int) -> bool:
    if not isinstance(ids, list) or not ids or len(set(map(str, ids))) < len(ids):
        return False
    return all(type(token) is int and 0 <= token < vocab_size for token in ids)


def check_draft_vocab(draft_vocab: int | None) -> None:
    """Refuse a negative number of tokens.

    Raises:
        ConfigError: naming the number.
    """
    if draft_vocab is not None and draft_vocab < 0:
        raise ConfigError(f"draft_vocab={draft_vocab} must be 0 (all tokens) or positive")


def drafted_ids(directory: Path, target: Target, draft_vocab: int | None) -> Tensor | None:
    """Return the tokens that a drafter may draft, ascending, int64 [K]; None for all.

    Args:
        directory: the checkpoint.
        draft_vocab: number of tokens; 0 for all, None for `DRAFT_VOCAB` if there is a ranking.

    Raises:
        CheckpointError: for a ranking that is damaged, or of another target.
        ConfigError: if a number is given and there is no ranking.
    """
    if draft_vocab == 0:
        return None
    ids_N = read_ranking(directory, target)
    if ids_N is None and draft_vocab is not None:
        raise ConfigError(
            f"draft_vocab={draft_vocab} needs {FILE} in {directory}, which training writes; leave draft_vocab out"
        )
    count = DRAFT_VOCAB if draft_vocab is None else draft_vocab
    if ids_N is None or count >= target.spec.vocab_size:
        return None
    return ids_N[:count].sort().values
