"""A serving engine in a benchmark: a contender that answers through a server.

Every conversation of a group is a client of its own; as many as the batch has slots ask at the same time, and the
others wait. So batch 1 is serial latency and larger batches are throughput under that concurrency. The server starts
when the first cell needs it and stops when the run needs it no more; its counters are read before and after each group.

The server's counters are kept only if they grew by exactly the tokens that arrived here. Otherwise somebody else used
the server, or it shows another replica's counters. Then, and where they contradict what the answers count themselves,
the counts of the answers are kept; where there are none, the figures that need them stay unknown.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any, NamedTuple, final

from outrider.bench.cells import Cell, Group
from outrider.bench.contender import Contender, Name
from outrider.bench.serving.client import Client
from outrider.bench.serving.dialect import CompletionRequest, Reply
from outrider.bench.serving.service import Service
from outrider.data.dialogue import Dialogue, Rules
from outrider.errors import RunError
from outrider.http.client import gathered
from outrider.results.counters import Counters, total_of
from outrider.results.unit import Answer, UnitResult

__all__ = ["Reader", "ServedContender"]

WARM_UP_TOKENS = 16
COUNTING_TRIES, COUNTING_WAIT_S = 10, 0.05
DYING_TRIES, DYING_WAIT_S = 10, 0.1


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The target as a client needs it: tokenizer, tokens that end a text, and a prompt to warm up with."""

    tokenizer: Any
    vocab_size: int
    eos_ids: tuple[int, ...]
    warm_up: tuple[int, ...]


class Heard(NamedTuple):
    """An answer, and the server's counts of it."""

    answer: Answer
    counters: Counters | None


@final
class ServedContender(Contender):
    """A method on a server.

    Args:
        model: its name at the server; None for the only one.
        metrics: addresses of Prometheus pages, as `Client` takes them.
        stall_s: seconds that the server may be silent.
        extra: fields of every request that only some engines have.
    """

    def __init__(
        self,
        name: Name,
        service: Service,
        reader: Reader,
        *,
        temperatures: Sequence[float],
        stall_s: float,
        model: str | None = None,
        metrics: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.service = service
        self.reader = reader
        self.temperatures = tuple(temperatures)
        self.stall_s = stall_s
        self.model = model
        self.metrics = tuple(metrics)
        self.extra = dict(extra or {})
        self._name = name
        self._loop: asyncio.Runner | None = None
        self._client: Client | None = None
        self._model = ""
        self._num_requests = 0

    @property
    def name(self) -> Name:
        return self._name

    @property
    def learns(self) -> bool:
        return False

    def takes(self, cell: Cell, index: int) -> bool:
        return True

    def open(self, batch: int) -> None:
        if self._loop is None:
            self._loop = asyncio.Runner()
            url = self.service.start()
            self._client = Client(url, stall_s=self.stall_s, metrics=self.metrics)
            self._model = self._run(self._client.model(self.model))
        for temperature in self.temperatures:
            self._run(self._warm_up(batch, temperature))
        self._run(self._settled())

    def close(self) -> None:
        """Close nothing: the server goes on, for the next batch size."""

    def leave(self) -> None:
        if self._loop is not None:
            try:
                if self._client is not None:
                    self._loop.run(self._client.close())
                self._loop.close()
            finally:
                self._loop = self._client = None
                self.service.stop()

    def reset(self) -> None:
        """Reset nothing: no state between requests changes how fast later ones are."""

    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        before = self._run(self.client.counters())
        start = perf_counter()
        heard = self._run(self._play(group, rules, cell.batch, start))
        wall_s = perf_counter() - start
        answers = [one.answer for one in heard]
        num_tokens = sum(len(answer.tokens) for answer in answers)
        page = None if before is None else self._run(self._counted(before, num_tokens))
        counters = believed(page, [one.counters for one in heard])
        return self.name.result(cell, group, rules, answers, wall_s, counters=counters)

    @property
    def client(self) -> Client:
        assert self._client is not None, "open it first"
        return self._client

    def _run(self, work: Any) -> Any:
        """Run a coroutine; where it fails because the server died, say that instead."""
        assert self._loop is not None
        try:
            return self._loop.run(work)
        except RunError as error:
            label = f"{self.name.engine} {self.name.method}"
            died = self._death()
            what = f"the server {died}" if died else str(error)
            raise RunError(f"{label}: {what}; what is finished is kept, and the same command goes on there") from error

    def _death(self) -> str | None:
        """Return how the server died, if it did: an answer may break off a little before that is seen."""
        for _ in range(DYING_TRIES):
            if died := self.service.failure():
                return died
            sleep(DYING_WAIT_S)
        return None

    async def _warm_up(self, batch: int, temperature: float) -> None:
        request = CompletionRequest(
            prompt=self.reader.warm_up,
            limit=WARM_UP_TOKENS,
            vocab_size=self.reader.vocab_size,
            temperature=temperature,
            seed=0,
            ends=(),
            ignore_eos=True,
            extra=self.extra,
        )
        await gathered(self.client.ask(request, self._model) for _ in range(batch))

    async def _play(self, group: Group, rules: Rules, slots: int, start: float) -> list[Heard]:
        free = asyncio.Semaphore(slots)
        heard: list[list[Heard]] = await gathered(
            self._converse(Dialogue(conversation), rules, free, start) for conversation in group
        )
        return [answer for conversation in heard for answer in conversation]

    async def _converse(self, dialogue: Dialogue, rules: Rules, free: asyncio.Semaphore, start: float) -> list[Heard]:
        conversation, heard = dialogue.conversation, []
        async with free:
            for turn in range(len(conversation.turns)):
                prompt = dialogue.ask(turn, self.reader.tokenizer)
                if (room := rules.max_len - len(prompt)) < 1:
                    break
                sampling = rules.sampling(conversation, turn)
                request = CompletionRequest(
                    prompt=prompt,
                    limit=min(room, rules.limit(conversation)),
                    vocab_size=self.reader.vocab_size,
                    temperature=sampling.temperature,
                    seed=sampling.seed,
                    ends=self.reader.eos_ids,
                    ignore_eos=rules.ignore_eos,
                    extra=self.extra,
                )
                reply = await self.client.ask(request, self._model)
                heard.append(Heard(self._answer(conversation.id, turn, request, reply, start), reply.counters))
                dialogue.answer(reply.tokens, self.reader.tokenizer)
        return heard

    def _answer(self, conversation: str, turn: int, request: CompletionRequest, reply: Reply, start: float) -> Answer:
        assert reply.first is not None
        assert reply.last is not None
        self._num_requests += 1
        return Answer(
            conversation=conversation,
            turn=turn,
            request=self._num_requests,
            seed=request.seed,
            num_prompt_tokens=len(request.prompt),
            tokens=tuple(reply.tokens),
            finished="eos" if reply.reason == "stop" else "length",
            ttft_s=reply.first - reply.start,
            latency_s=reply.last - reply.start,
            first_burst=reply.bursts[0] if reply.bursts else 1,
            bursts=tuple(reply.bursts),
            start_s=reply.start - start,
        )

    async def _settled(self) -> None:
        """Wait until the warm-up is counted."""
        last = None
        for _ in range(COUNTING_TRIES):
            now = await self.client.counters()
            if now == last:
                return
            last = now
            await asyncio.sleep(COUNTING_WAIT_S)

    async def _counted(self, before: Counters, num_tokens: int) -> Counters | None:
        """Return how far the counters grew; a server may write down its last step a little later than it is seen."""
        for _ in range(COUNTING_TRIES):
            now = await self.client.counters()
            grown = None if now is None else now - before
            if grown is None or grown.num_generation_tokens >= num_tokens:
                return grown if grown is not None and grown.is_growth_of(num_tokens) else None
            await asyncio.sleep(COUNTING_WAIT_S)
        return None


def believed(page: Counters | None, answers: Sequence[Counters | None]) -> Counters | None:
    """Return the counts of a group: the page's where the answers do not contradict it, else the answers' own.

    >>> told = Counters(num_generation_tokens=9, num_draft_tokens=8, num_accepted_tokens=5)
    >>> believed(Counters(num_generation_tokens=9, num_drafts=2), [told]).num_accepted_tokens
    5
    """
    known = [counters for counters in answers if counters is not None]
    if not known or len(known) < len(answers):
        return page
    told = total_of(known)
    agrees = page is not None and (page.num_draft_tokens, page.num_accepted_tokens) == (
        told.num_draft_tokens,
        told.num_accepted_tokens,
    )
    return page if agrees else told
