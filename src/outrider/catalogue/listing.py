"""The drafters of a target as a table, and as one line of JSON.

    {"schema": "outrider.drafters/1", "target": "smollm2-135m", "drafters": [{"name": "...", "is_ready": true, ...}]}

Example: `listed("smollm2-135m", drafters)` ends the output of the command in a pipe.
"""

from collections.abc import Sequence

from outrider.catalogue.drafters import Drafter
from outrider.records.codec import dumps, to_plain
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["SCHEMA", "listed", "sheet_of"]

SCHEMA = "outrider.drafters/1"


def listed(target: str, drafters: Sequence[Drafter]) -> str:
    """Return one line of JSON."""
    found = [{**to_plain(one), "method": one.method, "is_ready": one.is_ready} for one in drafters]
    return dumps({"schema": SCHEMA, "target": target, "drafters": found})


def sheet_of(target: str, drafters: Sequence[Drafter]) -> Sheet[Drafter]:
    """Return the table: what can be used now comes first."""
    ordered = sorted(drafters, key=lambda one: (not one.is_ready, one.fits is False))
    return Sheet(f"drafters for {target}", COLUMNS, ordered)


def _usable(one: Drafter) -> str:
    return "yes" if one.is_ready else "no" if one.fits is False else "not yet"


COLUMNS: tuple[Column[Drafter], ...] = (
    Column("drafter", lambda one: one.name, kind="name"),
    Column("use as", lambda one: one.text or "-", kind="code", legend="use as: --method takes it"),
    Column("ready", _usable, kind="text"),
    Column("why", lambda one: one.why, kind="text"),
    Column("licence", lambda one: one.licence, kind="text", drop=2),
    Column("source", lambda one: one.source, kind="text", drop=1, legend="source: of its figures"),
)
