"""The peers of the race: environment, worker, methods, and the number of requests that each takes at once.

A peer is a long-lived process in an environment of its own that answers JSON lines (`workers/serve.py`). An engine
whose speculation is fixed when it starts has one process per method; the others switch between methods.

A method's settings are the peer's defaults, but for two: the number of drafted tokens of a model (`DRAFT_TOKENS`), and
a second n-gram row for peers whose default matches long n-grams only. Example: `llama.cpp` as it comes looks for 12
equal tokens before it drafts 48; `ngram-short` lowers that to 3 and 10.
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

    home           its folder under `.peers/`; None runs in the package's own environment
    own_processes  True if every method needs a process
    """

    name: str
    worker: str
    methods: tuple[Method, ...]
    home: str | None
    own_processes: bool = False

    def groups(self) -> list[tuple[Method, ...]]:
        """Return the methods of each process."""
        return [(method,) for method in self.methods] if self.own_processes else [self.methods]


def executable(home: Path) -> Path:
    """Return the interpreter of an environment."""
    return home / "env" / "bin" / "python"


def outrider(methods: list[str]) -> Peer:
    """Return ours: plain decoding and the given methods, written as for `outrider bench`."""
    rows = [Method(name=PLAIN, max_requests=64)]
    rows += [Method(name=text.partition(":")[0], settings={"method": text}, max_requests=64) for text in methods]
    return Peer(name="outrider", worker="outrider_worker.py", methods=tuple(rows), home=None)


def llama(name: str) -> Peer:
    """Return a build of llama.cpp with its kinds of speculation."""
    short = {"spec-type": "ngram-simple", "spec-ngram-simple-size-n": 3, "spec-ngram-simple-size-m": 10}
    return Peer(
        name=name,
        worker="llama_worker.py",
        home=name,
        own_processes=True,
        methods=(
            Method(name=PLAIN, max_requests=64),
            Method(name="ngram-simple", settings={"spec-type": "ngram-simple"}, max_requests=64),
            Method(name="ngram-short", settings=short, max_requests=64),
            Method(name="ngram-cache", settings={"spec-type": "ngram-cache"}, max_requests=64),
            Method(
                name="draft",
                settings={"spec-type": "draft-simple", "spec-draft-n-max": DRAFT_TOKENS},
                max_requests=64,
            ),
        ),
    )


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
