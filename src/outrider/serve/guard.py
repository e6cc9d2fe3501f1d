"""The checks of every request: its body, the key, the name of the host; and the headers of every answer.

    host   a server for this machine alone, without a key, answers only to its own names: a page of the web whose name
           is made to point here (DNS rebinding) gets status 403
    type   bodies for `/v1` must be `application/json`, else status 415
    key    `/v1` and `/outrider` need `Authorization: Bearer KEY`, compared in constant time
    body   counted as it arrives, also where it has no length; beyond the limit status 413

Pages of other origins cannot read answers: no CORS headers are sent, and bodies must be `application/json`, which a
browser sends to another origin only after a preflight request that fails here.

Example: with a key set, `curl http://127.0.0.1:8000/v1/models` gets status 401.
"""

import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, final

from h11 import LocalProtocolError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.serve.config import LOOPBACK, ServeConfig
from outrider.serve.failures import RefusalError

__all__ = ["Guard"]

GUARDED: Final = ("/v1", "/outrider")
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class _TooLargeError(Exception):
    """Raised inside the application when a body passes the limit."""


@final
class Guard:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, config: ServeConfig, key: str | None) -> None:
        self._app = app
        self._config = config
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _Patient(send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        is_large, size = False, 0

        async def counted() -> Message:
            nonlocal size, is_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._config.max_body_bytes:
                is_large = True
                raise _TooLargeError
            return message

        async def marked(message: Message) -> None:
            if is_large:  # whatever the application makes of it
                return
            await _send_marked(message, send)

        if refusal is None:
            with suppress(_TooLargeError):
                await self._app(scope, counted, marked)
        if is_large:
            refusal = self._too_large()
        if refusal is not None:
            await _answer(refusal, send)
        while send.is_gone and (await receive())["type"] != "http.disconnect":
            pass  # an answer may stay unfinished once the connection is closed, which it soon is

    def _refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RefusalError | None:
        is_open = self._config.is_local and self._key is None
        if is_open and _host(headers.get(b"host", b"").decode("latin-1")) not in LOOPBACK:
            return RefusalError("without a key this server answers to localhost only; set a key, or --host", 403)
        if self._key is not None and path.startswith(GUARDED):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._key) or scheme.lower() != b"bearer":
                return RefusalError("the API key is missing or wrong; send it as Authorization: Bearer KEY", 401)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and path.startswith("/v1") and kind != b"application/json":
            return RefusalError("send the body as Content-Type: application/json", 415)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self._config.max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> RefusalError:
        return RefusalError(f"the body has more than {self._config.max_body_bytes} bytes; send less", 413)


def _host(header: str) -> str:
    """Return the name in a Host header, without its port.

    >>> _host("localhost:8000"), _host("[::1]:8000")
    ('localhost', '::1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


@final
class _Patient:
    """A `send` for requests that break off, or break their framing, while they are answered: the rest is dropped."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_gone = False

    async def __call__(self, message: Message) -> None:
        if not self.is_gone:
            try:
                await self._send(message)
            except LocalProtocolError:
                self.is_gone = True


async def _send_marked(message: Message, send: Send) -> None:
    """Send a message, with our headers if it begins an answer."""
    if message["type"] == "http.response.start":
        more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        message = {**message, "headers": [*message.get("headers", []), *more]}
    await send(message)


async def _answer(refusal: RefusalError, send: Send) -> None:
    body = json.dumps(refusal.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if refusal.status == 413 else []
    headers += [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
    await _send_marked({"type": "http.response.start", "status": refusal.status, "headers": headers}, send)
    await send({"type": "http.response.body", "body": body})
