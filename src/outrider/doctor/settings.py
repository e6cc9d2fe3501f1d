"""Settings that change the acceptance of a drafter: those of generation, and the bits of its weights.

Servers apply `generation_config.json` unless a request says otherwise. A greedy draft matches a sampled token less
often, and a penalty moves the target away from what its drafter has learnt.

Example: `{"temperature": 0.7, "repetition_penalty": 1.1}` brought tau from 2.1 to 1.6: a warning.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from outrider.data.workloads import Conversation
from outrider.doctor.accuracy import Accuracy, z_score
from outrider.doctor.config import DoctorConfig
from outrider.doctor.finding import Finding
from outrider.doctor.trial import Known, Trials, known_texts
from outrider.doctor.variant import Variant
from outrider.env import draft_weights
from outrider.errors import CheckpointError, OutriderError
from outrider.params import SamplingParams
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["asked_settings", "narrow_findings", "settings_findings"]

FILE: Final = "generation_config.json"
NAMES: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
WHOLE: Final = "target"
LITTLE: Final = 0.03
"""Relative loss of right guesses below which rounding does not matter."""
MUCH_LESS: Final = 0.85
"""Share of the greedy tau below which the settings are worth a warning."""


def narrow_findings(trials: Trials, known: Known, base: Accuracy, variants: Sequence[Variant]) -> list[Finding]:
    """Return a finding on what a drafter loses by the few bits that its weights are kept in on the CPU."""
    bits = draft_weights()
    if bits == WHOLE or trials.target.spec.device.type != "cpu":
        return []
    with _variable("OUTRIDER_DRAFT_WEIGHTS", WHOLE):
        found = trials.accuracy(known, variants)
    if found is None:
        return []
    evidence = f"right first guesses: {base.accepted[0]:.1%} in {bits}, {found.accepted[0]:.1%} in the target's dtype"
    loses = found.mean_accepted > (1 + LITTLE) * base.mean_accepted and z_score(found, base) > 2
    if loses:
        remedy = f"set OUTRIDER_DRAFT_WEIGHTS={'int8' if bits == 'int4' else WHOLE}: these weights bear no rounding"
        return [Finding("drafter's weights", "warn", evidence, remedy)]
    return [Finding("drafter's weights", "ok", evidence)]


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def asked_settings(target: Target, config: DoctorConfig) -> dict[str, float]:
    """Return the settings that the user gives, else those of the target's file; empty where they are greedy."""
    given = {"temperature": config.temperature, "repetition_penalty": config.repetition_penalty}
    asked = {name: value for name, value in given.items() if value is not None} or _filed(target)
    changes = asked.get("temperature", 0.0) > 0 or asked.get("repetition_penalty", 1.0) != 1.0
    return asked if changes else {}


def _filed(target: Target) -> dict[str, float]:
    source = target.spec.source
    file = Path(source or "") / FILE
    if source is None or not file.is_file():
        return {}
    try:
        values: dict[str, Any] = read_json(file).plain()
    except CheckpointError:
        return {}
    found = {name: values[name] for name in NAMES if isinstance(values.get(name), int | float)}
    if values.get("do_sample") is not True:  # then only the penalty counts
        found = {name: value for name, value in found.items() if name == "repetition_penalty"}
    return found


def settings_findings(
    trials: Trials,
    conversations: Sequence[Conversation],
    layers: Sequence[int],
    base: Accuracy,
    config: DoctorConfig,
    variants: Sequence[Variant],
) -> list[Finding]:
    """Return a finding on tau with these settings beside greedy tau; none where the settings are greedy."""
    asked = asked_settings(trials.target, config)
    if not asked:
        return []
    words = ", ".join(f"{name} {value:g}" for name, value in asked.items())
    try:
        params = SamplingParams(**asked)  # type: ignore[arg-type]  # checked there
        known = known_texts(trials.target, conversations, layers, num_tokens=config.max_new_tokens, settings=params)
    except OutriderError as error:
        return [Finding("generation settings", "warn", f"{words}: {error}", f"correct {FILE}, or the option")]
    found = trials.accuracy(known, variants)
    if found is None:
        return []
    evidence = f"tau {found.tau:.2f} with {words}, {base.tau:.2f} with greedy decoding"
    if found.tau < MUCH_LESS * base.tau:
        remedy = (
            "expect less acceptance with these settings, or set temperature 0 and repetition_penalty 1 where you can"
        )
        return [Finding("generation settings", "warn", evidence, remedy)]
    return [Finding("generation settings", "ok", evidence)]
