"""HTTP to an OpenAI-compatible server, bounded in bytes and in time.

A faulty server may send an endless body, one byte a minute, a decompression bomb or a redirect. So bodies and lines
have a maximum size, compressed answers and redirects are refused, and one time limit covers headers and body: httpx
restarts its own time-outs with every byte.

Every fault raises an `EndpointError` that begins with the address. `PassingError` is worth a retry; `RefusedError` has
the status.

Example: `await ServerHttp(timeout_s=5).json("GET", "http://localhost:8000/v1/models")`.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar, final

import httpx

from outrider.errors import EndpointError, on_one_line
from outrider.http.answers import AnswerError, parsed, said_by

__all__ = ["PassingError", "RefusedError", "ServerHttp", "gathered"]

T = TypeVar("T")

LONGEST_CONNECT_S = 10.0
LARGEST_BODY = LONGEST_LINE = 16 * 2**20
LARGEST_REFUSAL = 2**16
MOST_IDLE_BYTES = 32 * 2**20
"""Most bytes of a stream without a new token."""
CUT = ("closed", "disconnected", "incomplete", "no response")
"""Words in h11's messages for a connection that ends too early; its other protocol errors mean invalid HTTP."""
LINE_ENDS = re.compile(rb"[\r\n]")


class PassingError(EndpointError):
    """The server cannot be reached, or stopped sending."""


class RefusedError(EndpointError):
    """The server answered with an error status.

    status   HTTP status
    wait_s   seconds until a retry is welcome (Retry-After); None if not given
    """

    def __init__(self, sentence: str, status: int, wait_s: float | None) -> None:
        super().__init__(sentence)
        self.status = status
        self.wait_s = wait_s

    def with_remedy(self, remedy: str) -> "RefusedError":
        """Return the same refusal with a remedy appended."""
        return RefusedError(f"{self}; {remedy}", self.status, self.wait_s)


@final
class ServerHttp:
    """A connection pool, which sends the key in `OPENAI_API_KEY`.

    Args:
        timeout_s: most seconds for a whole answer, or between two tokens of a stream.
        trust_env: use the proxies that the environment names.
    """

    def __init__(self, *, timeout_s: float, trust_env: bool = False) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        self._timeout_s = timeout_s
        with _telling("a client with the OPENAI_API_KEY and the proxies of the environment", timeout_s):
            self._http = httpx.AsyncClient(
                timeout=httpx.Timeout(timeout_s, connect=min(LONGEST_CONNECT_S, timeout_s), pool=None),
                headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
                # the caller bounds the number of requests
                limits=httpx.Limits(max_connections=None),
                trust_env=trust_env,
            )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def json(
        self, method: str, address: str, body: Mapping[str, Any] | None, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Send a request and return `read` of the JSON object in the answer.

        Raises:
            EndpointError: for any other answer.
        """
        with _telling(address, self._timeout_s):
            async with asyncio.timeout(self._timeout_s), self._answer(method, address, body) as response:
                return read(parsed(await _body(response, LARGEST_BODY)))

    async def text(self, address: str) -> str:
        """Return the text at an address.

        Raises:
            EndpointError: if there is none.
        """
        with _telling(address, self._timeout_s):
            async with asyncio.timeout(self._timeout_s), self._answer("GET", address, None) as response:
                return (await _body(response, LARGEST_BODY)).decode(errors="replace")

    async def events(self, address: str, body: Mapping[str, Any], take: Callable[[bytes], bool | None]) -> None:
        """Send a request and pass the data of each server-sent event to `take`.

        `take` returns whether the event held anything new, and None at the end of the stream.

        Raises:
            EndpointError: if the stream ends early, stops sending, or is not a stream.
        """
        with _telling(address, self._timeout_s):
            async with (
                asyncio.timeout(self._timeout_s) as clock,
                self._answer("POST", address, body) as response,
                aclosing(_lines(response)) as lines,
            ):
                idle, first = 0, b""
                async for line in lines:
                    idle, first = idle + len(line) + 1, first or line
                    if idle > MOST_IDLE_BYTES:
                        raise AnswerError(f"sent {MOST_IDLE_BYTES >> 20} MiB without a token")
                    news = take(line[5:].strip()) if line.startswith(b"data:") else False
                    if news is None:
                        return
                    if news:
                        idle = 0
                        # only new tokens extend the time limit, not pings
                        clock.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                raise AnswerError(_no_stream(first) or "cut its answer off before the end")

    @asynccontextmanager
    async def _answer(self, method: str, address: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx.Response]:
        async with self._http.stream(method, address, json=body) as response:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.strip().lower() not in ("identity", ""):
                raise AnswerError(
                    f"answers in the encoding '{on_one_line(encoding)}', which was not requested; turn it off"
                )
            if response.status_code != 200:
                words = said_by(await _body(response, LARGEST_REFUSAL, cut=True))
                place = response.headers.get("location")
                reason = f"it leads to {on_one_line(place)}" if place else words
                sentence = f"refuses with status {response.status_code} ({reason})"
                wait_s = _wait_s(response.headers.get("retry-after", ""))
                raise RefusedError(f"{address} {sentence}", response.status_code, wait_s)
            yield response


def _no_stream(first: bytes) -> str | None:
    """Return the fault of a body whose first line is no server-sent event; None otherwise."""
    fields = (b"data", b"event", b"id", b"retry", b"")
    if not first or first.partition(b":")[0].strip() in fields:
        return None
    return f"did not answer as an OpenAI-compatible server: it sent no events but '{said_by(first)}'"


async def _body(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    """Return a body; beyond `most` bytes, cut it off or raise an error."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > most:
            if cut:
                break
            raise AnswerError(f"answers with more than {most >> 20} MiB")
    return bytes(data[:most])


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a body as they arrive; only CR and LF end a line."""
    held: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        *whole, rest = LINE_ENDS.split(chunk)
        for line in whole:
            yield b"".join((*held, line))
            held, size = [], 0
        # chunks end anywhere, also inside a line
        held.append(rest)
        size += len(rest)
        if size > LONGEST_LINE:
            raise AnswerError(f"sends a line of more than {LONGEST_LINE >> 20} MiB")
    yield b"".join(held)


@contextmanager
def _telling(address: str, timeout_s: float) -> Iterator[None]:
    """Turn every error of a request into one sentence."""
    try:
        yield
    except AnswerError as error:
        raise EndpointError(f"{address} {error}") from error
    except (httpx.ReadTimeout, TimeoutError) as error:
        raise PassingError(f"{address} sent nothing new for {timeout_s:g} s") from error
    except (httpx.RemoteProtocolError, httpx.ReadError) as error:
        is_cut = isinstance(error, httpx.ReadError) or any(word in str(error) for word in CUT)
        what = "cut its answer off before the end" if is_cut else "did not answer in HTTP"
        raise PassingError(f"{address} {what} ({on_one_line(str(error))})") from error
    except (httpx.HTTPError, OSError) as error:
        reason = on_one_line(str(error)) or type(error).__name__
        raise PassingError(f"{address} cannot be reached ({reason})") from error
    except (httpx.InvalidURL, httpx.StreamError, ImportError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{address} cannot be used ({type(error).__name__}: {on_one_line(str(error))})") from error


def _wait_s(said: str) -> float | None:
    """Return Retry-After in seconds, or None if it is not a number."""
    is_number = said.isascii() and said.replace(".", "", 1).isdigit() and len(said) < 20
    return float(said) if is_number else None


async def gathered(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
