"""A server on a real socket, in a thread of the test's process; and what tests ask of it."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx

from outrider.serve.config import ServeConfig
from outrider.serve.opening import opened
from outrider.serve.server import run
from outrider.serve.service import Service
from outrider.target import Target

METHOD = "ngram:num_nodes=4"


class Served(NamedTuple):
    """A server that runs, a client of it, and its parts."""

    url: str
    http: httpx.Client
    service: Service
    stop: Callable[[], None]
    """Asks it to stop, as a signal does."""
    thread: threading.Thread


Serving = Callable[..., Served]


@contextmanager
def served(target: Target, key: str | None = None, **settings: object) -> Iterator[Served]:
    config = replace(ServeConfig(target="tiny", method=METHOD, port=0, max_batch=4, max_len=256), **settings)
    service = opened(target, config)
    begun, address = threading.Event(), list[str]()
    loop, stops = list[asyncio.AbstractEventLoop](), list[asyncio.Queue[None]]()

    async def main() -> None:
        loop.append(asyncio.get_running_loop())
        stops.append(asyncio.Queue())
        await run(service, config, key, lambda url: (address.append(url), begun.set()), stops[0])

    def stop() -> None:
        loop[0].call_soon_threadsafe(stops[0].put_nowait, None)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert begun.wait(60)
    try:
        with httpx.Client(base_url=address[0], timeout=60, trust_env=False) as http:
            yield Served(address[0], http, service, stop, thread)
    finally:
        if thread.is_alive():
            stop()
            stop()
        thread.join(60)
        assert not thread.is_alive()


def posted(server: Served, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that is served."""
    response = server.http.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def chunks(server: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    with server.http.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
