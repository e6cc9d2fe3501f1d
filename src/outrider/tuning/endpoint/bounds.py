"""Tokens a step of methods along the server's texts, where no cost of a step is known.

A lookup drafts without weights. If a step of it verifies no more rows on average than a step of the server does now, it
takes no longer, and so gains at least tau over tau.

Example: the server writes 1.6 tokens a step with 5 rows; prompt lookup of 3 nodes writes 2.0 with 3.1: at least 1.25.
"""

from collections.abc import Mapping, Sequence

from outrider.tuning.candidates import Family, Setting
from outrider.tuning.endpoint.verdict import Bound
from outrider.tuning.replays.kept import Replays
from outrider.tuning.replays.replay import Key, Walk, walked
from outrider.tuning.replays.texts import Text

__all__ = ["bounds_of", "walks_of"]


def bounds_of(
    families: Sequence[Family], replays: Replays, texts: Mapping[Key, Text], *, tau: float, rows: float
) -> list[Bound]:
    """Return the lookups that verify no more rows a step than the server does.

    Args:
        tau: the server's tokens a step.
        rows: the server's rows a step, the root included.
    """
    found = []
    for family in families:
        for setting in family.settings if family.deepest.spec.num_bytes == 0 else ():
            steps = [step for walk in walks_of(family, setting, replays, texts) for step in walk]
            own_tau = sum(step.num_emitted for step in steps) / len(steps)
            own_rows = 1 + sum(step.num_nodes for step in steps) / len(steps)
            if own_rows <= rows:
                found.append(Bound(setting.text, own_tau, own_tau / tau))
    return found


def walks_of(family: Family, setting: Setting, replays: Replays, texts: Mapping[Key, Text]) -> list[Walk]:
    """Return the steps of every answer; of a method that learns, those at the fewest requests."""
    reaches = replays.reaches.get(family.base)
    if reaches is not None:
        depth = setting.depth or family.deepest.spec.max_nodes
        return [walked(text, reaches[key], depth) for key, text in texts.items()]
    by_batch = replays.walks[setting.text]
    return list(by_batch[min(by_batch)].values())
