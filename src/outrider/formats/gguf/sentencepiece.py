"""The tokenizer of a GGUF file whose model is "llama": SentencePiece's BPE, by scores.

The file holds pieces with scores, and no merges. SentencePiece joins, again and again, the two neighbours whose union
has the highest score (Kudo and Richardson 2018). As merges these are all splits of every piece into two pieces, in the
order of the scores; at equal scores the lower id, then the shorter left side, comes first. Spaces are the sign U+2581;
a character that is no piece becomes its bytes.

Example: with `ab` (-1) and `bc` (-2), "abc" is `ab` `c`: of both pairs `ab` has the higher score.
"""

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from outrider.errors import CheckpointError, as_error
from outrider.records.json_fields import Fields

__all__ = ["MODEL", "piece_tokenizer"]

MODEL: Final = "llama"
"""The name of this kind of tokenizer in a GGUF file."""
SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
NORMAL, UNUSED = 1, 5


def piece_tokenizer(metadata: Fields, tokens: list[str], kinds: list[int], ids: Mapping[str, int]) -> Tokenizer:
    """Build the tokenizer of these pieces, without special tokens.

    Raises:
        CheckpointError: if there is not one score for each piece, or the library refuses them.
    """
    scores = metadata.array("tokenizer.ggml.scores", length=len(tokens))
    if not all(isinstance(score, int | float) and score == score for score in scores):
        raise CheckpointError(f"{metadata.where}: tokenizer.ggml.scores holds what is no number; download it again")
    pieces = {token: index for index, token in enumerate(tokens) if kinds[index] == NORMAL}
    vocabulary = {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED}
    unknown = ids.get("unknown")
    settings: dict[str, Any] = {} if unknown is None else {"unk_token": tokens[unknown]}
    adds_space = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    with as_error(CheckpointError, f"{metadata.where}: its tokenizer cannot be built", "use the original checkpoint"):
        tokenizer = Tokenizer(BPE(vocabulary, _merges(pieces, scores), byte_fallback=True, fuse_unk=True, **settings))
    prefix = [normalizers.Prepend(SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(pieces: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every split of a piece into two pieces, the best piece first."""
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece])):
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in splits if left in pieces and right in pieces]
    return merges
