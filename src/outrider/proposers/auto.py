"""The choice of a method where none is named: `load_proposer("auto", target)` and the default of `outrider generate`.

    1. what `outrider tune` found last for this target on this machine
    2. a head that is shipped for the target: of the default kind, else of the first registered kind that has one
    3. suffix decoding with the adaptive budget: it needs no weights, and stops where it does not pay

Example: for a directory of Qwen2.5-7B that was never tuned, `picked(target).text` is suffix decoding, with budget
"auto".
"""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

from outrider.costs.tuned import last_tuned
from outrider.errors import CheckpointError, ConfigError, on_one_line
from outrider.formats.locate import locate
from outrider.formats.shipped import shipped_head, short_name
from outrider.proposers import AUTO, DEFAULT_HEAD, DEFAULT_LOOKUP, REGISTRY, configure, proposer_class
from outrider.proposers.method_spec import MethodSpec, method_specs, written
from outrider.target import Target

__all__ = ["Pick", "check_method", "named_or_picked", "picked"]

log = logging.getLogger(__name__)


class Pick(NamedTuple):
    """A method and its budget.

    why   the reason, as the end of a sentence
    """

    spec: MethodSpec
    budget: Literal["fixed", "auto"]
    why: str

    @property
    def text(self) -> str:
        """The method as written on a command line."""
        return written(self.spec)


def picked(target: Target) -> Pick:
    """Pick the method for a target, and log in one line what was picked and why."""
    pick = _tuned(target) or _shipped(target) or _without_weights()
    adaptive = " with the adaptive budget" if pick.budget == "auto" else ""
    log.info("%s picked %s%s: %s", AUTO, pick.text, adaptive, on_one_line(pick.why))
    return pick


def check_method(text: str) -> None:
    """Refuse a method as written on a command line, before a target is loaded for it.

    Raises:
        ConfigError: for an unknown method or setting.
    """
    if text != AUTO:
        method_specs([text])


def named_or_picked(text: str, target: Target) -> Pick:
    """Return the method that is written on a command line, or pick one for "auto".

    Raises:
        ConfigError: for an unknown method or setting.
    """
    if text == AUTO:
        return picked(target)
    return Pick(method_specs([text])[0], "fixed", "it was named")


def _tuned(target: Target) -> Pick | None:
    """Return what was tuned last, unless its method or its checkpoint is gone."""
    tuned = last_tuned(target)
    if tuned is None:
        return None
    try:
        [spec] = method_specs([tuned.method])
        config = configure(spec.name, spec.settings)
        if spec.settings.get("checkpoint") is not None:
            locate(config.checkpoint)
    except (ConfigError, CheckpointError) as error:
        log.warning("what tuning found for %s cannot be used now: %s", target.spec.name, error)
        return None
    speedup = tuned.speedup_at(1)
    gain = "" if speedup is None else f", {speedup.point:.2f} times plain decoding at {_requests(speedup.concurrency)}"
    return Pick(spec, tuned.budget, f"outrider tune found it here on {tuned.date[:10]}{gain}")


def _requests(count: int) -> str:
    return "one request" if count == 1 else f"{count} requests"


def _shipped(target: Target) -> Pick | None:
    """Return the method of a head that is shipped for the target."""
    for name in (DEFAULT_HEAD, *REGISTRY):
        kind = proposer_class(name).shipped
        head = None if kind is None else shipped_head(kind, target)
        if head is not None:
            return Pick(MethodSpec(name, name, {}), "fixed", f"{_shown(head)} is shipped for this target")
    return None


def _shown(head: Path) -> str:
    return f"the head {short_name(head)}"


def _without_weights() -> Pick:
    spec = MethodSpec(DEFAULT_LOOKUP, DEFAULT_LOOKUP, {})
    why = "no head is shipped for this target and tune has not run; this needs no weights and stops where it costs"
    return Pick(spec, "auto", why)
