"""Facts about a server that was measured, as a part of the result of `outrider tune --endpoint`.

Example: `ServedFacts(url="http://localhost:8000/v1", engine="vllm", model="m", drafts=True, baseline=None, rows=())` is
a vLLM server that drafts, with nothing to compare it with.
"""

from dataclasses import dataclass
from typing import Final

from outrider.results.rows import Row

__all__ = ["NOW", "ServedFacts"]

NOW: Final = "served"
"""The method of a server as it runs, whatever it drafts with."""


@dataclass(frozen=True, kw_only=True)
class ServedFacts:
    """A server that already runs, measured.

    engine     the engine that it names itself; None if it names none that is known
    model      the model's name there
    drafts     true if it drafted any token
    baseline   address of the plain decoding that it is compared with: its own where it does not draft; None where
               plain decoding could not be measured
    rows       rows of the benchmark: "served" is the server as it runs, "none" is plain decoding
    """

    url: str
    engine: str | None
    model: str
    drafts: bool
    baseline: str | None
    rows: tuple[Row, ...]
