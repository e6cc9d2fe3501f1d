"""`outrider drafters`: list what can draft for a target."""

import sys
from dataclasses import dataclass

import tyro

__all__ = ["Drafters"]


@dataclass(frozen=True, kw_only=True)
class Drafters:
    """List what can draft for a target: lookups, shipped heads, its own layers, and the catalogue of published heads.

    Nothing is fetched unless asked for: a published drafter is ready if it is in the hub's local cache and its sizes
    are the target's. A table goes to standard output, followed by one line of JSON unless that is a terminal.
    """

    target: tyro.conf.Positional[str] = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    ready: bool = False
    """List only what can be used now."""
    online: bool = False
    """Fetch the configs of published drafters from the hub, a few kB each, to see which exist and fit."""

    def run(self) -> None:
        from outrider.catalogue.drafters import drafters_of
        from outrider.catalogue.listing import listed, sheet_of
        from outrider.cli.terminal import console, end_with
        from outrider.results.tables.fitting import print_sheet

        found = [one for one in drafters_of(self.target, online=self.online) if one.is_ready or not self.ready]
        print_sheet(sheet_of(self.target, found), console(sys.stdout))
        end_with(listed(self.target, found), "")
