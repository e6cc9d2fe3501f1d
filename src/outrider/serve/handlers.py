"""The handlers of completions: whole answers and streams of server-sent events.

A client that leaves ends its request: a stream is cancelled when its connection closes, and a whole answer is given up
when the connection closes before it is ready. Both paths end in `Exchange.close`.

Example of a stream: `data: {"choices": [...]}`, an empty line, ..., `data: [DONE]`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final, final

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from outrider.serve.exchange import Exchange
from outrider.serve.failures import RefusalError
from outrider.serve.forms import ChatForm, CompletionForm, Form, Reply
from outrider.serve.schema import ChatRequest, CompletionRequest
from outrider.serve.service import Asking, Service

__all__ = ["complete"]

CLIENT_LEFT: Final = 499
"""Status in logs; nobody receives it."""


async def complete(service: Service, request: Request, body: ChatRequest | CompletionRequest) -> Response:
    """Answer a request for completions.

    Raises:
        RefusalError: if it cannot be served.
    """
    form = ChatForm() if isinstance(body, ChatRequest) else CompletionForm()
    asking = await service.ask(body)
    if body.stream:
        return _EventStream(service, asking, form)
    left = asyncio.create_task(_until_left(request))
    answer = asyncio.create_task(_whole(service, asking, form))
    try:
        await asyncio.wait((left, answer), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(await answer) if answer.done() else Response(status_code=CLIENT_LEFT)
    finally:
        asking.exchange.close()
        left.cancel()
        answer.cancel()


async def _until_left(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(service: Service, asking: Asking, form: Form) -> dict[str, Any]:
    async for choice in service.choices(asking):
        del choice
    return form.whole(asking.reply)


@final
class _EventStream(StreamingResponse):
    """A stream that closes its exchange however it ends, also if it never began."""

    def __init__(self, service: Service, asking: Asking, form: Form) -> None:
        super().__init__(
            _events(service, asking, form),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._exchange: Exchange = asking.exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def _events(service: Service, asking: Asking, form: Form) -> AsyncIterator[bytes]:
    reply: Reply = asking.reply
    try:
        for chunk in form.opening(reply):
            yield _event(chunk)
        async for choice in service.choices(asking):
            if (found := form.chunk(reply, choice)) is not None:
                yield _event(found)
        for chunk in form.closing(reply):
            yield _event(chunk)
    except RefusalError as refusal:
        yield _event(refusal.body)
    yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"
