"""The seam behind which texts are written: by our own engine, or by a server.

A generator continues token sequences. It writes the answers, and the user turns that the target makes up itself. Every
job carries its own seed, so that what it gets does not depend on what else is written at the same time.

Example: `EngineGenerator(target, max_batch=16, max_len=1024).write(jobs)` gives one `Written` per job, in order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, final

from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.proposers.method_spec import load_method, method_specs
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["EngineGenerator", "Job", "Listener", "TextGenerator", "Written"]

Listener = Callable[[int, int], None]
"""A callback: jobs that ended, and tokens written, since the last call."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sequence to continue.

    prompt          token ids
    ends            token ids that end the text, besides the target's own end-of-text tokens
    stop            strings that do
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams
    ends: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


class Written(NamedTuple):
    """The written token ids, with the one that ended the text, and the reason of its end.

    "end" is an end-of-text token, "stop" one of the job's own ends, "length" a limit; "lost" says that the generator
    could not give the token ids that the target wrote.
    """

    tokens: tuple[int, ...]
    finished: Literal["end", "stop", "length", "lost"]


class TextGenerator(ABC):
    """A writer that continues texts as the target would."""

    @abstractmethod
    def write(self, jobs: Sequence[Job], listen: Listener = lambda jobs, tokens: None) -> list[Written]:
        """Return the continuations, in the order of the jobs.

        Raises:
            OutriderError: if a job cannot be written, and trying again does not help.
        """

    def close(self) -> None:  # noqa: B027  most generators hold nothing
        """Close connections."""


@final
class EngineGenerator(TextGenerator):
    """A generator on our own engine, as many jobs at a time as it has slots.

    Args:
        method: the proposer; the text does not depend on it.

    Raises:
        CapacityError: if the batch does not fit in memory.
    """

    def __init__(self, target: Target, *, max_batch: int, max_len: int, method: str = "none") -> None:
        if not 2 <= max_len <= target.spec.max_positions:
            raise ConfigError(
                f"texts of {max_len} tokens do not fit {target.spec.name}, which reads {target.spec.max_positions}; "
                "lower max_prompt_tokens or max_new_tokens"
            )
        self._engine = Engine(
            target, load_method(method_specs([method])[0], target), max_batch=max_batch, max_len=max_len
        )

    def write(self, jobs: Sequence[Job], listen: Listener = lambda jobs, tokens: None) -> list[Written]:
        engine, open_jobs, places = self._engine, {}, {}
        for place, job in enumerate(jobs):
            id = engine.add(job.prompt, replace(job.sampling, max_tokens=job.max_new_tokens, stop=job.stop))
            open_jobs[id], places[id] = _Open(job, []), place
        written: dict[int, Written] = {}
        for event in engine.run():
            if event.request not in open_jobs:
                continue
            event.raise_for_error()
            one = open_jobs[event.request]
            one.tokens.extend(event.tokens)
            end = next((at for at, token in enumerate(one.tokens) if token in one.job.ends), None)
            if end is None and event.finished is None:
                listen(0, len(event.tokens))
                continue
            reason: Literal["end", "stop", "length"] = "end" if event.finished == "eos" else "length"
            if end is not None or event.finished == "stop":
                reason = "stop"
            written[places[event.request]] = Written(
                tuple(one.tokens if end is None else one.tokens[: end + 1]), reason
            )
            del open_jobs[event.request]
            engine.cancel(event.request)  # it may have ended at an end of its job's own
            listen(1, len(event.tokens))
        return [written[place] for place in range(len(jobs))]


class _Open(NamedTuple):
    """A job in the engine, and its tokens so far."""

    job: Job
    tokens: list[int]
