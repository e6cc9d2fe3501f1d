"""Load on a server: concurrent requests, some of which are cancelled or whose connection breaks.

    python benchmarks/serve_load.py [TARGET] [--num-requests 200] [--concurrency 16] [--method auto] [--rounds 2]

A server starts on a free port. Each request is whole, a stream, a stream that is left after some chunks, or a
connection that is reset in its middle. Every whole text must be that of plain decoding by the library, and every part
of a text its beginning. In the end nothing may be running or waiting, and after the first round the server's memory
must stay where it is. Without a target a tiny model is written first.

The last line of stdout is JSON; the exit status is 1 if anything is lost.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

KINDS = ("whole", "stream", "left", "reset")
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing the socket sends a reset."""


def cases(num: int, seed: int) -> list[dict[str, Any]]:
    """Draw bodies; one in three is sampled."""
    draw = random.Random(seed)
    words = ("abc", "xyz", "one two", "1 2 3", "again", "the end")
    return [
        {
            "prompt": " ".join(draw.choices(words, k=draw.randint(1, 12))),
            "max_tokens": draw.randint(1, 60),
            "temperature": draw.choice((0, 0, 0.8)),
            "seed": draw.randrange(2**31),
        }
        for _ in range(num)
    ]


def expected_texts(target: str, dtype: str, bodies: list[dict[str, Any]]) -> list[str]:
    """Return the texts of plain decoding."""
    import outrider
    from outrider.requests.chat import tokenize

    model = outrider.load_target(target, dtype=dtype)
    engine = outrider.Engine(model, outrider.load_proposer("none", model), max_batch=8, max_len=512)
    prompts = [tokenize(model.tokenizer, body["prompt"]) for body in bodies]
    names = ("max_tokens", "temperature", "seed")
    params = [outrider.SamplingParams(**{name: body[name] for name in names}) for body in bodies]
    return [answer.text for answer in engine.generate(prompts, params)]


async def ask(http: httpx.AsyncClient, url: str, body: dict[str, Any], kind: str, draw: random.Random) -> str:
    """Send one request; return its text, as far as it was read."""
    if kind == "whole":
        while (response := await http.post("/v1/completions", json=body)).status_code == 503:
            await asyncio.sleep(float(response.headers["retry-after"]))
        return str(response.raise_for_status().json()["choices"][0]["text"])
    if kind == "reset":
        return await asyncio.to_thread(broken, url, body, draw.random() * 0.2)
    parts: list[str] = []
    most = draw.randint(1, 8) if kind == "left" else None
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        async for line in response.raise_for_status().aiter_lines():
            if line.startswith("data: {"):
                parts.append(json.loads(line[6:])["choices"][0]["text"])
            if most is not None and len(parts) >= most:
                break
    return "".join(parts)


def broken(url: str, body: dict[str, Any], wait_s: float) -> str:
    """Send a request, and reset the connection a little later."""
    import time

    address = httpx.URL(url)
    data = json.dumps(body | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        time.sleep(wait_s)
    return ""


async def load(url: str, bodies: list[dict[str, Any]], texts: list[str], concurrency: int, seed: int) -> Counter[str]:
    """Send all requests; return how many of each kind came back right, or not."""
    draw, free, found = random.Random(seed), asyncio.Semaphore(concurrency), Counter[str]()

    async def one(http: httpx.AsyncClient, body: dict[str, Any], text: str, kind: str) -> None:
        async with free:
            try:
                got = await ask(http, url, body, kind, draw)
            except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
                print(f"lost: {kind}: {type(error).__name__}: {error}", file=sys.stderr)
                found[f"lost {kind}"] += 1
                return
        is_right = got == text if kind in ("whole", "stream") else text.startswith(got)
        if not is_right:
            print(f"wrong: {kind}: {got!r} is not {text!r}", file=sys.stderr)
        found[kind if is_right else f"wrong {kind}"] += 1

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        kinds = draw.choices(KINDS, (4, 3, 2, 1), k=len(bodies))
        await asyncio.gather(*(one(http, *given) for given in zip(bodies, texts, kinds, strict=True)))
        for _ in range(600):
            page = (await http.get("/metrics")).text
            left = sum(map(float, re.findall(r"^vllm:num_requests_\w+\{.*\} (\S+)$", page, re.MULTILINE)))
            if not left:
                break
            await asyncio.sleep(0.05)
        found["open"] = int(left)
    return found


def rounds(options: argparse.Namespace, target: str) -> dict[str, Any]:
    """Start a server, load it, and stop it."""
    dtype = "float64" if options.target is None else "bfloat16"
    bodies = cases(options.num_requests, options.seed)
    texts = expected_texts(target, dtype, bodies)
    more = ("--max-len", "512", "--method", options.method, "--dtype", dtype, "--port", "0")
    command = [sys.executable, "-m", "outrider", "serve", target, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        [url] = re.findall(r"http://[\d.]+:\d+", line)[:1]
        counts, memory = [], []
        for number in range(options.rounds):
            counts.append(asyncio.run(load(url, bodies, texts, options.concurrency, options.seed + number)))
            memory.append(psutil.Process(server.pid).memory_info().rss / 2**20)
            print(f"round {number + 1}: {dict(counts[-1])}, {memory[-1]:.1f} MiB", file=sys.stderr)
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    return {
        "requests": options.num_requests * options.rounds,
        "counts": dict(sum(counts, Counter[str]())),
        "rss_mib": [round(one, 1) for one in memory],
        "exit_status": status,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--method", default="ngram")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        target = options.target
        if target is None:
            from outrider.testing.directory import write_tiny_model

            target = str(write_tiny_model(Path(home) / "tiny"))
        report = rounds(options, target)
    print(json.dumps(report))
    bad = [name for name, count in report["counts"].items() if count and name not in KINDS]
    return int(bool(bad) or report["exit_status"] != 0)


if __name__ == "__main__":
    sys.exit(main())
