"""A generator behind an OpenAI-compatible server: vLLM writes the same texts, a thousand times as many.

Prompts go to `/v1/completions` as token ids, so the server reads exactly what our engine would read, whatever template
it has. With `return_token_ids` (vLLM) it gives back the token ids that it wrote; a server that refuses this field is
asked without it, and its text is cut into tokens anew. Such an answer is kept only if the tokens spell that text and
are as many as the server counted; otherwise it is "lost", for nobody knows which tokens the target wrote.

The answer to each prompt also says how many tokens the server read. If that is not what was sent, it serves another
model or adds tokens of its own, and the run ends.

A request that fails for a reason that may pass (no connection, time-out, status 429 or 5xx) is tried again after 1, 2,
4, ... seconds, or when the server says. Any other refusal ends the run with the server's own words.

Example: `outrider synthesize --endpoint http://localhost:8000/v1 --concurrency 256`. A key in `OPENAI_API_KEY` is sent.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, final

from outrider.data.generator import Job, Listener, TextGenerator, Written
from outrider.errors import ConfigError, EndpointError, nearest, on_one_line
from outrider.http.answers import (
    AnswerError,
    Usage,
    check_prompt,
    check_reason,
    choice_of,
    model_names,
    text_of,
    token_ids,
    usage_of,
)
from outrider.http.client import PassingError, RefusedError, ServerHttp, gathered
from outrider.records.display import shown

__all__ = ["ServerConfig", "ServerGenerator"]

T = TypeVar("T")

PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT_S: Final = 60.0
TOKEN_IDS: Final = "return_token_ids"
REMEDY: Final = "mend the cause and run the same command again"
NO_VOCABULARY: Final = 2**31


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Address and limits of a server.

    url           up to and with /v1
    model         name of the target there; None for the only one that it serves
    concurrency   requests at a time
    num_retries   further attempts after a request that failed
    backoff_s     first wait before an attempt, in seconds; each further one is twice as long
    timeout_s     limit of one request, in seconds
    """

    url: str
    model: str | None = None
    concurrency: int = 32
    num_retries: int = 6
    backoff_s: float = 1.0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint={self.url} must begin with http:// or https://, as in http://localhost:8000/v1"
            )
        if not 1 <= self.concurrency <= 4096:
            raise ConfigError(f"concurrency={self.concurrency} must be between 1 and 4096")


class _Answer(NamedTuple):
    """A completion as the server gave it, checked against what was asked."""

    text: str | None
    ids: list[int] | None
    reason: str
    stop_reason: object
    usage: Usage | None


@final
class ServerGenerator(TextGenerator):
    """Sends jobs to a server, several at a time.

    Args:
        tokenizer: the target's.
        eos_ids: tokens that end a text; the first is put where the server only says that it stopped.
        vocab_size: above every token id of the target.

    Raises:
        ConfigError: if the server does not serve the model.
        EndpointError: if the server cannot be reached.
    """

    def __init__(
        self, config: ServerConfig, tokenizer: Any, eos_ids: Sequence[int], vocab_size: int = NO_VOCABULARY
    ) -> None:
        self._config, self._tokenizer, self._eos_ids = config, tokenizer, tuple(eos_ids)
        self._vocab_size = vocab_size
        self._ask_for_ids = True
        self._closed = False
        self._http = ServerHttp(timeout_s=config.timeout_s, trust_env=True)
        self._loop = asyncio.Runner()
        try:
            self._model = self._served()
        except BaseException:
            self.close()
            raise

    def write(self, jobs: Sequence[Job], listen: Listener = lambda jobs, tokens: None) -> list[Written]:
        try:
            return self._loop.run(self._all(jobs, listen))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.run(self._http.close())
            self._loop.close()

    async def _all(self, jobs: Sequence[Job], listen: Listener) -> list[Written]:
        free = asyncio.Semaphore(self._config.concurrency)

        async def one(job: Job) -> Written:
            async with free:
                written = await self._one(job)
            listen(1, len(written.tokens))
            return written

        return await gathered(one(job) for job in jobs)

    def _served(self) -> str:
        """Return the model's name at the server."""
        url, wanted = self._config.url, self._config.model
        names = self._loop.run(self._retried("GET", "models", None, model_names))
        if wanted is None and len(names) != 1:
            raise ConfigError(
                f"{url} serves {len(names)} models ({on_one_line(', '.join(names))}); name one with --model"
            )
        if wanted is not None and wanted not in names:
            raise ConfigError(f"{url} has no model '{wanted}'{on_one_line(nearest(wanted, names))}")
        return wanted or names[0]

    async def _one(self, job: Job) -> Written:
        body = {
            "model": self._model,
            "prompt": list(job.prompt),
            "max_tokens": job.max_new_tokens,
            "temperature": job.sampling.temperature,
            "top_p": job.sampling.top_p,
            "seed": job.sampling.seed % 2**31,
        }
        if job.stop:
            body["stop"] = list(job.stop)
        if not self._ask_for_ids:
            return await self._asked(job, body)
        ids_too = {**body, TOKEN_IDS: True, **({"stop_token_ids": sorted(job.ends)} if job.ends else {})}
        try:
            return await self._asked(job, ids_too)
        except RefusedError as refused:
            if refused.status not in (400, 422):
                raise
            written = await self._asked(job, body)
            self._ask_for_ids = False
            return written

    async def _asked(self, job: Job, body: Mapping[str, Any]) -> Written:
        def read(answer: dict[str, Any]) -> Written:
            return self._written(job, self._checked(job, answer))

        return await self._retried("POST", "completions", body, read)

    def _checked(self, job: Job, answer: Mapping[str, Any]) -> _Answer:
        choice, usage = choice_of(answer), usage_of(answer)
        if choice is None:
            raise AnswerError("did not answer as an OpenAI-compatible server: it gave no completion")
        check_prompt(usage, len(job.prompt))
        check_reason(choice.get("finish_reason"))
        ids = token_ids(choice, self._vocab_size)
        count = usage.completion_tokens if usage is not None else None
        for number in (count or 0, len(ids or ())):
            if number > job.max_new_tokens:
                raise AnswerError(f"wrote {shown(number)} tokens where {job.max_new_tokens} were asked for")
        if ids is not None and count not in (None, len(ids)):
            raise AnswerError(f"cut its answer off: it wrote {count} tokens and sent {len(ids)}")
        text = text_of(choice) if ids is None else None
        return _Answer(text, ids, choice["finish_reason"], choice.get("stop_reason"), usage)

    def _written(self, job: Job, answer: _Answer) -> Written:
        ended, ids = answer.reason == "stop", answer.ids
        if ids is None:
            assert answer.text is not None
            ids = self._cut_anew(answer.text, answer.usage.completion_tokens if answer.usage else None, ended)
        if ids is None or len(ids) > job.max_new_tokens:
            return Written((), "lost")
        tokens = tuple(ids)
        end = next((at for at, token in enumerate(tokens) if token in job.ends), None)
        if end is not None:
            return Written(tokens[: end + 1], "stop")
        if ended and answer.stop_reason in job.stop:
            return Written(tokens, "stop")
        if ended and (not tokens or tokens[-1] not in self._eos_ids):
            if len(tokens) == job.max_new_tokens:
                return Written(tokens, "length")
            tokens += self._eos_ids[:1]
        return Written(tokens, "end" if ended else "length")

    def _cut_anew(self, text: str, num_tokens: int | None, ended: bool) -> list[int] | None:
        """Return the tokens of a text, or None if they cannot be those that were written."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        fits = num_tokens is None or len(ids) == num_tokens or (ended and len(ids) + 1 == num_tokens)
        return ids if fits and self._tokenizer.decode(ids) == text else None

    async def _retried(
        self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Send a request until it is answered, or refused for good."""
        url = f"{self._config.url.rstrip('/')}/{path}"
        for trial in range(self._config.num_retries + 1):
            last = trial == self._config.num_retries
            wait_s = self._config.backoff_s * 2**trial
            try:
                return await self._http.json(method, url, body, read)
            except PassingError as error:
                if last:
                    raise type(error)(f"{error}; start the server and run the same again") from error
            except RefusedError as error:
                if last or error.status not in PASSING:
                    raise error.with_remedy(REMEDY) from error
                wait_s = wait_s if error.wait_s is None else error.wait_s
            except EndpointError as error:
                raise EndpointError(f"{error}; {REMEDY}") from error
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
        raise AssertionError("the last trial returns or raises")
