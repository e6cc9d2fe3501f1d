"""A client of a serving engine that takes down when tokens arrive.

The server's list of models says which engine it is, and so in which words it is asked (`dialect`). A server that names
no engine we know is asked in vLLM's words.

Example: `{"data": [{"id": "m", "owned_by": "sglang"}]}` is a server with the model "m" that is asked as SGLang.
"""

from collections.abc import Sequence
from typing import Final, final

from outrider.bench.serving.dialect import CompletionRequest, Dialect, Reply
from outrider.bench.serving.llama_dialect import LlamaDialect
from outrider.bench.serving.openai_dialect import OpenaiDialect
from outrider.bench.serving.prometheus import counters_in
from outrider.bench.serving.sglang_dialect import SglangDialect
from outrider.errors import EndpointError, nearest, on_one_line
from outrider.http.answers import model_names, owner_of
from outrider.http.client import ServerHttp
from outrider.results.counters import Counters, total_of

__all__ = ["Client"]

DIALECTS: Final[dict[str, Dialect]] = {
    "vllm": OpenaiDialect(),
    "sglang": SglangDialect(),
    "llamacpp": LlamaDialect(),
}
"""`owned_by` of a server's models -> its words."""


@final
class Client:
    """Speaks to one server; a key in `OPENAI_API_KEY` is sent.

    Args:
        url: up to and with /v1.
        stall_s: seconds that the server may be silent.
        metrics: addresses of Prometheus pages whose counters are added; by default the server's own.
    """

    def __init__(self, url: str, *, stall_s: float, metrics: Sequence[str] = ()) -> None:
        self.url = url.rstrip("/")
        self.metrics = tuple(metrics) or (f"{self.url.removesuffix('/v1')}/metrics",)
        self.dialect: Dialect = OpenaiDialect()
        self.owner: str | None = None
        self._http = ServerHttp(timeout_s=stall_s)

    async def close(self) -> None:
        """Hang up."""
        await self._http.close()

    async def model(self, wanted: str | None = None) -> str:
        """Return the model's name at the server, and learn its owner and its words.

        Raises:
            EndpointError: if it serves several and none is wanted by name, or the wanted one is not there.
        """
        address = f"{self.url}/models"
        names, owner = await self._http.json(
            "GET", address, None, lambda answer: (model_names(answer), owner_of(answer))
        )
        if wanted is None and len(names) != 1:
            listed = on_one_line(", ".join(names))
            raise EndpointError(f"{self.url} serves {len(names)} models ({listed}); name one with --endpoint-model")
        if wanted is not None and wanted not in names:
            raise EndpointError(f"{self.url} has no model '{wanted}'{on_one_line(nearest(wanted, names))}")
        self.owner, self.dialect = owner, DIALECTS.get(owner or "", self.dialect)
        return wanted or names[0]

    async def counters(self) -> Counters | None:
        """Return the server's counters now; None where it shows none, or pages that are damaged."""
        try:
            found = [counters_in(await self._http.text(address)) for address in self.metrics]
        except EndpointError:
            return None
        known = [counters for counters in found if counters is not None]
        return total_of(known) if len(known) == len(found) else None

    async def ask(self, request: CompletionRequest, model: str) -> Reply:
        """Send one request and read its answer to the end.

        Raises:
            EndpointError: for any answer that is not whole.
        """
        return await self.dialect.ask(self._http, self.url, request, model)
