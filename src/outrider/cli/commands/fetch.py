"""`outrider fetch`: install what the package does not hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

__all__ = ["Fetch"]


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Install the trained heads of a release, so that every preset runs without a checkout.

    They are kept in the cache (`$OUTRIDER_CACHE`, else ~/.cache/outrider) under the names that they have in a checkout.
    """

    what: tyro.conf.Positional[Literal["heads"]]
    """heads: a release's archive of heads, or one that `make heads-archive` wrote in a checkout."""
    source: Annotated[str, tyro.conf.arg(name="from")]
    """The archive: a .zip on this machine, or its http(s) address."""

    def run(self) -> None:
        from outrider.formats.heads_archive import fetch_heads
        from outrider.formats.locate import cache_directory

        for name in fetch_heads(self.source):
            print(f"{name}  in {cache_directory() / 'heads' / name}")
