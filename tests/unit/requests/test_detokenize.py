"""Streamed text is the tokenizer's own decode, whatever the tokens; the oracle is `transformers`."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from outrider.requests.detokenize import Detokenizer, Vocabulary, guarded
from outrider.requests.text import TextStream

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ["\u2581", "a", "\u2581a", "\u2581b", "\u00bb", "\u4e2d", "\u2581\u4e2d", " ", ".", " .", " '", " n't", "##s"]
SPECIAL = ["<s>", "</s>", "<|tool|>"]


def tokenizer_of(kind: str, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of one family of decoders, with every byte and some words."""
    if kind == "byte level":
        backend = Tokenizer(models.BPE({token: index for index, token in enumerate(BYTES)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
        backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
        space = decoders.Replace("\u2581", " ")
        backend.decoder = {
            "fallback": decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()]),
            "llama": decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
            "metaspace": decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
            "wordpiece": decoders.WordPiece(),
        }[kind]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **settings)


def streamed(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    stream = TextStream(tokenizer, stop)
    pieces = [piece for token in tokens if not stream.stopped for piece in stream.push(token, drafted=False)]
    return "".join(piece.text for piece in [*pieces, *stream.flush()])


def drawn(random_: random.Random, tokenizer: Any) -> list[int]:
    """Bytes of real characters, wrong bytes, words, special tokens, and ids that the tokenizer lacks."""
    size = len(tokenizer)
    words = list(range(max(0, size - len(WORDS) - len(SPECIAL)), size + 2))
    found: list[int] = []
    while len(found) < random_.randint(1, 14):
        text = random_.choice(["\u4e2d", "\U0001f600", "\u00e9", "\ufffd", "x\n", " \u0e2a"]).encode()
        spelled = [_byte(tokenizer, byte) for byte in text]
        found += random_.choice([spelled, spelled[:-1], spelled[1:], [random_.choice(words)], [random_.choice(words)]])
    return found


def _byte(tokenizer: Any, byte: int) -> int:
    token: int | None = tokenizer.backend_tokenizer.token_to_id(f"<0x{byte:02X}>")
    return tokenizer.backend_tokenizer.token_to_id(_symbol(byte)) if token is None else token


@cache
def _symbol(byte: int) -> str:
    """How byte-level BPE writes a byte: the printable ones as they are, the others from U+0100 on, in order."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in kept else chr(256 + [other for other in range(256) if other not in kept].index(byte))


@pytest.mark.parametrize("kind", ["byte level", "fallback", "llama", "metaspace", "wordpiece"])
@pytest.mark.parametrize("cleans", [False, True])
def test_the_streamed_text_is_the_decoded_text(kind: str, cleans: bool) -> None:
    tokenizer = tokenizer_of(kind, clean_up_tokenization_spaces=cleans)
    random_ = random.Random(kind)
    for _ in range(600):
        tokens = drawn(random_, tokenizer)
        want = tokenizer.decode(tokens, skip_special_tokens=True)
        assert streamed(tokenizer, tokens) == want, tokenizer.convert_ids_to_tokens(tokens)
        assert streamed(tokenizer, tokens, stop=["never written"]) == want


@pytest.mark.parametrize("kind", ["byte level", "fallback", "llama", "metaspace"])
def test_an_answer_ends_where_its_text_with_special_tokens_holds_a_stop_string(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    random_ = random.Random(kind)
    stops = ["<|tool|>", "a<|tool|>", "</s><|tool|>", "tool", "\u4e2d", "x", "<s>\u4e2d"]
    num_stopped = 0
    for _ in range(600):
        tokens, stop = drawn(random_, tokenizer), random_.sample(stops, 2)
        ends = [n for n in range(1, len(tokens) + 1) if any(one in tokenizer.decode(tokens[:n]) for one in stop)]
        stream, used, text = TextStream(tokenizer, stop), 0, ""
        while used < len(tokens) and not stream.stopped:
            text += "".join(piece.text for piece in stream.push(tokens[used], drafted=False))
            used += 1
        text += "".join(piece.text for piece in stream.flush())
        assert stream.stopped == bool(ends)
        assert used == (ends[0] if ends else len(tokens))
        num_stopped += stream.stopped
        whole = tokenizer.decode(tokens[:used], skip_special_tokens=True)
        assert whole.startswith(text) or not stream.stopped
        if not stream.stopped:
            assert text == whole
    assert 40 < num_stopped < 560


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|tool|>", "ab"),
        ("tool", "ab"),
        ("b<s><|tool|>", "a"),
        ("<|tool|>c", "ab"),
        ("<s><|tool|>", "ab"),
        ("|>c", "ab"),
    ],
)
def test_the_text_is_cut_in_front_of_the_stop_string_and_hides_special_tokens(stop: str, text: str) -> None:
    tokenizer = tokenizer_of("byte level")
    tokens = tokenizer("ab<s><|tool|>cd")["input_ids"]
    stream = TextStream(tokenizer, [stop])
    pieces = [piece for token in tokens if not stream.stopped for piece in stream.push(token, drafted=False)]
    assert stream.stopped
    assert "".join(piece.text for piece in pieces) == text
    assert stream.flush() == []


def test_an_unfinished_character_in_front_of_a_stop_string_is_kept() -> None:
    tokenizer = tokenizer_of("byte level")
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    tokens = [*tokenizer("a\u4e2d")["input_ids"][:-1], tool]
    assert streamed(tokenizer, tokens, stop=["<|tool|>"]) == "a\ufffd"
    assert streamed(tokenizer, tokens, stop=["\ufffd<|tool|>"]) == "a"


def test_a_stop_string_at_the_end_may_hold_an_unfinished_character() -> None:
    tokenizer = tokenizer_of("byte level")
    stream = TextStream(tokenizer, ["\ufffd"])
    pieces = [piece for token in tokenizer("a\ufffd")["input_ids"] for piece in stream.push(token, drafted=False)]
    assert not stream.stopped
    assert "".join(piece.text for piece in [*pieces, *stream.flush()]) == "a"
    assert stream.stopped


def test_a_tokenizer_in_python() -> None:
    tokenizer = ByT5Tokenizer()
    random_ = random.Random(0)
    for _ in range(100):
        tokens = [random_.randrange(len(tokenizer)) for _ in range(random_.randint(1, 12))]
        tokens += tokenizer("na\u00efve \u4e2d")["input_ids"]
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert streamed(tokenizer, tokenizer("so be it</s> more")["input_ids"], stop=["it</s>"]) == "so be "


class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
    """A tokenizer whose `decode` is its own, as code of a checkpoint may have it."""

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **settings: Any) -> Any:
        if 7 in token_ids:
            raise RuntimeError("seven")
        if 8 in token_ids:
            return ["eight"]
        return super()._decode(token_ids, skip_special_tokens=skip_special_tokens).upper()


def test_an_own_decode_is_used_and_what_it_cannot_decode_has_no_text() -> None:
    tokenizer = Own(tokenizer_object=tokenizer_of("byte level").backend_tokenizer)
    a, b = tokenizer("ab")["input_ids"]
    assert streamed(tokenizer, [a, 7, b, 8]) == "AB"


def test_a_text_that_is_rewritten_later_never_raises() -> None:
    class Fickle:
        """Decodes two tokens to something that does not begin like one."""

        all_special_ids = ()

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return "one" if len(tokens) == 1 else "two" * len(tokens)

        def convert_ids_to_tokens(self, token: int) -> str:
            raise IndexError

    detokenizer = Detokenizer(Vocabulary(Fickle()))
    assert [detokenizer.push(token) for token in range(3)] == ["one", "", ""]
    assert detokenizer.flush() == ""


class PanicException(BaseException):
    """Named like what the Rust library raises."""


def test_a_panic_is_an_error_and_an_interrupt_is_not() -> None:
    def panic() -> str:
        raise PanicException("index out of bounds")

    def interrupt() -> str:
        raise KeyboardInterrupt

    assert guarded(panic, str) == "index out of bounds"
    with pytest.raises(KeyboardInterrupt):
        guarded(interrupt, str)
