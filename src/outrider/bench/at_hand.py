"""Which methods of a preset can run on this machine.

A preset names heads that a checkout holds and an installed package does not, and heads that are trained first. A method
that somebody asked for by name must run or fail; a preset's method without weights is left out, and one line says so
and how to get them. With the weights there, the same command measures what was left out.

    left out: eagle3, mtp: no smollm2-135m/eagle3, smollm2-135m/mtp on this machine; `outrider fetch heads ...`
"""

import logging
from collections.abc import Sequence

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.locate import EMBEDDED, FETCH, locate
from outrider.proposers.method_spec import MethodSpec, with_heads
from outrider.target import Target

__all__ = ["at_hand"]

log = logging.getLogger(__name__)


def at_hand(
    choices: Sequence[MethodSpec], target: Target, from_preset: bool = True
) -> tuple[list[MethodSpec], tuple[str, ...]]:
    """Return the choices whose weights are here, with their checkpoints settled, and a note on each kind left out.

    Raises:
        ConfigError: if they are not `from_preset` and a checkpoint is needed that is not shipped for this target.
    """
    if not from_preset:
        return with_heads(choices, target), ()
    found: list[MethodSpec] = []
    missing: dict[str, list[tuple[str, str]]] = {FETCH: [], "train them first (docs/guides/train.md)": []}
    for choice in choices:
        checkpoint = str(choice.settings.get("checkpoint", ""))
        try:
            [settled] = with_heads([choice], target)
            if checkpoint:
                locate(checkpoint)
        except (CheckpointError, ConfigError):
            shipped = not checkpoint or checkpoint.partition("/")[0] in EMBEDDED
            missing[[*missing][0 if shipped else 1]].append((choice.name, checkpoint or "head of its kind"))
        else:
            found.append(settled)
    notes = tuple(_note(left_out, remedy) for remedy, left_out in missing.items() if left_out)
    for note in notes:
        log.warning("%s", note)
    return found, notes


def _note(left_out: Sequence[tuple[str, str]], remedy: str) -> str:
    labels, names = (", ".join(dict.fromkeys(column)) for column in zip(*left_out, strict=True))
    return f"left out: {labels}: no {names} on this machine; {remedy}"
