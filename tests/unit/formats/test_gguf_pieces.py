"""SentencePiece's tokenizer of a GGUF file against its definition: join the neighbours whose union scores best."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import CheckpointError
from outrider.formats.gguf.tokenizer import build_tokenizer

LETTERS = "abcde▁\n"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
KINDS = [2, 3, 3, *[6] * 256]


def metadata_of(pieces: Sequence[str], scores: Sequence[float], **changes: Any) -> dict[str, Any]:
    tokens = [*SPECIAL, *BYTES, *LETTERS, *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*KINDS, *[1] * (len(LETTERS) + len(pieces))],
        "tokenizer.ggml.scores": [*[0.0] * 259, *[-1e4] * len(LETTERS), *scores],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    } | changes


def reference(text: str, metadata: dict[str, Any]) -> list[int]:
    """Join the pair with the best score, the leftmost of equals, until none is left; characters become bytes."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    score = {token: scores[place] for place, token in enumerate(tokens) if place >= 259}
    parts = list(("▁" if metadata["tokenizer.ggml.add_space_prefix"] and text else "") + text.replace(" ", "▁"))
    while True:
        pairs = [(score[a + b], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in score]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    index = {token: place for place, token in enumerate(tokens)}
    return [
        place
        for part in parts
        for place in ([index[part]] if part in score else [index[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


PIECES = st.lists(st.text(st.sampled_from("abc▁"), min_size=2, max_size=5), min_size=1, max_size=25, unique=True)


@given(
    PIECES,
    st.lists(st.text(st.sampled_from("abcde \nx東"), max_size=25), min_size=1, max_size=4),
    st.booleans(),
    st.randoms(),
)
@settings(max_examples=200, deadline=None)
def test_the_best_scores_are_joined_first(pieces: list[str], texts: list[str], prefix: bool, draw: Any) -> None:
    scores = draw.sample(range(-1000, 0), len(pieces))
    metadata = metadata_of(pieces, [float(score) for score in scores]) | {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = build_tokenizer(metadata, "llama")
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert ids == reference(text, metadata)
        assert tokenizer.decode(ids) == text


def test_special_tokens_and_the_beginning() -> None:
    metadata = metadata_of(["ab"], [-1.0]) | {"tokenizer.ggml.add_bos_token": True}
    tokenizer = build_tokenizer(metadata, "gemma3")
    ids = tokenizer.encode("ab</s>a").ids
    assert [tokenizer.id_to_token(token) for token in ids] == ["<s>", "ab", "</s>", "a"]
    assert tokenizer.decode(ids) == "aba"  # special tokens are left out


@pytest.mark.parametrize("scores", [[1.0], ["high"] * 267, [float("nan")] * 267])
def test_scores_that_are_none_are_refused(scores: list[Any]) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.scores"):
        build_tokenizer(metadata_of(["ab"], [-1.0]) | {"tokenizer.ggml.scores": scores}, "llama")
