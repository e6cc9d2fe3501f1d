"""A server that answers with anything: what fits is taken, the rest is one sentence with its address, in time."""

import asyncio
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from outrider.bench.serving import prometheus
from outrider.bench.serving.client import Client
from outrider.bench.serving.dialect import CompletionRequest, Reply
from outrider.errors import EndpointError, OutriderError, RunError
from outrider.http import client as server_http

Send = Callable[[socket.socket], None]
REQUEST = CompletionRequest(
    prompt=[5, 6, 7], limit=4, vocab_size=20, temperature=0.0, seed=0, ends=(2,), ignore_eos=False
)
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@contextmanager
def listening(send: Send) -> Iterator[str]:
    """A server that reads a request and then does what `send` does."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.02)

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2.0)
                    try:
                        _read_request(connection)
                        send(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        finally:
            over.set()
            thread.join()


def _read_request(connection: socket.socket) -> None:
    """Read all of it: a socket that is closed with bytes unread resets, and what it sent may be lost."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
        head, end, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if end and len(rest) >= int(length[1] if length else 0):
            return


def event(ids: object = None, reason: object = None, **more: Any) -> bytes:
    choices = [] if ids is None else [{"index": 0, "text": "x", "token_ids": ids, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def usage(prompt: object = 3, written: object = 3) -> bytes:
    return event(usage={"prompt_tokens": prompt, "completion_tokens": written})


DONE = b"data: [DONE]\n\n"
WHOLE = event([9]) + event([10, 2], "stop") + usage() + DONE


def body(data: bytes, headers: bytes = b"") -> Send:
    return lambda connection: connection.sendall(HEAD + headers + b"\r\n" + data)


def asked(send: Send, *, stall_s: float = 5.0) -> Reply:
    async def ask(url: str) -> Reply:
        client = Client(url, stall_s=stall_s)
        try:
            return await client.ask(REQUEST, "m")
        finally:
            await client.close()

    with listening(send) as url:
        return asyncio.run(ask(url))


def refused(send: Send, *, stall_s: float = 5.0) -> str:
    with pytest.raises(EndpointError) as caught:
        asked(send, stall_s=stall_s)
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:")
    assert message.isprintable()
    assert len(message) < 500
    assert isinstance(caught.value, RunError | OutriderError)
    return message


TAKEN = {
    "no space behind data:": WHOLE.replace(b"data: ", b"data:"),
    "carriage returns": WHOLE.replace(b"\n", b"\r\n"),
    "comments and other fields": b": ping\n\nevent: x\nid: 5\n" + WHOLE,
    "behind the end": WHOLE + b"data: {",
    "line separators in a text": WHOLE.replace(b'"x"', '"\u2028\x85é"'.encode()),
    "no choice index": WHOLE.replace(b'"index": 0, ', b""),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_formats_allow_is_taken(name: str) -> None:
    reply = asked(body(TAKEN[name]))
    assert (reply.tokens, reply.reason, reply.usage) == ([9, 10, 2], "stop", (3, 3))


def test_characters_may_be_cut_anywhere() -> None:
    data = WHOLE.replace(b'"x"', '"é€😀"'.encode())

    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for byte in data:
            connection.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

    assert asked(send).tokens == [9, 10, 2]


REFUSED = {
    "an id above the vocabulary": (event([20]), "gave the token id 20, but the target has 20 tokens"),
    "a negative id": (event([-1]), "gave the token id -1"),
    "an id that is true": (event([True]), "'token_ids' holds True"),
    "an id that is 9.0": (event([9.0]), "'token_ids' holds 9.0"),
    "an id that is text": (event(["9"]), "'token_ids' holds '9'"),
    "ids that are no list": (event({"0": 9}), "'token_ids' is {'0': 9}"),
    "more than was asked for": (event([9] * 5), "wrote more than the 4 tokens"),
    "more, one by one": (event([9]) * 5, "wrote more than the 4 tokens"),
    "tokens behind the end": (event([9], "stop") + event([9]), "went on with its answer after the end"),
    "a reason that is a list": (event([9], ["stop"]), "ended an answer for the reason"),
    "two choices": (b'data: {"choices": [{"token_ids": [9]}, {"token_ids": [9]}]}\n\n', "other choices"),
    "the second choice": (b'data: {"choices": [{"index": 1, "token_ids": [9]}]}\n\n', "other choices"),
    "choices that are no list": (b'data: {"choices": {}}\n\n', "'choices' is not a list"),
    "counts that are text": (event([9], "stop") + usage("3", "1") + DONE, "'usage' holds '3'"),
    "counts that are NaN": (event([9], "stop") + usage(3, float("nan")) + DONE, "NaN is no JSON"),
    "a huge count": (event([9], "stop") + usage(10**300, 1) + DONE, "read 2**996 tokens where 3"),
    "no counts": (event([9], "stop") + event(usage={}) + DONE, "its counts are missing"),
    "a list": (b"data: [1]\n\n", "it answered with a list"),
    "null": (b"data: null\n\n", "it answered with a NoneType"),
    "deep JSON": (b"data: " + b"[" * 100_000 + b"\n\n", "did not answer in JSON"),
    "not UTF-8": (b"data: \xff\n\n", "did not answer in JSON"),
    "an error": (b'data: {"error": {"message": "out of \\u001b[31mmemory"}}\n\n', r"error: out of \x1b[31mmemory"),
    "a page": (b"<html>It works!</html>", "it sent no events but '<html>It works!</html>'"),
    "an error at once": (b'{"error": {"message": "too long"}}', "it sent no events but 'too long'"),
    "nothing": (b"", "cut its answer off before the end"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    data, said = REFUSED[name]
    assert said in refused(body(data))


FRAMES = {
    "a redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: /v1/completions\r\n\r\n",
        "status 302 (it leads to /v1/completions)",
    ),
    "another protocol": (b"SSH-2.0-OpenSSH_9\r\n\r\n", "did not answer in HTTP"),
    "a length that is too long": (HEAD + b"Content-Length: 99999\r\n\r\n" + event([9]), "cut its answer off"),
    "a length that is no number": (HEAD + b"Content-Length: x\r\n\r\n", "did not answer in HTTP"),
    "nothing": (b"", "cut its answer off"),
    "a long header": (HEAD + b"X: " + b"a" * 300_000 + b"\r\n\r\n", "did not answer in HTTP"),
    "a compressed bomb": (
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * 2**26),
        "answers in the encoding 'gzip'",
    ),
    "a refusal without end": (b"HTTP/1.1 500 Oh\r\n\r\n" + b"a" * 10**6, "refuses with status 500 (aaa"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_not_what_they_should_be(name: str) -> None:
    data, said = FRAMES[name]
    assert said in refused(lambda connection: connection.sendall(data))


ENDLESS = {
    "silence": (b"", "sent nothing new for 0.3 s"),
    "pings": (b": ping\n\n", "sent nothing new for 0.3 s"),
    "empty events": (event(), "sent nothing new for 0.3 s"),
    "half a header": (None, "sent nothing new for 0.3 s"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_server_that_only_keeps_the_connection_open_ends_in_time(name: str) -> None:
    piece, said = ENDLESS[name]

    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + (b"X: " if piece is None else b"\r\n"))
        for _ in range(200):
            connection.sendall(b"a" if piece is None else piece)
            threading.Event().wait(0.02)

    assert said in refused(send, stall_s=0.3)


@pytest.mark.parametrize(
    ("piece", "said"), [(b"a" * 2**10, "sends a line of more than"), (b": ping\n" * 200, "MiB without a token")]
)
def test_an_endless_answer_is_cut_by_its_size(piece: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_http, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(server_http, "MOST_IDLE_BYTES", 2**16)

    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(piece)

    assert said in refused(send)


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://a:99999/v1", "http://a\x00b/v1", "http://é..x/v1"]
)
def test_an_address_that_is_none(address: str) -> None:
    async def ask() -> None:
        client = Client(address, stall_s=1.0)
        try:
            assert await client.counters() is None
            await client.model()
        finally:
            await client.close()

    with pytest.raises(EndpointError, match="cannot be"):
        asyncio.run(ask())


PAGE = 'vllm:generation_tokens_total 5.0\nvllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 3.0\n'
DAMAGED = (
    ("5.0", "NaN"), ("5.0", "-5"), ("5.0", "+Inf"), ("5.0", "1e300"), ("5.0", "five"), ("3.0", "NaN"),
    ('"0"', '"99999999999999"'), ('"0"', '"-1"'), ('"0"', '"x"'), ('"0"', '"²"'), ('{position="0"}', ""),
)  # fmt: skip


@pytest.mark.parametrize(("old", "new"), DAMAGED)
def test_a_page_with_a_counter_that_is_none_is_not_believed(old: str, new: str) -> None:
    assert prometheus.counters_in(PAGE) is not None
    assert prometheus.counters_in(PAGE.replace(old, new)) is None


def test_counters_must_be_able_to_belong_to_what_arrived() -> None:
    counters = prometheus.counters_in(PAGE + "vllm:spec_decode_num_drafts_total 4\n")
    assert counters is not None
    assert counters.is_growth_of(5)
    assert not counters.is_growth_of(6)
    assert not (counters - counters - counters).is_growth_of(-5)
    more_at_depth_2 = PAGE + 'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 4\n'
    found = prometheus.counters_in(more_at_depth_2)
    assert found is not None
    assert not found.is_growth_of(5)
