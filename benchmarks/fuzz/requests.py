"""Settings of requests, forms of answers, and requests over HTTP to our own server.

What is taken must hold: the text with drafts is the text without them, an answer has its form, and a server goes on to
serve right answers whatever a client sent before.
"""

import asyncio
import json
import logging
import random
import re
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz.heads import target
from benchmarks.fuzz.mutate import ODD_VALUES, json_text, mutate_bytes, mutate_json, mutate_text

import outrider
from outrider.errors import RequestError
from outrider.params import SamplingParams, StructuredOutputs
from outrider.requests.events import Completion
from outrider.serve.config import ServeConfig
from outrider.serve.opening import opened
from outrider.serve.server import run

MAX_LEN = 48
NAMES = ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "stop", "stop_token_ids", "ignore_eos")
NAMES += ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_tokens", "bad_words")
NAMES += ("logprobs", "structured_outputs")
USUAL: dict[str, list[Any]] = {
    "temperature": [0.7, 0.01, 100, 1e-3],
    "top_k": [1, 3, 10**9],
    "top_p": [1e-9, 0.5],
    "min_p": [0.1, 0.999],
    "max_tokens": [1, 5, 12],
    "stop": ["a", ["é", "<|im_end|>"], ("\n",), "ab" * 400],
    "stop_token_ids": [[5, 77], [10**9], (0,)],
    "logit_bias": [{5: 100}, {"7": -100}, [(5, 1), (5, 2)], {260: 1}, {5: 1e9}],
    "bad_words": ["a", ["ab", "\x00"], " ", "<|im_end|>"],
    "min_tokens": [2, 5, 12],
    "logprobs": [0, 5, 1000],
    "presence_penalty": [2, -2],
    "frequency_penalty": [1.5, -2],
    "repetition_penalty": [0.01, 1.5, 100],
}
PROMPTS: tuple[Any, ...] = (
    *("hi", "ab ab ab", [5, 6, 7], [[5], [6, 7]], [{"role": "user", "content": "hi"}], ["a", "b"], "é" * 20, "\ud800"),
    *([260], [-1], [], "", None, [None], [{"role": "user"}], [5.0, 6.5], {"input_ids": [5]}, [5] * 60, b"hi", [True]),
    *([{"role": "x" * 200, "content": [{"type": "text", "text": "a"}]}], [{"role": "user", "content": {"a": 1}}]),
)


@cache
def _engine(method: str) -> outrider.Engine:
    proposer = outrider.load_proposer(method, target(), **({} if method == "none" else {"num_nodes": 4}))
    return outrider.Engine(target(), proposer, max_batch=2, max_len=MAX_LEN)


def _written(prompt: Any, params: Any) -> list[Completion]:
    """Return answers, which must be the same with drafts as without."""
    plain, drafted = (_engine(method).generate(prompt, params) for method in ("none", "ngram"))
    if any(
        one.error is not None for one in (*plain, *drafted)
    ):  # limits of a form's matcher, which it reaches anywhere
        return drafted
    assert [one.tokens for one in plain] == [one.tokens for one in drafted], "drafts changed the text"
    assert [one.finished for one in plain] == [one.finished for one in drafted]
    return drafted


def params(rng: random.Random, directory: Path) -> None:
    """Draw settings, usual ones and odd ones, and serve a prompt with them."""
    given: dict[str, Any] = {"max_tokens": 6}
    for name in rng.sample(NAMES, rng.choice((1, 1, 2, 3, 5))):
        given[name] = rng.choice(USUAL.get(name, [1, True])) if rng.random() < 0.6 else rng.choice(ODD_VALUES)
    if rng.random() < 0.2:
        given["structured_outputs"] = StructuredOutputs(choice=["yes", "no", "é"])
    prompt = "hi" if rng.random() < 0.6 else rng.choice((*PROMPTS, *ODD_VALUES))
    settings = SamplingParams(**given)
    for one in _written(prompt, settings if rng.random() < 0.9 else rng.choice(([settings], [settings] * 2, 7, "x"))):
        assert one.error is None, one.error
        assert 0 < len(one.tokens) <= settings.max_tokens
        is_free = settings.structured_outputs is None  # a form that is complete ends an answer before min_tokens
        assert len(one.tokens) >= settings.min_tokens or one.finished == "context" or not is_free
        assert all(0 <= token < 260 for token in one.tokens)
        one.text.encode()
        if settings.logprobs is not None:
            assert len(one.logprobs or ()) == len(one.tokens)
            json.dumps([list(found.top) for found in one.logprobs or ()], allow_nan=False)


SCHEMAS: tuple[Any, ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 2, "minItems": 1},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": {"k": [1, 2]}}]},
    {"$ref": "#/$defs/t", "$defs": {"t": {"type": ["string", "null"], "maxLength": 3, "pattern": "^[ab]+$"}}},
    {"type": "object", "properties": {"n": {"$ref": "#"}}, "maxProperties": 1},
    {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
    {"type": "string", "format": "date"},
    {"allOf": [{"type": "integer"}, {"minimum": 3}], "oneOf": [{"maximum": 9}]},
)
REGEXES = (
    *("[ab]{1,3}", "(yes|no)", r"\d{3}-\d{4}", "a*b?c+", "(a|aa)+$", r"(?i)ok\s*", "[^x]{2}", "(((a{9}){9}){9}){9}"),
    *("a{1,65535}", "(a{1000}){1000}", r"\p{L}+", "(", "[", "a{", "*", r"(?<n>a)\1", "(?=a)", "é+", ".*.*.*x"),
)
GRAMMARS = (
    *('start: "a" | "b" start', "start: /[0-9]+/", 'start: x "y"?\nx: "a"~1..3', 'root ::= "a" | "b" root'),
    *('root ::= [a-z]+ ws\nws ::= " "?', "start: start", 'start: a\na: b\nb: a | "x"', "%llguidance {}\nstart: /a/"),
    *('start: %json {"type": "null"}', "start: " + '"a" ' * 300, "x: y", "start: @unknown", "(" * 2000),
)


def form(rng: random.Random, directory: Path) -> None:
    """Draw a form, damage it, and hold answers to it."""
    given: dict[str, Any] = {}
    match rng.randrange(6):
        case 0 | 1:
            schema = rng.choice(SCHEMAS)
            schema = mutate_json(schema, rng) if rng.random() < 0.7 else schema
            given["json"] = schema if rng.random() < 0.7 else json_text(schema, rng).decode("utf-8", "replace")
        case 2:
            given["regex"] = _damaged(rng.choice(REGEXES), rng)
        case 3:
            given["grammar"] = _damaged(rng.choice(GRAMMARS), rng)
        case 4:
            choice = mutate_json(["yes", "no", "é"], rng) if rng.random() < 0.6 else ["a", "ab", "abc"]
            given["choice"] = choice if rng.random() < 0.9 else [f"{number:b}" for number in range(3000)]
        case _:
            given["json_object"] = rng.choice((True, True, False, 1, "true", None))
    if rng.random() < 0.2:
        given[rng.choice(("regex", "choice", "json", "disable_any_whitespace"))] = rng.choice(ODD_VALUES)
    structure = StructuredOutputs(**given)
    settings = SamplingParams(max_tokens=10, temperature=rng.choice((0.0, 1.0)), structured_outputs=structure)
    for one in _written("hi", settings):
        if one.error is not None:
            raise RequestError(one.error)
        if one.finished == "eos":
            _check(structure, one.text)


def _damaged(text: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return text
    return rng.choice((mutate_text, mutate_bytes, mutate_bytes))(text.encode(), rng).decode("utf-8", "replace")


def _check(structure: StructuredOutputs, text: str) -> None:
    kind, wanted = structure.form
    if kind == "json":
        found = json.loads(text)
        assert not structure.json_object or isinstance(found, dict)
    elif kind == "choice":
        assert text in json.loads(wanted)
    elif kind == "regex" and wanted in ("[ab]{1,3}", "(yes|no)", r"\d{3}-\d{4}", "a*b?c+", "[^x]{2}"):
        assert re.fullmatch(wanted, text)


class _Faults(logging.Handler):
    """Errors that the server logs: no request may cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.said.append(f"{record.name}: {record.getMessage()} {error!r}")


class _Server:
    """Our server in a thread, on a port of its own."""

    def __init__(self) -> None:
        self.faults = _Faults()
        logging.getLogger().addHandler(self.faults)
        config = ServeConfig(
            target="m", method="ngram:num_nodes=4", port=0, max_batch=4, max_len=MAX_LEN, max_body_bytes=2**16
        )
        self.service = opened(target(), config)
        begun, address = threading.Event(), list[str]()

        async def main() -> None:
            await run(self.service, config, None, lambda url: (address.append(url), begun.set())[0], asyncio.Queue())

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        assert begun.wait(60)
        self.port = int(address[0].rpartition(":")[2])

    def ask(self, data: bytes, *, read_bytes: int = 2**20, wait_s: float = 30.0, stop_sending: bool = False) -> bytes:
        """Send bytes and return what comes back, up to so many bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            found = b""
            try:
                connection.sendall(data)
                if stop_sending:
                    connection.shutdown(socket.SHUT_WR)
                while len(found) < read_bytes and (more := connection.recv(65536)):
                    found += more
            except (TimeoutError, ConnectionError):
                pass
            return found

    def is_idle(self) -> bool:
        return not self.service.worker.open


@cache
def _server() -> _Server:
    return _Server()


BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("completions", {"model": "m", "prompt": "hi", "max_tokens": 4, "temperature": 0}),
    ("completions", {"prompt": ["ab ab", [5, 6]], "max_tokens": 3, "stream": True, "logprobs": 2, "seed": 1}),
    ("completions", {"prompt": [5, 6, 7], "max_tokens": 5, "stop": ["a", "é"], "return_token_ids": True, "top_k": 5}),
    ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0.8}),
    (
        "chat/completions",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
            ],
            "max_completion_tokens": 6,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "logprobs": True,
            "top_logprobs": 3,
            "return_steps": True,
            "outrider_method": "suffix",
            "outrider_num_nodes": 2,
        },
    ),
    (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": []}],
            "max_tokens": 4,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMAS[0]}},
            "logit_bias": {"5": 3},
            "presence_penalty": 1,
        },
    ),
    (
        "completions",
        {
            "prompt": "x",
            "max_tokens": 5,
            "structured_outputs": {"regex": "[ab]{1,3}"},
            "bad_words": ["a"],
            "min_tokens": 2,
            "stop_token_ids": [2],
        },
    ),
)
HEADERS: tuple[bytes, ...] = (
    *(b"Content-Type: text/plain", b"Content-Type: application/json; charset=utf-16", b"Content-Length: 5"),
    *(b"Content-Length: 99999999", b"Content-Length: -1", b"Content-Length: x", b"Transfer-Encoding: chunked"),
    *(
        b"Transfer-Encoding: gzip",
        b"Content-Encoding: gzip",
        b"Host: evil.example",
        b"Host: \xff",
        b"Expect: 100-continue",
    ),
    *(b"Authorization: Bearer \xe9", b"X: " + b"a" * 100_000, b"no colon", b": x", b"X: \x00", b"Upgrade: websocket"),
    *(b"Connection: Upgrade, HTTP2-Settings", b"Range: bytes=0-1", b"Accept: */*", b"Origin: http://evil.example"),
)
PLACES = ("models", "completions", "chat/completions/x", "../metrics", "%00", "\u00e9", "?" + "a" * 5000, "//")


def request(rng: random.Random, directory: Path) -> None:
    """Send a request to our own server, damaged in body, headers, framing or time, then a good one."""
    server = _server()
    place, body = rng.choice(BODIES)
    content = json_text(mutate_json(body, rng) if rng.random() < 0.8 else body, rng)
    lines = [f"POST /v1/{place} HTTP/1.1".encode(), b"Host: localhost"]
    if is_odd := rng.random() < 0.1:
        method = rng.choice(("GET", "PUT", "HEAD", "OPTIONS", "POST", "BREW", "get"))
        version = rng.choice(("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "", "HTTP/1.1\r\nX: y"))
        lines[0] = f"{method} /v1/{rng.choice(PLACES)} {version}".encode()
    headers = [b"Content-Type: application/json", f"Content-Length: {len(content)}".encode(), b"Connection: close"]
    if rng.random() < 0.25:
        is_odd, at = True, rng.randrange(len(headers) + 1)
        headers[at : at + rng.randrange(2)] = [rng.choice(HEADERS)]
    data = b"\r\n".join([*lines, *headers, b"", b""]) + content
    if is_odd and rng.random() < 0.2:
        data = mutate_bytes(data, rng)
    is_cut = rng.random() < 0.15
    if is_cut:
        data = data[: rng.randrange(len(data))]
    leaves = rng.random() < 0.15
    answer = server.ask(
        data,
        read_bytes=rng.choice((0, 1, 60, 300)) if leaves else 2**20,
        wait_s=0.3 if is_odd or is_cut else 30.0,
        stop_sending=is_cut and rng.random() < 0.5,
    )
    if not (is_odd or is_cut or leaves):
        _judge(answer)
    for _ in range(20_000):  # counted, for a process that is stopped for a while has no clock
        if server.is_idle():
            break
        time.sleep(0.002)
    else:
        raise AssertionError("a request is served for nobody")
    _probe(server)
    faults, server.faults.said = server.faults.said, []
    assert not faults, faults[0]
    if not answer.startswith(b"HTTP/1.1 200") and answer:
        raise RequestError("refused: " + ascii(answer[:60])[2:-1])


def _judge(answer: bytes) -> None:
    """Check an answer to a request that was framed well."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"text/event-stream" in head:
        assert b"data: [DONE]" in rest, "a stream without an end"
        assert b'"error"' not in rest, rest[:300]
        return
    found = json.loads(_unchunked(rest) if b"chunked" in head else rest)
    assert status in (200, 400, 404, 405, 413, 415), f"{status} {found}"
    if status == 200:
        assert "choices" in found
    else:
        said = found["error"]["message"]
        assert 5 < len(said) <= 2000, f"a message of {len(said)} characters"
        assert said.isprintable(), ascii(said)


def _unchunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


@cache
def _expected() -> str:
    [answer] = _engine("none").generate([[5, 77, 130]], SamplingParams(max_tokens=4, ignore_eos=True))
    return answer.text


def _probe(server: _Server) -> None:
    body = {"prompt": [5, 77, 130], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    content = json.dumps(body).encode()
    headers = f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{headers}"
    found = server.ask(head.encode() + content)
    assert found.startswith(b"HTTP/1.1 200"), found[:200]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == _expected(), "another request's text"
