"""The first look at a server: whether it is there, ready, and counts what it drafts.

    no connection, or an answer in no HTTP    it is not there
    status 503 of /health or /v1/models       it is there, and not ready
    no counters on its page or in its answer  nothing can be said about its speculation

Each is one sentence. Example: `probed(endpoint_of("http://localhost:8000/v1"), reader)` is a `Server` with the engine
"vllm".
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outrider.bench.serving.client import Client
from outrider.bench.serving.contender import Reader
from outrider.bench.serving.dialect import CompletionRequest
from outrider.bench.serving.endpoint import Endpoint
from outrider.errors import EndpointError
from outrider.http.client import PassingError, RefusedError, ServerHttp
from outrider.tuning.config import DeployEngine

__all__ = ["Server", "probed"]

TIMEOUT_S: Final = 60.0
HEALTH_S: Final = 10.0
NOT_READY: Final = (502, 503, 504)
NUM_TOKENS: Final = 4
ENGINES: Final[Mapping[str, DeployEngine]] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "outrider": "outrider",
}
"""`owned_by` of a server's models -> engine, as in `outrider.export.deployment`."""
REMEDIES: Final[Mapping[str | None, str]] = {
    "vllm": "start it without --disable-log-stats, or name its Prometheus page with --endpoint-metrics",
    "sglang": "start it with --enable-metrics, or name its Prometheus page with --endpoint-metrics",
    "llama.cpp": "start it with --metrics",
}
ANY_REMEDY: Final = "name its Prometheus page with --endpoint-metrics"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers.

    engine   the engine that it names itself; None if it names none that is known
    model    the model's name there
    """

    endpoint: Endpoint
    engine: DeployEngine | None
    model: str


def probed(endpoint: Endpoint, reader: Reader, *, model: str | None = None, metrics: Sequence[str] = ()) -> Server:
    """Ask a server for its model, its counters and a few tokens.

    Args:
        model: its name at the server; None for the only one.
        metrics: addresses of Prometheus pages, as `Client` takes them.

    Raises:
        EndpointError: if it is not there, not ready, or counts nothing.
    """
    return asyncio.run(_probed(endpoint, reader, model, metrics))


async def _probed(endpoint: Endpoint, reader: Reader, model: str | None, metrics: Sequence[str]) -> Server:
    client = Client(endpoint.url, stall_s=TIMEOUT_S, metrics=metrics)
    try:
        await _check_ready(endpoint.url)
        name = await client.model(model)
        engine = ENGINES.get(client.owner or "")
        page = await client.counters()
        reply = await client.ask(_few_tokens(reader), name)
        if page is None and reply.counters is None:
            raise EndpointError(
                f"{endpoint.url} shows no counters of its tokens and drafts, neither on {' and '.join(client.metrics)} "
                f"nor in its answers; {REMEDIES.get(engine, ANY_REMEDY)}"
            )
        return Server(endpoint=endpoint, engine=engine, model=name)
    except RefusedError as error:
        if error.status not in NOT_READY:
            raise
        raise EndpointError(
            f"the server is not ready: {error}; wait until it is, and run the same command again"
        ) from None
    except PassingError as error:
        raise EndpointError(f"{error}; start the server, or give its address up to and with /v1") from None
    finally:
        await client.close()


async def _check_ready(url: str) -> None:
    """
    Raises:
        RefusedError: if the server says that it is not ready; one without such a page is asked for its models.
    """
    http = ServerHttp(timeout_s=HEALTH_S)
    try:
        await http.text(f"{url.rstrip('/').removesuffix('/v1')}/health")
    except RefusedError as error:
        if error.status in NOT_READY:
            raise
    finally:
        await http.close()


def _few_tokens(reader: Reader) -> CompletionRequest:
    return CompletionRequest(
        prompt=reader.warm_up,
        limit=NUM_TOKENS,
        vocab_size=reader.vocab_size,
        temperature=0.0,
        seed=0,
        ends=(),
        ignore_eos=True,
    )
