"""Streamed text: whole characters, certain text, and stop strings wherever token borders fall."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from outrider.errors import RequestError
from outrider.requests.text import Piece, TextStream, encode

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that every character beyond ASCII is split, and `<eos>`."""
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(BYTES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def push_all(stream: TextStream, tokens: list[int]) -> list[Piece]:
    pieces: list[Piece] = []
    for token in tokens:
        pieces += stream.push(token, drafted=False)
        if stream.stopped:
            break
    return pieces


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


class Words:
    """A stand-in whose tokens are given strings, through a real tokenizer."""

    def __init__(self, words: list[str]) -> None:
        vocab = {word: index for index, word in enumerate(dict.fromkeys(words))}
        backend = Tokenizer(models.WordLevel(vocab, unk_token=words[0]))
        backend.decoder = decoders.Fuse()
        self.backend_tokenizer = backend
        self.tokens = [vocab[word] for word in words]


def stream_of(words: list[str], stop: list[str]) -> tuple[list[str], TextStream]:
    """What each push of one word gives out."""
    source = Words(words)
    stream = TextStream(source, stop)
    given_out = []
    for token in source.tokens:
        given_out.append(joined(stream.push(token, drafted=True)))
        if stream.stopped:
            break
    return given_out, stream


def test_the_docstring_example() -> None:
    given_out, stream = stream_of(["the E", "N", "ext"], ["END"])
    assert given_out == ["", "", "the ENext"]
    assert not stream.stopped
    assert stream.flush() == []


def test_a_stop_string_across_pieces_is_cut_with_what_follows() -> None:
    given_out, stream = stream_of(["so ", "be it E", "N", "D now"], ["END"])
    assert given_out == ["so ", "", "", "be it "]
    assert stream.stopped
    assert stream.flush() == []


def test_the_first_of_several_stop_strings_wins() -> None:
    given_out, stream = stream_of(["a", "b|", "c\n\n"], ["\n\n", "b|c", "c"])
    assert joined([Piece(text, False) for text in given_out]) == "a"
    assert stream.stopped


def test_a_held_beginning_is_let_go_when_it_goes_on_otherwise_and_kept_when_it_starts_anew() -> None:
    given_out, _ = stream_of(["E", "E", "N", "x"], ["END"])
    assert given_out == ["", "E", "", "ENx"]


def test_flush_gives_what_was_held() -> None:
    given_out, stream = stream_of(["ab", "E"], ["END"])
    assert given_out == ["ab", ""]
    assert stream.flush() == [Piece("E", True)]
    assert stream.flush() == []


def test_pieces_say_which_tokens_were_drafted() -> None:
    source = Words(["a", "b", "c"])
    stream = TextStream(source)
    pieces = [piece for at, token in enumerate(source.tokens) for piece in stream.push(token, drafted=at != 1)]
    assert pieces == [Piece("a", True), Piece("b", False), Piece("c", True)]


def test_a_cut_piece_keeps_its_origin() -> None:
    source = Words(["a", "bSTOP"])
    stream = TextStream(source, ["STOP"])
    assert stream.push(source.tokens[0], drafted=False) == [Piece("a", False)]
    assert stream.push(source.tokens[1], drafted=True) == [Piece("b", True)]


def test_bytes_of_an_unfinished_character_wait(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    tokens = tokenizer("é€😀")["input_ids"]
    assert len(tokens) == 2 + 3 + 4
    given_out = [joined(stream.push(token, drafted=False)) for token in tokens]
    assert given_out == ["", "é", "", "", "€", "", "", "", "😀"]


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    assert joined(push_all(stream, [*tokenizer("ok")["input_ids"], tokenizer.eos_token_id])) == "ok"


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=20))
def test_streamed_text_is_the_text(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    assert joined(push_all(stream, tokenizer(text)["input_ids"])) + joined(stream.flush()) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text("abé😀", max_size=12), stops=st.lists(st.text("abé😀", min_size=1, max_size=3), max_size=3))
def test_text_ends_where_the_first_complete_stop_string_begins(
    text: str, stops: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    ends = [n for n in range(1, len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    seen = text[: ends[0]] if ends else text
    found = [at for at in (seen.find(stop) for stop in stops) if at >= 0]
    stream = TextStream(tokenizer, stops)
    pieces = push_all(stream, tokenizer(text)["input_ids"])
    assert stream.stopped == bool(ends)
    assert joined([*pieces, *stream.flush()]) == (text[: min(found)] if found else text)


def test_a_target_without_tokenizer_has_empty_pieces() -> None:
    assert TextStream(None).push(7, drafted=True) == [Piece("", True)]


def test_encode_takes_text_messages_and_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer("hi")["input_ids"]
    assert encode(tokenizer, "hi") == plain
    assert encode(None, [3, 4]) == [3, 4]
    with pytest.raises(RequestError, match="chat template"):
        encode(tokenizer, [{"role": "user", "content": "hi"}])
    with pytest.raises(RequestError, match="no tokenizer"):
        encode(None, "hi")
    for empty in ("", []):
        with pytest.raises(RequestError, match="empty"):
            encode(tokenizer, empty)


def test_a_string_is_one_user_turn_where_there_is_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    chat.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    assert chat.decode(encode(chat, "hi")) == "[user]hi>"
    assert encode(chat, [{"role": "user", "content": "hi"}]) == encode(chat, "hi")
