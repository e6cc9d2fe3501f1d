"""A small server with the page and scripted answers: the contract between page and server, and hostile output.

It answers as `outrider serve` does, without a model: each word of a prompt may name a script ("hostile", "long",
"slow", "refused", "locked", "tree"). Every answer is the same text whichever method is asked for.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

SELF = ("script-src", "style-src", "connect-src", "img-src")
POLICY = "default-src 'none'; frame-ancestors 'none'; " + "; ".join(f"{kind} 'self'" for kind in SELF)
KINDS = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
FOLDERS = {
    "page": resources.files("outrider.serve") / "page",
    "ribbon": resources.files("outrider.traces") / "ribbon",
}
FACTS = {
    "target": "tiny-llama",
    "method": "hybrid",
    "methods": ["hybrid", "none"],
    "num_nodes": 6,
    "budget": "auto",
    "max_len": 2048,
}
WORDS = (
    "Sunlight| is| scattered| by| the| molecules| of| the| air|.| Blue| light| has| a| short| wave|length|,| so| it| is"
    "| scattered| more| than| red| light| is|.\n|\n|At| noon| the| sky| is| blue|;| in| the| evening| the| light"
    "| travels| further|,| and| what| remains| is| red|."
)
TEXT = WORDS.split("|")
HOSTILE = [
    "<script>window.hit = 1</script>",
    '<img src="x" onerror="window.hit = 2">',
    "<style>body { display: none }</style>",
    "</span></div><iframe srcdoc='<script>top.hit = 3</script>'></iframe>",
    "javascript:window.hit=4",
    "\u202eright to left\u2066 isolated",
    "\x1b[31mred\x1b[0m\x00\x07\r\x7f\x9b",
    "\ud800 half \udfff",
    "&lt;b&gt;",
    "{{constructor.constructor('window.hit=5')()}}",
    "\u200b\u200f\ufeff\u2028\u2029",
    "",
]
ACCEPTANCE = [4, 0, 2, 1, 3, 0, 5, 2]
"""Tokens that are accepted in each step, over and over."""


def plain_steps(texts: list[str], plain_ms: float = 10.0) -> list[dict[str, Any]]:
    """Return one step per token, each of `plain_ms`."""
    times = {"propose": 0.0, "verify": plain_ms - 1, "accept": 0.5, "commit": 0.25, "host": 0.25, "total": plain_ms}
    return [step(number, [token(text, number, "plain")], None, times) for number, text in enumerate(texts)]


def drafted_steps(texts: list[str], tree: bool = False) -> list[dict[str, Any]]:
    """Return steps that emit the same tokens from drafts of which some nodes are accepted."""
    steps: list[dict[str, Any]] = []
    place = 0
    while place < len(texts):
        accepted = min(ACCEPTANCE[len(steps) % len(ACCEPTANCE)], len(texts) - place - 1)
        guessed = [*texts[place : place + accepted], *[f" wrong{number}" for number in range(2)]]
        parents = list(range(-1, len(guessed) - 1))
        if tree:
            guessed += [" other", " third", " below"]
            parents += [-1, -1, len(guessed) - 3]
        emitted = texts[place : place + accepted + 1]
        tokens = [token(text, place + i, "draft" if i < accepted else "bonus") for i, text in enumerate(emitted)]
        draft = {
            "ids": list(range(len(guessed))),
            "texts": guessed,
            "parents": parents,
            "accepted": list(range(accepted)),
            "probs": [None if tree and node == 1 else round(0.9 / (1 + node), 4) for node in range(len(guessed))],
        }
        times = {
            "propose": 1.0,
            "verify": 11.0 + accepted,
            "accept": 0.5,
            "commit": 0.5,
            "host": 1.0,
            "total": 14.0 + accepted,
        }
        steps.append(step(len(steps), tokens, draft, times))
        place += accepted + 1
    return steps


def token(text: str, number: int, by: str) -> dict[str, Any]:
    return {"id": number, "text": text, "by": by}


def step(
    number: int, tokens: list[dict[str, Any]], draft: dict[str, Any] | None, times: dict[str, float]
) -> dict[str, Any]:
    nothing = {"ids": [], "texts": [], "parents": [], "accepted": [], "probs": []}
    return {"step": number, "tokens": tokens, "draft": draft or nothing, "ms": times}


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of an answer to a request."""
    words = request["messages"][-1]["content"].split()
    texts = HOSTILE if "hostile" in words else ["x" * 100_000, " end"] if "long" in words else TEXT
    if request.get("outrider_method") == "none":
        return plain_steps([*texts[:-1], " otherwise"] if "differs" in words else texts)
    return drafted_steps(texts, tree="tree" in words)


class Handler(BaseHTTPRequestHandler):
    """One request; the bodies of completions are kept in the server's `asked`."""

    protocol_version = "HTTP/1.0"
    server: "Server"

    def log_message(self, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        if self.path == "/outrider/info":
            return self._send(200, "application/json", json.dumps(FACTS).encode())
        folder, name = ("page", "index.html") if self.path == "/" else self.path[1:].split("/", 1)
        file = FOLDERS.get(folder, FOLDERS["page"]) / name
        if folder not in FOLDERS or "/" in name or not file.is_file():
            return self._send(404, "text/plain", b"no such file")
        return self._send(200, KINDS[name.rsplit(".", 1)[1]], file.read_bytes())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        words = request["messages"][-1]["content"].split()
        if "refused" in words:
            error = {"error": {"message": "<b>the queue is full</b>", "type": "overloaded", "code": 503}}
            return self._send(503, "application/json", json.dumps(error).encode(), {"Retry-After": "2"})
        self._head(200, "text/event-stream", {})
        try:
            for record in answer(request):
                content = "".join(item["text"] for item in record["tokens"])
                choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
                self._event({"choices": [choice], "outrider": record})
                if "slow" in words:
                    time.sleep(0.05)
            last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 12}}
            self._event(last)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left += 1
        return None

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Security-Policy": POLICY, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@dataclass
class Server(ThreadingHTTPServer):
    """The server; `asked` are the bodies of the completions, `left` counts clients that went away."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    daemon_threads = True

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


@contextmanager
def running() -> Iterator[Server]:
    """Serve on a free port of this machine while the block runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
