"""The diagnosis of a drafter: why is it accepted so seldom, and what would mend it?

The target answers some prompts once. Along these texts the checkpoint drafts as it is, and then in many variants, each
with one thing read or arranged differently (`outrider.doctor.heads`). A variant counts as the cause only if it fits the
texts better by more than chance (`outrider.doctor.causes`).

    1. is it this target's?             fingerprint, sizes, tokens
    2. does it load?                    if not, does a variant?
    3. accuracy at every depth          with the target's states, and with its own
    4. variants                         the best first, until none is better
    5. what the record of training says, and what this machine needs

Example: `diagnose(DoctorConfig(target="smollm2-135m", drafter="smollm2-135m/mtp")).findings` has no problem.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from outrider.data.workloads import CATEGORIES, Conversation, load_category, load_prompts
from outrider.doctor.accuracy import Accuracy, DepthAccuracy
from outrider.doctor.causes import Listen, Search, cause_finding, search, states_finding, undecided_findings
from outrider.doctor.config import DoctorConfig
from outrider.doctor.finding import Finding, ordered
from outrider.doctor.fix import fixed_place, write_fixed
from outrider.doctor.heads.kinds import Kind, kind_of, method_of
from outrider.doctor.price import price_finding
from outrider.doctor.settings import narrow_findings, settings_findings
from outrider.doctor.stored import tensor_findings
from outrider.doctor.template import template_findings
from outrider.doctor.trial import Known, Trials, known_texts
from outrider.doctor.variant import Config, Variant, is_large
from outrider.doctor.written import own_state_findings, training_findings
from outrider.errors import CheckpointError, ConfigError, OutriderError, on_one_line
from outrider.formats.locate import CONFIG, locate
from outrider.formats.store import check_target
from outrider.models.spec import DecoderSpec
from outrider.proposers import known_method, proposer_class
from outrider.proposers.method_spec import method_specs, with_heads
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["Diagnosis", "diagnose", "diagnosed", "texts_for"]

MOST_LETTERS: Final = 1500
"""Longest prompt of ours that is used: a diagnosis should take seconds."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result.

    method      the drafter's method
    checkpoint  its directory
    tau         tokens per target forward; None if it does not load
    depths      accuracy by depth, as the checkpoint is now
    findings    problems first
    fixed_tau   tau with all remedies that were found by trial; None without any
    output      directory of the corrected copy, if one was written
    """

    target: str
    method: str
    checkpoint: str
    num_prompts: int
    num_positions: int
    tau: float | None
    depths: tuple[DepthAccuracy, ...]
    findings: tuple[Finding, ...]
    fixed_tau: float | None = None
    fixed_depths: tuple[DepthAccuracy, ...] = ()
    output: str | None = None


def texts_for(target: Target, config: DoctorConfig, layers: Sequence[int], listen: Listen) -> Known:
    """Let the target answer the prompts, and keep its states at these feature layers."""
    total = config.num_prompts * config.max_new_tokens
    return known_texts(
        target,
        _prompts(config),
        layers,
        num_tokens=config.max_new_tokens,
        told=lambda count: listen(count, total, "the target answers"),
    )


class _Drafter(NamedTuple):
    """The checkpoint to diagnose, its method and further settings."""

    method: str
    settings: dict[str, Any]
    directory: Path
    kind: Kind


def diagnose(config: DoctorConfig, listen: Listen = lambda done, total, words: None) -> Diagnosis:
    """Load the target and return the diagnosis of the drafter.

    Raises:
        ConfigError, CheckpointError: if the target does not load, or there is no such checkpoint.
        RunError: if a corrected copy cannot be written.
    """
    from outrider.targets import target_of

    return diagnosed(target_of(config, lambda at: listen(*at)), config, listen)


def diagnosed(
    target: Target,
    config: DoctorConfig,
    listen: Listen = lambda done, total, words: None,
    known: Known | None = None,
) -> Diagnosis:
    """Return the diagnosis of a drafter of a loaded target.

    Args:
        known: texts that the target wrote before, with the states of every layer that a variant may read.
    """
    drafter = _drafter(config.drafter, target)
    if config.fix:
        fixed_place(drafter.directory, config)  # what exists is refused before anything takes time
    findings = _other_target(drafter, target)
    strangers = [_without_fingerprint()] if findings else []
    known = known or texts_for(target, config, drafter.kind.feature_layers(target.spec.num_layers), listen)
    with tempfile.TemporaryDirectory(prefix="outrider-doctor-") as scratch:
        trials = Trials(target, drafter.method, drafter.settings, drafter.directory, Path(scratch))
        findings += [*tensor_findings(drafter.directory), *_stored(drafter, target)]
        base = trials.accuracy(known, strangers)
        reason = trials.reason
        found = _searched(trials, drafter, known, base, strangers, listen)
        findings += map(cause_finding, found.causes)
        states = states_finding(trials, known, strangers) if base and not found.causes and not strangers else None
        if states is not None:
            findings.append(states)
        if states is None or states.level == "ok":  # a stranger's readings are all alike
            findings += undecided_findings(found.undecided)
        if base is None:
            remedy = "mend what is named above" if found.causes else "correct what the message names"
            findings.append(Finding("loading", "problem", reason, remedy))
        findings += _measured(trials, drafter, known, base, strangers, config)
    best = found.causes[-1].after if found.causes else None
    output = None
    if config.fix and found.causes:
        output = write_fixed(drafter.directory, [one.variant for one in found.causes], config)
    return Diagnosis(
        target=target.spec.name,
        method=drafter.method,
        checkpoint=str(drafter.directory),
        num_prompts=len(known.texts),
        num_positions=base.num_positions if base else 0,
        tau=base.tau if base else None,
        depths=base.depths if base else (),
        findings=tuple(ordered(findings)),
        fixed_tau=best.tau if best else None,
        fixed_depths=best.depths if best else (),
        output=None if output is None else str(output),
    )


def _drafter(text: str, target: Target) -> _Drafter:
    """Return the checkpoint that a text names.

    Raises:
        ConfigError: for a method without a checkpoint.
        CheckpointError: if there is no such checkpoint.
    """
    settings: dict[str, Any] = {}
    if known_method(text.partition(":")[0].strip()) is None or Path(text).is_dir():
        directory = locate(text)
        method = method_of(directory)
    else:
        [choice] = with_heads(method_specs([text]), target)
        method, settings = choice.name, dict(choice.settings)
        if proposer_class(method).shipped is None or settings.get("checkpoint") is None:
            raise ConfigError(f"method '{text}' has no checkpoint to diagnose; give the directory or hub id of one")
        directory = locate(str(settings.pop("checkpoint")))
    kind = kind_of(method)
    if kind is None:
        raise ConfigError(f"checkpoints of method '{method}' cannot be diagnosed; try `outrider bench` instead")
    return _Drafter(method, settings, directory.absolute(), kind)


def _prompts(config: DoctorConfig) -> list[Conversation]:
    """Return the prompts, the categories in turn.

    Raises:
        ConfigError: if they cannot be read.
    """
    if config.prompts:
        read = [one for path in config.prompts for one in load_prompts(path)]
        return read[: config.num_prompts]
    pools = [[one for one in load_category(name) if len(one.turns[0]) <= MOST_LETTERS] for name in CATEGORIES]
    turns = [pool[at] for at in range(max(map(len, pools))) for pool in pools if at < len(pool)]
    return turns[: config.num_prompts]


def _other_target(drafter: _Drafter, target: Target) -> list[Finding]:
    """Return a finding if the checkpoint says that it was trained for another target."""
    try:
        check_target(read_json(drafter.directory / CONFIG), target, drafter.directory)
    except CheckpointError as error:
        remedy = "load it with its own target, or train one for this target (outrider train)"
        return [Finding("target", "problem", on_one_line(str(error), 300).partition(";")[0], remedy)]
    return []


def _stored(drafter: _Drafter, target: Target) -> list[Finding]:
    """Return findings on the files alone; what cannot be read is said when it does not load."""
    try:
        return drafter.kind.stored_findings(drafter.directory, target)
    except CheckpointError:
        return []


def _without_fingerprint() -> Variant:
    """Return the variant that lets a stranger load, so that its accuracy can be measured all the same."""

    def change(config: Config) -> None:
        own = config.get("outrider")
        if isinstance(own, dict):
            own.pop("target_fingerprint", None)

    return Variant(check="target", now="of another target", instead="taken all the same", remedy="", config=change)


def _searched(
    trials: Trials, drafter: _Drafter, known: Known, base: Accuracy | None, kept: Sequence[Variant], listen: Listen
) -> Search:
    """Return what the variants of this kind of drafter say."""
    target = trials.target
    try:
        variants = drafter.kind.variants(drafter.directory, target, _spec_of(target))
    except OutriderError:  # what is wrong was said when it did not load
        return Search((), ())
    if is_large(drafter.directory):  # modules among the layers of their target: a copy for each variant is too much
        variants = [one for one in variants if one.tensors is None]
    return search(trials, variants, known, base, kept, listen)


def _measured(
    trials: Trials,
    drafter: _Drafter,
    known: Known,
    base: Accuracy | None,
    kept: Sequence[Variant],
    config: DoctorConfig,
) -> list[Finding]:
    """Return findings on what was measured: against training, with its own states, by settings, and its price."""
    findings = training_findings(drafter.directory, base, known, trials.target)
    if base is None:
        return findings
    if drafter.kind.RECURRENT:
        findings += own_state_findings(base)
    layers = drafter.kind.feature_layers(trials.target.spec.num_layers)
    prompts = _prompts(config)
    findings += template_findings(drafter.directory, trials, prompts, layers, base, config, kept)
    findings += settings_findings(trials, prompts, layers, base, config, kept)
    findings += narrow_findings(trials, known, base, kept)
    return [*findings, price_finding(trials.target, trials.load(kept), drafter.method, known, base.tau)]


def _spec_of(target: Target) -> DecoderSpec | None:
    """Return the target's own sizes, if it is of the Llama family."""
    if target.native is not None:
        return target.native.spec
    directory = target.checkpoint()
    try:
        return None if directory is None else DecoderSpec.from_config_file(directory)
    except CheckpointError:
        return None
