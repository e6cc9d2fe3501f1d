"""A program that looks like llama.cpp's server from outside, for tests of what drives one; standard library alone.

    python fake_llama.py --model FILE --host HOST --port PORT [--metrics] [--spec-type KIND] [...]

It answers `/health`, `/v1/models`, `/metrics` and `/completion`. Its text is a function of the prompt alone, in tokens
that byte-level vocabularies have. With a kind of speculation it writes the same text, drafts four tokens for every
four that it writes and has two of them accepted.

`FAKE_LLAMA_FAULT` chooses a fault: `start` ends it while starting, `refuse` answers with status 500, `short` leaves a
token out of its answers. `FAKE_LLAMA_PIDS` names a file to which it appends its process id and its flags.

`write_programs` makes a directory that `OUTRIDER_LLAMA` can point to, with this server and a converter that writes its
own command line. Example: an answer of 9 tokens has 2 x 4 drafted tokens, of which 2 x 2 are accepted.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

__all__ = ["write_programs"]

FAULT: Final = os.environ.get("FAKE_LLAMA_FAULT", "")
END: Final = 257
"""The token that ends a text, in the vocabulary of `outrider.testing.directory`."""
DRAFTED, ACCEPTED = 4, 2
CONVERTER: Final = """
import sys
open(sys.argv[sys.argv.index("--outfile") + 1], "w").write(" ".join(sys.argv[1:]))
"""


class Fake:
    """The state of a server: its flags, and its counters."""

    def __init__(self, flags: dict[str, str], metrics: bool) -> None:
        self.model = flags["model"]
        self.speculates = "spec-type" in flags
        self.metrics = metrics
        self.lock = threading.Lock()
        self.num_written = self.num_drafts = 0

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request, and count it."""
        prompt, limit = asked["prompt"], asked["n_predict"]
        seed = sum((place + 1) * token for place, token in enumerate(prompt))
        tokens = [(seed + 31 * place) % 200 + 10 for place in range(limit)]
        end = 7 + seed % 16
        stops = not asked["ignore_eos"] and limit > end
        tokens = [*tokens[:end], END] if stops else tokens
        drafts = len(tokens) // 4 if self.speculates else 0
        with self.lock:
            self.num_written += len(tokens)
            self.num_drafts += drafts
        told = {"draft_n": drafts * DRAFTED, "draft_n_accepted": drafts * ACCEPTED} if drafts else {}
        return {
            "tokens": tokens[1:] if FAULT == "short" else tokens,
            "tokens_evaluated": len(prompt),
            "stop_type": "eos" if stops else "limit",
            "timings": {"predicted_n": len(tokens), "predicted_ms": 0.5, **told},
        }

    def page(self) -> str:
        """Return the Prometheus page."""
        counts = {
            "tokens_predicted_total": self.num_written,
            "spec_decode_num_drafts_total": self.num_drafts,
            "spec_decode_num_draft_tokens_total": self.num_drafts * DRAFTED,
            "spec_decode_num_accepted_tokens_total": self.num_drafts * ACCEPTED,
        }
        return "".join(f"llamacpp:{name} {count}\n" for name, count in counts.items())


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        """Ignore requests: the log is for errors."""

    def do_GET(self) -> None:
        """Answer `/health`, `/metrics`, `/v1/models`."""
        models = {"object": "list", "data": [{"id": self.fake.model, "owned_by": "llamacpp"}]}
        pages = {"/health": '{"status":"ok"}', "/v1/models": json.dumps(models)}
        if self.fake.metrics:
            pages["/metrics"] = self.fake.page()
        self._whole(200 if self.path in pages else 501, pages.get(self.path, "no such page"))

    def do_POST(self) -> None:
        """Answer `/completion`."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "refuse":
            self._whole(500, json.dumps({"error": {"message": "the context is full", "code": 500}}))
        else:
            self._whole(200, json.dumps(self.fake.answer(asked)))

    def _whole(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def write_programs(home: Path) -> Path:
    """Write a directory that looks like a build of llama.cpp, whose server is this file; return it."""
    programs, scripts = home / "build" / "bin", home / "source" / "vendor" / "llama.cpp"
    for directory in (programs, scripts):
        directory.mkdir(parents=True)
    server = programs / "llama-server"
    server.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "version: 0 (fake)" >&2; exit; fi\n'
        f'exec "{sys.executable}" -S "{__file__}" "$@"\n'
    )
    server.chmod(0o755)
    (scripts / "convert_hf_to_gguf.py").write_text(CONVERTER)
    return home


def main() -> None:
    """Serve until the process ends."""
    flags = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    own = {name.removeprefix("--"): value for name, value in flags.items() if name.startswith("--")}
    if pids := os.environ.get("FAKE_LLAMA_PIDS"):
        with Path(pids).open("a") as file:
            file.write(f"{os.getpid()} {os.getpid()} {json.dumps(sys.argv[1:])}\n")
    if FAULT == "start":
        sys.exit("error: unknown model architecture")
    Handler.fake = Fake(own, "--metrics" in sys.argv)
    server = ThreadingHTTPServer((own["host"], int(own["port"])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
