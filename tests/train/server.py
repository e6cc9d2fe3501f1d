"""A small OpenAI-compatible server for tests: it writes what a function says, and can be made to fail."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any]], tuple[int, Any]]
"""From a request's body to a status and an answer."""


class FakeServer:
    """`bodies` keeps every completion request, `headers` their headers."""

    def __init__(self, script: Script, models: tuple[str, ...] | bytes) -> None:
        self.script, self.models = script, models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serving(script: Script, models: tuple[str, ...] | bytes = ("tiny",)) -> Iterator[FakeServer]:
    """Serve; bytes in place of names are the list of models as it goes out."""
    fake = FakeServer(script, models)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names = fake.models
            self.answer(200, names if isinstance(names, bytes) else {"data": [{"id": name} for name in names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(body)
            fake.headers.append(dict(self.headers))
            self.answer(*fake.script(body))

        def answer(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
