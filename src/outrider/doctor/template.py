"""Findings on the chat template: was the drafter trained on conversations in another form?

A drafter has learnt the text around questions and answers too. Two sources say which template it knows: a template of
its own beside the weights, and the hash of the target's template in `training.json`. Where they differ from the
target's, and the drafter has one of its own, the target answers in that form too, and tau is compared. Where neither
says anything, the finding says so.

Example: a draft model with a ChatML template for a target whose template was replaced: tau 1.7, and 2.1 with its own.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, final

from torch import Tensor

from outrider.cache import CachePlan
from outrider.data.workloads import Conversation
from outrider.doctor.accuracy import Accuracy
from outrider.doctor.config import DoctorConfig
from outrider.doctor.finding import Finding
from outrider.doctor.trial import Trials, known_texts
from outrider.doctor.variant import Variant
from outrider.errors import CheckpointError, OutriderError
from outrider.formats.store import TRAINING
from outrider.records.json_fields import read_json
from outrider.records.provenance import template_hash
from outrider.target import SharedWeights, Target, TargetSession, TargetSpec

__all__ = ["own_template", "template_findings"]

CHECK: Final = "chat template"
BETTER_BY: Final = 1.05
"""Factor by which tau with the drafter's own template must be larger to call the target's wrong."""
UNRECORDED: Final = (
    "nothing beside the checkpoint says with which template it was trained; the target's own is used, "
    "and others are not tried"
)
REMEDY: Final = "give the target the chat template that the drafter was trained with, or train on the target's"


def own_template(directory: Path) -> str | None:
    """Return the chat template that lies beside a checkpoint; None without one."""
    file = directory / "chat_template.jinja"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        config = directory / "tokenizer_config.json"
        found = read_json(config).get("chat_template") if config.is_file() else None
    except (OSError, UnicodeDecodeError, CheckpointError):
        return None
    return found if isinstance(found, str) and found else None


def template_findings(
    directory: Path,
    trials: Trials,
    conversations: Sequence[Conversation],
    layers: Sequence[int],
    base: Accuracy,
    config: DoctorConfig,
    variants: Sequence[Variant],
) -> list[Finding]:
    """Return a finding on the template that the drafter knows, or that nothing says which."""
    tokenizer = trials.target.tokenizer
    ours, own, recorded = template_hash(tokenizer), own_template(directory), _recorded(directory)
    if tokenizer is None:
        return []
    if own is None and recorded is None:
        return [Finding(CHECK, "ok", UNRECORDED)]
    theirs = recorded if own is None else hashlib.sha256(own.encode()).hexdigest()
    if ours == theirs or (own is not None and own.strip() == str(tokenizer.chat_template or "").strip()):
        return [Finding(CHECK, "ok", f"the target's own, {_short(ours)}")]
    evidence = f"the target's is {_short(ours)}, the drafter knows {_short(theirs)}"
    if own is None:
        return [Finding(CHECK, "warn", f"{evidence}; tau is {base.tau:.2f} with the target's", REMEDY)]
    spoken = copy.copy(tokenizer)
    spoken.chat_template = own
    try:
        known = known_texts(_Spoken(trials.target, spoken), conversations, layers, num_tokens=config.max_new_tokens)
    except OutriderError as error:
        return [Finding(CHECK, "warn", f"{evidence}, which fails here: {error}", REMEDY)]
    found = trials.accuracy(known, variants)
    if found is None:
        return []
    evidence += f"; tau is {base.tau:.2f} with the target's and {found.tau:.2f} with its own"
    return [Finding(CHECK, "problem" if found.tau > BETTER_BY * base.tau else "warn", evidence, REMEDY)]


def _recorded(directory: Path) -> str | None:
    file = directory / TRAINING
    try:
        target = read_json(file).get("target") if file.is_file() else None
    except CheckpointError:
        return None
    found = target.get("template_hash") if isinstance(target, Mapping) else None
    return found if isinstance(found, str) else None


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:8]}.."


@final
class _Spoken(Target):
    """The same target with another tokenizer."""

    def __init__(self, target: Target, tokenizer: Any) -> None:
        self._target = target
        self._tokenizer = tokenizer

    @property
    def spec(self) -> TargetSpec:
        return self._target.spec

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        return self._target.plan(num_slots, capacity, tail)

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> TargetSession:
        return self._target.open(plan, feature_layers)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return self._target.decoding_threads()

    def project(self, states_RE: Tensor) -> Tensor:
        return self._target.project(states_RE)

    def shared_weights(self) -> SharedWeights:
        return self._target.shared_weights()
