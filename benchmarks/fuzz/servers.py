"""Hostile servers: a socket that answers with damaged HTTP, JSON, event streams and counters, at any pace."""

import asyncio
import gzip
import json
import random
import socket
import threading
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.fuzz.checkpoints import intact
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_text

from outrider.bench.serving.client import DIALECTS, Client
from outrider.bench.serving.contender import Reader
from outrider.bench.serving.dialect import CompletionRequest
from outrider.bench.serving.endpoint import endpoint_of
from outrider.data.endpoint import ServerConfig, ServerGenerator
from outrider.data.generator import Job
from outrider.formats.tokenizer import load_tokenizer
from outrider.sampling import SamplingParams
from outrider.tuning.endpoint.probe import probed

VOCAB_SIZE, LIMIT = 260, 8
PROMPT = (5, 6, 7)
WAIT_S = 0.4
"""Seconds that a client waits for the next token."""
LONGEST_S = 6.0
METRICS = """# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 21.0
vllm:spec_decode_num_drafts_total{engine="0"} 4.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 8.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0
"""


class Script(list[tuple[bytes, float]]):
    """Pieces to send, each with a pause in seconds after it; `endless` repeats the last one."""

    endless = False


@cache
def listener() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    return sock, sock.getsockname()[1]


class Hostile:
    """A server that answers each request with the next script, and repeats the last one."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts, self.num_asked, self.is_over = scripts, 0, False
        self.socket, self.port = listener()
        self.socket.settimeout(0.02)
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.is_over = True
        self.thread.join()

    def _accept(self) -> None:
        while not self.is_over:
            try:
                connection, _ = self.socket.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(1.0)
                data = b""
                while b"\r\n\r\n" not in data:
                    if not (more := connection.recv(65536)):
                        return
                    data += more
                script = self.scripts[min(self.num_asked, len(self.scripts) - 1)]
                self.num_asked += 1
                self._send(connection, script)
            except OSError:
                return

    def _send(self, connection: socket.socket, script: Script) -> None:
        end = time.monotonic() + LONGEST_S
        for piece, wait_s in script:
            connection.sendall(piece)
            time.sleep(wait_s)
            if self.is_over:
                return
        while script.endless and not self.is_over and time.monotonic() < end:
            connection.sendall(script[-1][0])


def server(rng: random.Random, directory: Path) -> None:
    """Ask a hostile server as the benchmark or as `outrider synthesize` does; what is taken must fit what was asked."""
    use = rng.choice((_stream, _stream, _stream, _models, _metrics, _completion, _completion, _llama, _sglang))
    use(rng)


def _stream(rng: random.Random) -> None:
    _ask(_events(rng), rng)


def _llama(rng: random.Random) -> None:
    """Answer as llama.cpp's `/completion` does, in one piece with its times and counts."""
    timings = {"predicted_n": 3, "predicted_ms": 4.5, "draft_n": 4, "draft_n_accepted": 1}
    answer = {"tokens": [8, 9, 2], "stop_type": "eos", "tokens_evaluated": len(PROMPT), "timings": timings}
    _ask(_json(answer, rng), rng, "llamacpp")


def _sglang(rng: random.Random) -> None:
    """Answer as SGLang's `/generate` does: all tokens so far in every event, counts in the last."""
    told = {"prompt_tokens": len(PROMPT), "completion_tokens": 1, "finish_reason": None}
    counts = {
        "spec_verify_ct": 2,
        "spec_draft_token_num": 4,
        "spec_accept_token_num": 1,
        "spec_accept_histogram": [1, 1],
    }
    last = {"prompt_tokens": len(PROMPT), "completion_tokens": 3, "finish_reason": {"type": "stop"}, **counts}
    events = [{"output_ids": [8], "meta_info": told}, {"output_ids": [8, 9, 2], "meta_info": last}]
    at = rng.randrange(len(events))
    events[at] = mutate_json(events[at], rng)
    lines = [b"data: " + json_text(event, random.Random(1)).replace(b"\n", b" ") for event in events]
    if rng.random() < 0.2:
        rng.shuffle(lines)
    _ask(b"\n\n".join([*lines, b"data: [DONE]", b""]), rng, "sglang")


def _ask(body: bytes, rng: random.Random, owner: str = "vllm") -> None:
    """Ask as the benchmark does, in the words of this kind of server."""
    request = CompletionRequest(
        prompt=PROMPT, limit=LIMIT, vocab_size=VOCAB_SIZE, temperature=0.0, seed=0, ends=(2,), ignore_eos=False
    )

    def ask(client: Client) -> Any:
        client.dialect = DIALECTS[owner]
        return client.ask(request, "m")

    reply = _with_client([_script(body, rng)], ask)
    assert 0 < len(reply.tokens) <= LIMIT
    assert all(type(token) is int and 0 <= token < VOCAB_SIZE for token in reply.tokens)
    assert reply.usage == (len(PROMPT), len(reply.tokens))


def _models(rng: random.Random) -> None:
    wanted = rng.choice((None, "m"))
    name = _with_client([_script(_json(_MODELS, rng), rng)], lambda client: client.model(wanted))
    assert isinstance(name, str)
    name.encode()


def _metrics(rng: random.Random) -> None:
    page = METRICS.encode()
    for _ in range(rng.choice((0, 1, 2))):
        page = _damaged_page(page, rng)
    counters = _with_client([_script(page, rng)], lambda client: client.counters())
    if counters is not None:
        json.dumps(counters.num_accepted_tokens_per_pos)
        assert min(counters.num_generation_tokens, counters.num_drafts, *counters.num_accepted_tokens_per_pos, 0) == 0


def _completion(rng: random.Random) -> None:
    job = Job(prompt=PROMPT, max_new_tokens=LIMIT, sampling=SamplingParams(), ends=frozenset({9}), stop=("END",))
    models = _plain(json.dumps(_MODELS).encode())
    answer = {
        "choices": [{"index": 0, "text": "hello", "token_ids": [8, 9, 10], "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3},
    }
    if rng.random() < 0.4:
        answer["choices"][0].pop("token_ids")  # type: ignore[index]
    hostile = Hostile([models, _script(_json(answer, rng), rng)])
    try:
        config = ServerConfig(
            url=f"http://127.0.0.1:{hostile.port}/v1", num_retries=rng.choice((0, 1)), backoff_s=0.01, timeout_s=WAIT_S
        )
        generator = ServerGenerator(config, load_tokenizer(intact()), (2,), VOCAB_SIZE)
        try:
            written = generator.write([job, job])
        finally:
            generator.close()
    finally:
        hostile.close()
    for one in written:
        assert len(one.tokens) <= LIMIT
        assert all(type(token) is int and 0 <= token < VOCAB_SIZE for token in one.tokens)


_MODELS = {"object": "list", "data": [{"id": "m"}]}


def _with_client(scripts: Sequence[Script], ask: Any) -> Any:
    hostile = Hostile(scripts)

    async def work() -> Any:
        client = Client(f"http://127.0.0.1:{hostile.port}/v1", stall_s=WAIT_S)
        try:
            return await ask(client)
        finally:
            await client.close()

    try:
        return asyncio.run(work())
    finally:
        hostile.close()


def _events(rng: random.Random) -> bytes:
    events: list[Any] = [
        {"choices": [{"index": 0, "text": "é", "token_ids": [8], "finish_reason": None}], "usage": None},
        {"choices": [{"index": 0, "text": "b", "token_ids": [9, 2], "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}},
    ]
    end = rng.choice((b"\n\n", b"\r\n\r\n", b"\n"))
    head = rng.choice((b"data: ", b"data:", b"data: "))
    if rng.random() < 0.6:
        place = rng.randrange(len(events))
        events[place] = mutate_json(events[place], rng)
    lines = [head + json_text(event, random.Random(1)).replace(b"\n", b" ") for event in events]
    lines.append(b"data: [DONE]")
    match rng.randrange(12):
        case 0:
            lines.pop(rng.randrange(len(lines)))
        case 1:
            lines.insert(
                rng.randrange(len(lines)), b'data: {"error": {"message": "out of \x1b[31mmemory", "code": 500}}'
            )
        case 2:
            lines.insert(rng.randrange(len(lines)), lines[rng.randrange(len(lines))])
        case 3:
            lines.insert(
                rng.randrange(len(lines)), rng.choice((b": ping", b"event: x", b"retry: 5", b"data", b"\xff\xfe"))
            )
        case 4:
            rng.shuffle(lines)
        case 5:
            lines = [b"<html><body>It works!</body></html>"]
        case 6:
            lines = [json_text({"error": {"message": "no", "code": 400}}, rng)]
    data = end.join(lines) + end
    return data if rng.random() < 0.85 else rng.choice((mutate_text, mutate_bytes))(data, rng)


def _json(value: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        return json.dumps({"error": mutate_json({"message": "no", "code": 1}, rng)}, ensure_ascii=True).encode()
    return json_text(mutate_json(value, rng) if rng.random() < 0.8 else value, rng)


def _damaged_page(page: bytes, rng: random.Random) -> bytes:
    values = (b"NaN", b"-1", b"+Inf", b"1e300", b"x", b"", b"1e999", b"0x10", b"9" * 400)
    labels = (b'position="99999999999"', b'position="-1"', b'position="x"', b"position", b"", b'position="\xc2\xb2"')
    match rng.randrange(4):
        case 0:
            return page.replace(rng.choice((b"21.0", b"4.0", b"3.0")), rng.choice(values))
        case 1:
            return page.replace(rng.choice((b'position="0"', b'position="1"')), rng.choice(labels))
        case 2:
            return mutate_text(page, rng)
    return mutate_bytes(page, rng)


def _plain(body: bytes) -> Script:
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return Script([(head.encode() + body, 0.0)])


def _script(body: bytes, rng: random.Random) -> Script:
    """Return an HTTP answer with this body, its framing damaged in 40 % of cases."""
    if rng.random() < 0.6:
        return _paced(b"HTTP/1.1 200 OK\r\nConnection: close\r\n", body, rng)
    status = b"HTTP/1.1 200 OK"
    headers = b"Connection: close\r\n"
    endless = False
    match rng.randrange(12):
        case 0:
            codes = (b"302 Found", b"404 Not Found", b"503 Busy", b"204 None", b"101 Switch", b"999 X", b"100 Continue")
            status = b"HTTP/1.1 " + rng.choice(codes)
            headers += rng.choice(
                (b"", b"Location: /v1/models\r\n", b"Location: http://[::1\r\n", b"Retry-After: 1e9\r\n")
            )
        case 1:
            status = rng.choice(
                (b"HTTP/1.1 abc", b"HTTP/9.9 200 OK", b"SSH-2.0-OpenSSH_9", b"", b"\x00\x01\x02", b"{}")
            )
        case 2:
            headers += f"Content-Length: {rng.choice((0, 1, len(body) + 100, 10**30, -5))}\r\n".encode()
        case 3:
            headers += b"Content-Length: x\r\n"
        case 4:
            headers += b"Transfer-Encoding: chunked\r\n"  # and the body is none
        case 5:
            headers += b"Content-Encoding: " + rng.choice((b"gzip", b"br", b"gzip, gzip", b"deflate", b"x")) + b"\r\n"
            body = gzip.compress(b" " * 50_000_000, 9) if rng.random() < 0.5 else gzip.compress(body)
        case 6:
            headers += b"X: " + b"a" * rng.choice((1000, 200_000)) + b"\r\n"
        case 7:
            headers += rng.choice((b"no colon\r\n", b": empty\r\n", b"X: \xff\xfe\x00\r\n", b"Set-Cookie: \x1b\r\n"))
        case 8:
            body, endless = b"", True
        case 9:
            return Script([(b"HTTP/1.1 200 OK\r\n", 3 * WAIT_S)])
        case 10:
            return Script([(bytes([byte]), 0.01) for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100])
    script = _paced(status + b"\r\n" + headers, body, rng)
    if endless:
        script.append((rng.choice((b": ping\n", b"data: {}\n\n", b"a" * 65536, b"\n", b"[" * 1000)), 0.0))
        script.endless = True
    return script


def _paced(head: bytes, body: bytes, rng: random.Random) -> Script:
    data = head + b"\r\n" + body
    match rng.randrange(5):
        case 0:
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(5))
            ends = [0, *cuts, len(data)]
            return Script((data[begin:end], 0.002) for begin, end in pairwise(ends))
        case 1 if len(body) < 3000:
            return Script([(head + b"\r\n", 0.0), *((body[at : at + 7], 0.0005) for at in range(0, len(body), 7))])
        case 2 if rng.random() < 0.2:
            return Script([(data[: len(data) // 2], 3 * WAIT_S), (data[len(data) // 2 :], 0.0)])
    return Script([(data, 0.0)])


_EVENTS = (
    b"".join(
        b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in (
            {"choices": [{"index": 0, "text": "a", "token_ids": [8, 9, 10, 11], "finish_reason": "length"}]},
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        )
    )
    + b"data: [DONE]\n\n"
)


def probe(rng: random.Random, directory: Path) -> None:
    """Look at a hostile server as `outrider tune --endpoint` does: its health, models, counters and a few tokens."""
    models = {"object": "list", "data": [{"id": "m", "owned_by": rng.choice(("vllm", "sglang", "llamacpp", "x"))}]}
    scripts = [_plain(b"ok"), _plain(json.dumps(models).encode()), _plain(METRICS.encode()), _plain(_EVENTS)]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(scripts))
        page = METRICS.encode()
        body = (_json({"status": "ok"}, rng), _json(models, rng), _damaged_page(page, rng), _events(rng))[at]
        scripts[at] = _script(body, rng)
    hostile = Hostile(scripts)
    reader = Reader(tokenizer=load_tokenizer(intact()), vocab_size=VOCAB_SIZE, eos_ids=(2,), warm_up=PROMPT)
    try:
        with patch.multiple("outrider.tuning.endpoint.probe", TIMEOUT_S=WAIT_S, HEALTH_S=WAIT_S):
            found = probed(endpoint_of(f"http://127.0.0.1:{hostile.port}/v1"), reader)
    finally:
        hostile.close()
    found.model.encode()
    assert found.engine in ("vllm", "sglang", "llama.cpp", "outrider", None)
