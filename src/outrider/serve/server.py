"""Running the application with uvicorn, until a signal.

The first SIGTERM or SIGINT begins a graceful stop: new requests get status 503, running ones may finish within the
grace time, then the process ends with status 0. A second signal ends them at once.

Example: `serve(service, config, key=None, started=print)` prints the address, say `http://127.0.0.1:8000`.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import uvicorn

from outrider.errors import ConfigError
from outrider.serve.app import create_app
from outrider.serve.config import ServeConfig
from outrider.serve.guard import Guard
from outrider.serve.service import Service

__all__ = ["run", "serve"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 512
CLOSING_S = 5
"""Seconds for the last bytes of finished answers."""


def serve(service: Service, config: ServeConfig, key: str | None, started: Callable[[str], None]) -> None:
    """Serve until a signal.

    Args:
        started: function that is told the address, once requests are taken.

    Raises:
        ConfigError: if the address cannot be used.
    """
    asyncio.run(_until_signal(service, config, key, started))


async def _until_signal(service: Service, config: ServeConfig, key: str | None, started: Callable[[str], None]) -> None:
    loop, stops = asyncio.get_running_loop(), asyncio.Queue[None]()
    for number in SIGNALS:
        loop.add_signal_handler(number, stops.put_nowait, None)
    try:
        await run(service, config, key, started, stops)
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def run(
    service: Service,
    config: ServeConfig,
    key: str | None,
    started: Callable[[str], None],
    stops: "asyncio.Queue[None]",
) -> None:
    """Serve until `stops` has an item; a second one ends the grace time.

    Raises:
        ConfigError: if the address cannot be used.
    """
    settings = uvicorn.Config(
        Guard(create_app(service), config, key),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=CLOSING_S,
    )
    with _listening(config) as listener:
        server = _Server(settings)
        service.worker.start(asyncio.get_running_loop())
        running = asyncio.create_task(server.serve([listener]))
        stopping = asyncio.create_task(_stop(service, server, stops, config.grace_s))
        try:
            while not server.started and not running.done():
                await asyncio.sleep(0.005)
            if server.started:
                started(_url(listener))
            await running
        finally:
            stopping.cancel()
            service.close()


async def _stop(service: Service, server: uvicorn.Server, stops: "asyncio.Queue[None]", grace_s: float) -> None:
    """Wait for a signal, let running requests finish, and end the server."""
    await stops.get()
    draining = asyncio.create_task(service.worker.drain(grace_s))
    again = asyncio.create_task(stops.get())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        server.force_exit = True
    server.should_exit = True


@final
class _Server(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listening(config: ServeConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{config.host}:{config.port} cannot be listened on ({reason}); choose another --port or --host"
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
