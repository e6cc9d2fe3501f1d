"""Writers of greedy texts that a server's audit compares: a server, or our own plain decoding of the same weights.

A writer also tells which tokens it was close to choosing at a place of its text, where it can: from a server's
log-probabilities, in OpenAI's forms of completions and of chats, or from our own logits. What a server sends in no such
form counts as not offered.

Example: `writer.choices(0, 17)` holds the tokens that could have stood at character 17 of the first answer.
"""

from abc import ABC, abstractmethod
from asyncio import Runner
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, NamedTuple, final

from outrider.audit.cells import Bench, Cell
from outrider.bench.serving.client import Client
from outrider.errors import RunError
from outrider.http.answers import AnswerError, check_prompt, check_reason, choice_of, count_of, text_of, usage_of
from outrider.http.client import RefusedError, ServerHttp
from outrider.proposers.none import NoProposer
from outrider.requests.detokenize import UNFINISHED
from outrider.requests.events import Completion
from outrider.traces.trace import Texts

__all__ = ["Choices", "OwnWriter", "Prompt", "ServerWriter", "Writer"]

NUM_CHOICES: Final = 5
PACKAGE_NAME: Final = "outrider"
"""Name that `outrider serve` gives as the owner of its models."""
Prompt = str | Sequence[int]


class Choices(NamedTuple):
    """Tokens that could have stood at one place of a text.

    text     whole text that was written beside them
    offset   character at which the token begins
    own      log-probability of the token that was written
    others   log-probabilities of other tokens, by text
    """

    text: str
    offset: int
    own: float
    others: Mapping[str, float]


class Writer(ABC):
    """Writes one text for each prompt, by the prompt's number.

    engine   name of the program that computes it; None where it is unknown
    """

    name: str
    engine: str | None = None

    @abstractmethod
    def write(self, index: int) -> str:
        """Return the text, without a character that the limit cut in two.

        Raises:
            RunError: if there is none.
        """

    @abstractmethod
    def choices(self, index: int, place: int) -> Choices | None:
        """Write it again; return the choices at character `place`, None where they are not told.

        Raises:
            RunError: if there is no text.
        """


@final
class ServerWriter(Writer):
    """A server that is asked at `/v1/completions`, one prompt at a time.

    Args:
        url: up to and with /v1.
        model: its name there; None for the only one.
        prompts: texts, or the token ids that are to be read.

    Raises:
        EndpointError: if it cannot be reached, or does not serve the model.
    """

    def __init__(
        self, name: str, url: str, prompts: Sequence[Prompt], *, model: str | None, max_tokens: int, timeout_s: float
    ) -> None:
        self.name, self._prompts, self._max_tokens = name, prompts, max_tokens
        self._address = f"{url.rstrip('/')}/completions"
        self._loop = Runner()
        self._http, self._client = ServerHttp(timeout_s=timeout_s), Client(url, stall_s=timeout_s)
        self._told_accepted: int | None = None
        try:
            self._model = self._loop.run(self._client.model(model))
            self._before = self._loop.run(self._client.counters())
            self.engine = self._client.owner
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._loop.run(self._http.close())
        self._loop.run(self._client.close())
        self._loop.close()

    def num_accepted(self) -> int | None:
        """Return how many drafted tokens the server has accepted since the writer was made; None where it tells none.

        llama.cpp tells them with each answer, others on their page of metrics, where those of all requests are counted.
        """
        now = None if self._told_accepted is not None else self._loop.run(self._client.counters())
        if now is None or self._before is None:
            return self._told_accepted
        return max(0, now.num_accepted_tokens - self._before.num_accepted_tokens)

    def write(self, index: int) -> str:
        return self._asked(index, {})[0]

    def choices(self, index: int, place: int) -> Choices | None:
        try:
            text, told = self._asked(index, {"logprobs": NUM_CHOICES})
        except RefusedError as refused:
            if refused.status in (400, 404, 422, 501):
                return None
            raise
        return _told_at(told, text, place)

    def _asked(self, index: int, more: Mapping[str, Any]) -> tuple[str, Any]:
        prompt = self._prompts[index]

        def read(answer: dict[str, Any]) -> tuple[str, Any]:
            choice = choice_of(answer)
            if choice is None:
                raise AnswerError("did not answer as an OpenAI-compatible server: it gave no completion")
            if not isinstance(prompt, str):
                check_prompt(usage_of(answer), len(prompt))
            check_reason(choice.get("finish_reason"))
            if isinstance(timings := answer.get("timings"), dict) and "predicted_n" in timings:
                self._told_accepted = (self._told_accepted or 0) + (count_of(timings, "draft_n_accepted") or 0)
            return text_of(choice).rstrip(UNFINISHED), choice.get("logprobs")

        body = {
            "model": self._model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
            # a server may have another default
            "repetition_penalty": 1.0,
            **more,
        }
        return self._loop.run(self._http.json("POST", self._address, body, read))


@final
@dataclass
class OwnWriter(Writer):
    """Our own plain decoding of the target."""

    bench: Bench
    name: str = "our plain decoding"
    engine: str | None = PACKAGE_NAME

    def write(self, index: int) -> str:
        return _text(self._completion(index, None))

    def choices(self, index: int, place: int) -> Choices | None:
        found = self._completion(index, NUM_CHOICES)
        texts = Texts(self.bench.target.tokenizer)
        ends = list(accumulate(len(piece.text) for piece in found.pieces))
        at = next((at for at, end in enumerate(ends) if end > place), len(ends) - 1)
        if not len(ends) == len(found.logprobs) == len(found.tokens):
            return None
        one = found.logprobs[at]
        others = {texts.of(token): value for token, value in one.top if token != one.token}
        return Choices(_text(found), ends[at] - len(found.pieces[at].text), one.logprob, others)

    def _completion(self, index: int, logprobs: int | None) -> Completion:
        requests = self.bench.requests
        alone = replace(requests, names=requests.names[index : index + 1], prompts=requests.prompts[index : index + 1])
        bench = replace(self.bench, requests=alone)
        cell = Cell("none", "coupled", 1, 0.0, "none")
        [found] = bench.answers(NoProposer(), cell, [replace(bench.params(cell)[0], logprobs=logprobs)]).completions
        if found.error is not None:
            raise RunError(f"plain decoding of {alone.names[0]} fails, so there is nothing to compare: {found.error}")
        return found


def _text(found: Completion) -> str:
    return "".join(piece.text for piece in found.pieces).rstrip(UNFINISHED)


def _told_at(told: Any, text: str, place: int) -> Choices | None:
    """Return the choices in a server's log-probabilities; None where they are no such thing, or of another text."""
    offset, seen = 0, ""
    for token, own, others in _entries(told):
        offset, seen = len(seen), seen + token
        is_end = offset == place == len(text)  # a token behind the text, which ends it
        if not (is_end or text.startswith(seen)):
            return None
        if is_end or len(seen) > place:
            return Choices(text, offset, own, {other: value for other, value in others.items() if other != token})
    return None


def _entries(told: Any) -> list[tuple[str, float, dict[str, float]]]:
    """Return token, log-probability and alternatives of every token that both forms give in good order.

    >>> _entries({"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -2.5}]})
    [('a', -0.1, {'a': -0.1, 'b': -2.5})]
    """
    try:
        if "content" in told:
            return [
                (
                    str(one["token"]),
                    float(one["logprob"]),
                    {str(other["token"]): float(other["logprob"]) for other in one["top_logprobs"]},
                )
                for one in told["content"]
            ]
        return [
            (str(token), float(own), {str(other): float(value) for other, value in (others or {}).items()})
            for token, own, others in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        ]
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return []
