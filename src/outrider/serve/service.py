"""A server's parts: the target, its worker with the engines, counters, and one thread that turns text into tokens.

`Service.ask` turns a body into an `Exchange` with a `Reply`. Text is tokenised outside of the event loop, one request
after the other, so that a long prompt delays no stream.

Example: `await service.ask(ChatRequest(messages=[...]))` has been taken by an engine, or is a `RefusalError`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, Final, NamedTuple, final

from outrider.errors import RequestError
from outrider.processors.start import start_processors
from outrider.requests.prompts import check_fit
from outrider.sampling import SamplingParams
from outrider.serve.config import ServeConfig
from outrider.serve.engines.lane import Lane, Send
from outrider.serve.engines.ticket import Asked
from outrider.serve.engines.worker import Worker
from outrider.serve.exchange import Exchange
from outrider.serve.failures import RefusalError
from outrider.serve.forms import Answer, Reply
from outrider.serve.metrics import Metrics
from outrider.serve.params import chat_ids, completion_ids, sampling_params
from outrider.serve.schema import ChatRequest, CompletionRequest, GenerationRequest
from outrider.serve.tools import check_tools, wants_tools
from outrider.target import Target
from outrider.traces.trace import Texts

__all__ = ["Asking", "Service"]

PLAIN: Final = "none"
COMPLETION_TOKENS: Final = 16
"""Longest answer of `/v1/completions` where none is given, as at OpenAI."""


class Asking(NamedTuple):
    """A request that the engines have taken, and its answer so far."""

    exchange: Exchange
    reply: Reply
    start_s: float


@final
class Service:
    """All that handlers need.

    Args:
        method: label of the engine that serves by default.
        lanes: functions that open engines, by label; that of `method` is opened now.
        facts: further fields of `/outrider/info`.
    """

    def __init__(
        self,
        target: Target,
        config: ServeConfig,
        method: str,
        lanes: Callable[[Metrics], Mapping[str, Callable[[Send], Lane]]],
        facts: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.target = target
        self.method = method
        self.max_len = min(config.max_len, target.spec.max_positions)
        self.metrics = Metrics(config.model, lambda: self.worker.num_running, lambda: self.worker.num_waiting)
        openers = lanes(self.metrics)
        self.methods = tuple(dict.fromkeys((PLAIN, *openers)))
        self.worker = Worker(openers, config.max_batch + config.max_waiting)
        self.worker.open_lane(method)
        self.texts = Texts(target.tokenizer)
        self.facts = dict(facts)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="outrider-tokens")
        self._num_reading = 0
        longest = max(map(len, target.tokenizer.get_vocab())) if target.tokenizer is not None else 1
        self._most_chars = self.max_len * longest

    async def ask(self, body: ChatRequest | CompletionRequest) -> Asking:
        """Send the prompts of a body to an engine.

        Raises:
            RefusalError: if the body cannot be served, or not now.
        """
        start = perf_counter()
        self._check(body)
        if self.worker.is_full or len(self.worker.open) + self._num_reading >= self.worker.capacity:
            raise self.worker.busy
        loop = asyncio.get_running_loop()
        self._num_reading += 1
        try:
            prompts, asked = await loop.run_in_executor(self._readers, self._read, body)
        except RequestError as error:
            raise RefusalError(str(error)) from None
        finally:
            self._num_reading -= 1
        exchange = Exchange(self.worker, asked)
        await exchange.begin()
        self.metrics.taken(sum(map(len, prompts)))
        return Asking(exchange, Reply(body, self.config.model, prompts, self.texts), start)

    async def choices(self, asking: Asking) -> AsyncIterator[Answer]:
        """Yield the answer that each step went to, with what it brought.

        Raises:
            RefusalError: if the engine fails.
        """
        start, is_first = asking.start_s, True
        async for step in asking.exchange.steps():
            choice = asking.reply.take(step)
            if is_first:
                self.metrics.observe("time_to_first_token_seconds", perf_counter() - start)
            is_first = False
            if choice.finish_reason is not None:
                self.metrics.ended(choice.finish_reason)
                self.metrics.observe("e2e_request_latency_seconds", perf_counter() - start)
            yield choice

    def _check(self, body: GenerationRequest) -> None:
        if body.model is not None and body.model != self.config.model:
            raise RefusalError(f"the model '{body.model}' is not served; use '{self.config.model}'", 404, "model")
        if isinstance(body, ChatRequest):
            check_tools(body, self.target.tokenizer)
        if (chars := _num_chars(body)) > self._most_chars:
            raise RefusalError(f"the prompt has {chars} characters, more than {self.max_len} tokens hold; shorten it")
        method = body.outrider_method
        if method is not None and method not in self.methods:
            raise RefusalError(
                f"outrider_method '{method}' is not served; use one of {', '.join(self.methods)}",
                param="outrider_method",
            )

    def _read(self, body: ChatRequest | CompletionRequest) -> tuple[list[list[int]], list[Asked]]:
        """Return the prompts of a body as tokens, and what is asked of the engine; a form is compiled here already."""
        prompts = self._prompts(body)
        asked = [self._asked(body, prompt) for prompt in prompts]
        for one in asked:
            spec = self.target.spec
            start_processors(one.params, one.prompt, self.target.tokenizer, spec.vocab_size, spec.eos_ids)
        return prompts, asked

    def _prompts(self, body: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(body, ChatRequest):
            tools = body.tools if wants_tools(body) else None
            return [chat_ids(self.target.tokenizer, body.messages, tools or ())]
        return [completion_ids(self.target.tokenizer, prompt) for prompt in body.prompts]

    def _asked(self, body: GenerationRequest, prompt: Sequence[int]) -> Asked:
        params = self._params(body, prompt)
        check_fit(prompt, params, self.target.tokenizer, self.target.spec.vocab_size, self.max_len)
        is_plain = body.outrider_method == PLAIN
        return Asked(
            prompt=tuple(prompt),
            params=params,
            method=self.method if is_plain or body.outrider_method is None else body.outrider_method,
            most_nodes=0 if is_plain else body.outrider_num_nodes,
            is_traced=bool(body.return_steps),
        )

    def _params(self, body: GenerationRequest, prompt: Sequence[int]) -> SamplingParams:
        given = body.max_completion_tokens if isinstance(body, ChatRequest) else None
        wanted = body.max_tokens if given is None else given
        most = self.config.max_tokens
        if wanted is not None and most is not None and wanted > most:
            raise RefusalError(f"max_tokens={wanted} is above this server's limit of {most}", param="max_tokens")
        left = max(1, self.max_len - len(prompt))
        usual = COMPLETION_TOKENS if isinstance(body, CompletionRequest) else left
        return sampling_params(body, min(wanted or usual, left, most or left))

    def close(self) -> None:
        """End the threads."""
        self.worker.stop()
        self._readers.shutdown(wait=False, cancel_futures=True)


def _num_chars(body: GenerationRequest) -> int:
    """Return the characters of the longest text to tokenise."""
    if isinstance(body, CompletionRequest):
        return max((len(one) for one in body.prompts if isinstance(one, str)), default=0)
    messages = body.messages if isinstance(body, ChatRequest) else ()
    return sum(len(one.content) for one in messages if isinstance(one.content, str))
