"""An author behind an OpenAI-compatible server: vLLM writes the same texts, a thousand times as many.

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

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any, final

import httpx

from outrider.errors import ConfigError, RunError, nearest
from outrider.train.author import Author, Job, Listener, Written

__all__ = ["ServerAuthor", "ServerConfig"]

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT_S = 60.0
TOKEN_IDS = "return_token_ids"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server is and how it is used.

    url           up to and with /v1
    model         its name there; None for the only one that it serves
    concurrency   requests at a time
    num_retries   how often a request that failed is sent again
    backoff_s     the first wait; each further one is twice as long
    timeout_s     of one request
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


@final
class ServerAuthor(Author):
    """Sends jobs to a server, several at a time.

    Args:
        tokenizer: the target's.
        eos_ids: tokens that end a text; the first is put where the server only says that it stopped.

    Raises:
        ConfigError: if the server cannot be reached, or does not serve the model.
    """

    def __init__(self, config: ServerConfig, tokenizer: Any, eos_ids: Sequence[int]) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        self._config, self._tokenizer, self._eos_ids = config, tokenizer, tuple(eos_ids)
        self._client = httpx.Client(
            timeout=config.timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")
        self._ask_for_ids = True
        self._stopping = Event()
        self._model = self._served()

    def write(self, jobs: Sequence[Job], listen: Listener = lambda jobs, tokens: None) -> list[Written]:
        places: dict[Future[Written], int] = {self._pool.submit(self._one, job): at for at, job in enumerate(jobs)}
        written: dict[int, Written] = {}
        waiting = set(places)
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    written[places[future]] = future.result()
                    listen(1, len(written[places[future]].tokens))
        except BaseException:
            self.close()
            raise
        return [written[place] for place in range(len(jobs))]

    def close(self) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _served(self) -> str:
        """The model's name at the server."""
        answer = self._retried("GET", "models", None)
        names = [str(model["id"]) for model in answer.get("data", []) if "id" in model]
        if self._config.model is None and len(names) != 1:
            raise ConfigError(
                f"{self._config.url} serves {len(names)} models ({', '.join(names)}); name one with --model"
            )
        if self._config.model is not None and self._config.model not in names:
            raise ConfigError(
                f"{self._config.url} has no model '{self._config.model}'{nearest(self._config.model, names)}"
            )
        return self._config.model or names[0]

    def _one(self, job: Job) -> Written:
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
            return self._written(job, self._retried("POST", "completions", body))
        ids_too = {**body, TOKEN_IDS: True, **({"stop_token_ids": sorted(job.ends)} if job.ends else {})}
        try:
            answer = self._retried("POST", "completions", ids_too)
        except _RefusedError as refused:
            if refused.status not in (400, 422):
                raise
            answer = self._retried("POST", "completions", body)
            self._ask_for_ids = False
        return self._written(job, answer)

    def _written(self, job: Job, answer: Mapping[str, Any]) -> Written:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, reason, ids = choice["text"], choice["finish_reason"], choice.get("token_ids")
        except (KeyError, IndexError, TypeError) as error:
            raise RunError(
                f"{self._config.url} gave no completion ({error!r}); is it an OpenAI-compatible server?"
            ) from error
        num_read = usage.get("prompt_tokens", len(job.prompt))
        if num_read != len(job.prompt):
            raise RunError(
                f"{self._config.url} read {num_read} tokens where {len(job.prompt)} were sent; it serves another model "
                "than --target, or adds tokens to prompts"
            )
        ended = reason == "stop"
        if ids is None and (ids := self._cut_anew(text, usage.get("completion_tokens"), ended)) is None:
            return Written((), "lost")
        tokens = tuple(int(token) for token in ids)
        end = next((at for at, token in enumerate(tokens) if token in job.ends), None)
        if end is not None:
            return Written(tokens[: end + 1], "stop")
        if ended and choice.get("stop_reason") in job.stop:
            return Written(tokens, "stop")
        if ended and (not tokens or tokens[-1] not in self._eos_ids):
            tokens += self._eos_ids[:1]
        return Written(tokens, "end" if ended else "length")

    def _cut_anew(self, text: str, num_tokens: int | None, ended: bool) -> list[int] | None:
        """The tokens of a text, or None if they cannot be those that were written."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        fits = num_tokens is None or len(ids) == num_tokens or (ended and len(ids) + 1 == num_tokens)
        return ids if fits and self._tokenizer.decode(ids) == text else None

    def _retried(self, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Send a request until it is answered, or refused for good."""
        url = f"{self._config.url.rstrip('/')}/{path}"
        for trial in range(self._config.num_retries + 1):
            last = trial == self._config.num_retries or self._stopping.is_set()
            wait_s = min(self._config.backoff_s * 2**trial, LONGEST_WAIT_S)
            try:
                response = self._client.request(method, url, json=body)
            except (httpx.TransportError, RuntimeError) as error:  # a closed client is a RuntimeError
                if last:
                    raise RunError(
                        f"{url} cannot be reached ({error}); start the server and run the same again"
                    ) from error
            else:
                if response.status_code == 200:
                    return _json_of(response, url)
                if last or response.status_code not in PASSING:
                    raise _RefusedError(url, response.status_code, _reason(response))
                wait_s = _said_wait(response, wait_s)
            self._stopping.wait(wait_s)
        raise AssertionError("the last trial returns or raises")


class _RefusedError(RunError):
    """The server said no."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(
            f"{url} refuses with status {status} ({reason}); mend the cause and run the same command again"
        )
        self.status = status


def _json_of(response: httpx.Response, url: str) -> Mapping[str, Any]:
    try:
        answer = response.json()
    except ValueError as error:
        raise RunError(f"{url} did not answer in JSON ({error}); is it an OpenAI-compatible server?") from error
    if not isinstance(answer, dict):
        raise RunError(f"{url} answered with a {type(answer).__name__}; is it an OpenAI-compatible server?")
    return answer


def _reason(response: httpx.Response) -> str:
    """The server's own words, short."""
    try:
        content = response.json()
        error = content.get("error", content) if isinstance(content, dict) else content
        words = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        words = response.text
    return " ".join(words.split())[:200] or response.reason_phrase


def _said_wait(response: httpx.Response, wait_s: float) -> float:
    """What the server asks for in Retry-After, where it is a number of seconds."""
    said = response.headers.get("retry-after", "")
    return min(float(said), LONGEST_WAIT_S) if said.replace(".", "", 1).isdigit() else wait_s
