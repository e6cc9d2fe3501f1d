"""A client of an OpenAI-compatible server that takes down when tokens arrive.

Prompts go to `/v1/completions` as token ids, so the server reads exactly what our engine reads. The answer is streamed;
with `return_token_ids` each event holds the ids of the tokens that a step wrote, a *burst*. What is asked for is
spelled out, for a server may have other defaults (a repetition penalty from `generation_config.json`, say).

An answer is taken only if it is whole: the stream ends with a reason and with the server's own counts, which must be
what was sent and what arrived. Everything else is one `RunError` that says what happened.

    data: {"choices": [{"token_ids": [17, 4], "finish_reason": null}]}        a burst of two
    data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 2}}
    data: [DONE]
"""

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, final

import httpx

from outrider.bench.counters import Counters, total_of
from outrider.bench.serving.prometheus import counters_in
from outrider.errors import RunError, nearest

__all__ = ["Client", "Question", "Reply"]

DONE = "[DONE]"
KNOWN_REASONS = ("stop", "length")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request: token ids in, at most `limit` tokens out; `ends` are tokens that end the answer, unless ignored."""

    prompt: Sequence[int]
    limit: int
    temperature: float
    seed: int
    ends: Sequence[int]
    ignore_eos: bool

    def body(self, model: str) -> dict[str, Any]:
        """As the server is asked."""
        ending = {"ignore_eos": True} if self.ignore_eos else {"stop_token_ids": sorted(self.ends)}
        return {
            "model": model,
            "prompt": list(self.prompt),
            "max_tokens": self.limit,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "seed": self.seed % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            **ending,
        }


@dataclass(kw_only=True)
class Reply:
    """What arrived, and when: seconds of `perf_counter`."""

    start: float
    tokens: list[int] = field(default_factory=list)
    bursts: list[int] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    reason: str | None = None
    usage: Mapping[str, Any] | None = None


@final
class Client:
    """Speaks to one server; a key in `OPENAI_API_KEY` is sent.

    Args:
        url: up to and with /v1.
        stall_s: how long the server may say nothing.
        metrics: addresses of Prometheus pages whose counters are added; by default the server's own.
    """

    def __init__(self, url: str, *, stall_s: float, metrics: Sequence[str] = ()) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        self.url = url.rstrip("/")
        self.metrics = tuple(metrics) or (f"{self.url.removesuffix('/v1')}/metrics",)
        self._stall_s = stall_s
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(stall_s, connect=min(10.0, stall_s), pool=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def model(self, wanted: str | None = None) -> str:
        """The model's name at the server.

        Raises:
            RunError: if it serves several and none is wanted by name, or the wanted one is not there.
        """
        with _telling(f"{self.url}/models", self._stall_s):
            response = await self._http.get(f"{self.url}/models")
            _check(response.status_code, response.text)
            names = [str(model["id"]) for model in response.json()["data"]]
        if wanted is None and len(names) != 1:
            raise RunError(f"{self.url} serves {len(names)} models ({', '.join(names)}); name one of them")
        if wanted is not None and wanted not in names:
            raise RunError(f"{self.url} has no model '{wanted}'{nearest(wanted, names)}")
        return wanted or names[0]

    async def counters(self) -> Counters | None:
        """The server's counters now; None where it shows none."""
        try:
            pages = [await self._http.get(address) for address in self.metrics]
        except httpx.HTTPError:
            return None
        found = [counters_in(page.text) if page.status_code == 200 else None for page in pages]
        known = [counters for counters in found if counters is not None]
        return total_of(known) if len(known) == len(found) else None

    async def ask(self, question: Question, model: str) -> Reply:
        """Send one request and read its answer to the end.

        Raises:
            RunError: for any answer that is not whole.
        """
        address = f"{self.url}/completions"
        reply = Reply(start=perf_counter())
        with _telling(address, self._stall_s):
            async with self._post(address, question.body(model)) as lines:
                async for data in lines:
                    if data == DONE:
                        break
                    _take(reply, json.loads(data), perf_counter())
                else:
                    raise _AnswerError("cut its answer off before the end")
            _check_whole(reply, question)
        return reply

    @asynccontextmanager
    async def _post(self, address: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[str]]:
        async with self._http.stream("POST", address, json=body) as response:
            if response.status_code != 200:
                await response.aread()
            _check(response.status_code, "" if response.status_code == 200 else response.text)
            yield (line[5:].strip() async for line in response.aiter_lines() if line.startswith("data:"))


class _AnswerError(Exception):
    """What a server did wrong, as the end of "the server ...": turned into a `RunError` that says where."""


@final
class _telling:  # noqa: N801, a context manager that reads as a verb
    """Turns what can go wrong with an answer into one sentence."""

    def __init__(self, address: str, stall_s: float) -> None:
        self.address = address
        self.stall_s = stall_s

    def __enter__(self) -> None:
        """Nothing is needed."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case _AnswerError():
                raise RunError(f"{self.address} {error}") from error
            case httpx.ReadTimeout():
                raise RunError(f"{self.address} sent nothing for {self.stall_s:g} s") from error
            case httpx.RemoteProtocolError() | httpx.ReadError():
                raise RunError(f"{self.address} cut its answer off before the end ({error})") from error
            case httpx.HTTPError() | httpx.InvalidURL():
                raise RunError(f"{self.address} cannot be reached ({error or type(error).__name__})") from error
            case json.JSONDecodeError() | KeyError() | IndexError() | TypeError() | ValueError():
                reason = f"{type(error).__name__}: {error}"
                raise RunError(f"{self.address} did not answer as an OpenAI-compatible server ({reason})") from error


def _take(reply: Reply, event: Any, now: float) -> None:
    if "error" in event:
        raise _AnswerError(f"broke its answer off with an error: {_words(event)}")
    reply.usage = event.get("usage") or reply.usage
    for choice in event["choices"]:
        if "token_ids" not in choice and choice.get("text"):
            raise _AnswerError("gives no token ids; serve with vLLM 0.10.2 or later, which knows return_token_ids")
        tokens = choice.get("token_ids") or []
        if tokens:
            reply.tokens += map(int, tokens)
            reply.bursts.append(len(tokens))
            reply.first, reply.last = reply.first or now, now
        reply.reason = choice.get("finish_reason") or reply.reason


def _check_whole(reply: Reply, question: Question) -> None:
    if reply.reason not in KNOWN_REASONS:
        raise _AnswerError(f"ended an answer for the reason '{reply.reason}', neither {' nor '.join(KNOWN_REASONS)}")
    if reply.usage is None:
        raise _AnswerError("cut its answer off before the end: its counts are missing")
    if (read := reply.usage["prompt_tokens"]) != len(question.prompt):
        raise _AnswerError(
            f"read {read} tokens where {len(question.prompt)} were sent; it serves another model, or adds tokens"
        )
    if (wrote := reply.usage["completion_tokens"]) != len(reply.tokens):
        raise _AnswerError(f"cut its answer off: it wrote {wrote} tokens and sent {len(reply.tokens)}")
    if not reply.tokens:
        raise _AnswerError("gave an empty answer")


def _check(status: int, text: str) -> None:
    if status != 200:
        raise _AnswerError(f"refuses with status {status} ({_said(text)})")


def _said(text: str) -> str:
    """The server's own words, short."""
    try:
        return _words(json.loads(text))
    except ValueError:
        return " ".join(text.split())[:200] or "no reason given"


def _words(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    words = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(words.split())[:200]
