"""The peers of the race: environment, worker, methods, and the number of requests that each takes at once.

A peer is a long-lived process in an environment of its own that answers JSON lines (`workers/serve.py`), for a library
that is no server. A method's settings are the peer's defaults, but for the number of drafted tokens of a model
(`DRAFT_TOKENS`).

Example: `economize` decodes plain, looks 10 tokens up in a step, and drafts 4 with a second model.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY, FAILED = "ready", "failed.txt"
DRAFT_TOKENS = 4
PLAIN = "plain"
LLAMA, NO_AMX = "llama.cpp", "llama.cpp-no-amx"
"""llama.cpp built for this machine, and with AMX compiled out."""
WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    settings      given to the worker as they stand
    max_requests  requests that the peer decodes at once with this method
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    max_requests: int = 1

    @property
    def shown(self) -> str:
        """The settings as text."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An engine to measure.

    home   its folder under `.peers/`; None runs in the package's own environment
    """

    name: str
    worker: str
    methods: tuple[Method, ...]
    home: str | None

    def groups(self) -> list[tuple[Method, ...]]:
        """Return the methods of each process."""
        return [self.methods]


def executable(home: Path) -> Path:
    """Return the interpreter of an environment."""
    return home / "env" / "bin" / "python"


def outrider(methods: list[str]) -> Peer:
    """Return ours: plain decoding and the given methods, written as for `outrider bench`."""
    rows = [Method(name=PLAIN, max_requests=64)]
    rows += [Method(name=text.partition(":")[0], settings={"method": text}, max_requests=64) for text in methods]
    return Peer(name="outrider", worker="outrider_worker.py", methods=tuple(rows), home=None)


def others() -> list[Peer]:
    """Return the libraries with their default methods. Engines that are servers take part in `outrider bench`."""
    model = {"draft": True, "num_draft_tokens": DRAFT_TOKENS}
    return [
        Peer(
            name="economize",
            worker="economize_worker.py",
            home="economize",
            methods=(
                Method(name=PLAIN, max_requests=64),
                Method(name="lookup", settings={"cycle_length": 11}, max_requests=64),
                Method(name="draft_model", settings=model, max_requests=64),
            ),
        ),
        Peer(
            name="flashspec",
            worker="flashspec_worker.py",
            home="flashspec",
            methods=(
                Method(name="ngram", settings={"strategy": "bandit", "gamma": 10}),
                Method(name="composite", settings={"strategy": "auto", "draft": True}),
            ),
        ),
    ]
