"""The worker's side of the line protocol; only the standard library, so that it runs in every environment.

    -> {"op": "open", "target": NAME, "weights": "bf16", "model": DIR, "draft": DIR, "gguf": FILE, "draft_gguf": FILE,
        "dtype": "bfloat16", "eos": [2], "threads": 2, "max_len": 4096, "max_requests": 4,
        "methods": {"plain": {}, "lookup": {...}}, "home": DIR}
    <- {"version": "...", "dtype": "bfloat16", "notes": "..."}
    -> {"op": "measure", "method": "lookup", "prompts": [[1, 2, 3]], "max_new_tokens": 64}
    <- {"answers": [{"tokens": [...], "arrivals": [[0.31, 1], [0.35, 4]]}], "wall_s": 1.2}

`arrivals` says how many tokens of an answer had come in after how many seconds since the request was given; null where
the peer does not say. Any failure is `{"error": "..."}`. The end of stdin ends the worker. What the libraries print
goes to stderr, so that stdout holds answers only.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from time import perf_counter


class Worker(ABC):
    """A peer that can be asked."""

    @abstractmethod
    def open(self, order: dict) -> dict:
        """Load the model; the versions and settings of this peer."""

    @abstractmethod
    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        """Answer the prompts, all at once; tokens and arrivals of each."""


class Clock:
    """Arrivals of one answer; a call says how many tokens there are by now."""

    def __init__(self) -> None:
        self.start = perf_counter()
        self.arrivals: list[list[float]] = []

    def __call__(self, num_tokens: int) -> None:
        last = self.arrivals[-1][1] if self.arrivals else 0
        if num_tokens > last:
            self.arrivals.append([perf_counter() - self.start, num_tokens])


def serve(worker: Worker) -> None:
    """Answer until stdin ends."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(reply(worker, json.loads(line))) + "\n")
        out.flush()
    os._exit(0)


def reply(worker: Worker, order: dict) -> dict:
    try:
        if order["op"] == "open":
            return worker.open(order)
        start = perf_counter()
        answers = worker.measure(order["method"], order["prompts"], order["max_new_tokens"])
        return {"answers": answers, "wall_s": perf_counter() - start}
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}"}


def die_with_parent() -> None:
    """Have Linux end this process when the one that started it ends, however that came about."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
