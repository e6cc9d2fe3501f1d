"""The heads that come with Outrider, and the choice of one for a target.

Heads are stored as `TARGET/KIND` (`smollm2-135m/eagle3`) in the directories of `outrider.formats.locate.head_roots`: a
checkout's `checkpoints/`, the installed package, then the cache. A head's config holds its target's fingerprint, so the
same weights under another name find it, and other weights under the same name do not.

Example: `shipped_head("eagle3", load_target("smollm2-135m"))` is the directory `checkpoints/smollm2-135m/eagle3`.
"""

from collections.abc import Iterator
from pathlib import Path

from outrider.formats.locate import CONFIG, EMBEDDED, head_roots, locate
from outrider.formats.store import belongs_to
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["shipped_head", "shipped_names", "short_name"]


def shipped_head(kind: str, target: Target) -> Path | None:
    """Return the directory of the head of this kind that was trained for the target, or None.

    Args:
        kind: name of its directory, as in `Proposer.shipped`.

    Raises:
        CheckpointError: if the config of such a head cannot be read.
    """
    return next((head for head in _heads(kind) if belongs_to(read_json(head / CONFIG), target)), None)


def shipped_names() -> list[str]:
    """Return the sorted names of all installed heads, as `locate` takes them."""
    return sorted({f"{head.parent.name}/{head.name}" for head in _heads("*")})


def short_name(head: Path) -> str:
    """Return the name of a shipped head as `locate` takes it, or its path if that name means another head."""
    name = f"{head.parent.name}/{head.name}"
    # an earlier root may hold another head of this name
    return name if head.parent.name in EMBEDDED and locate(name) == head else str(head)


def _heads(kind: str) -> Iterator[Path]:
    for root in head_roots():
        yield from (file.parent for file in sorted(root.glob(f"*/{kind}/{CONFIG}")))
