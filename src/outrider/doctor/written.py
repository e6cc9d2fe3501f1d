"""Findings from what is written beside a checkpoint: the record of training against what was measured here.

    training.json   accuracy on held-out text, the length of training rows, prompts of ours among the training texts

Example: a record of 61 % right first guesses beside 5 % measured here is a problem.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from outrider.data.contamination import recorded_contamination
from outrider.doctor.accuracy import Accuracy
from outrider.doctor.finding import Finding
from outrider.doctor.heads.layer import section_of
from outrider.doctor.trial import Known
from outrider.errors import CheckpointError
from outrider.formats.locate import CONFIG
from outrider.formats.store import TRAINING
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["HOPELESS", "own_state_findings", "training_findings"]

MUCH_LESS: Final = 0.6
"""Share of the recorded accuracy below which other texts are no explanation."""
MUCH_LOST: Final = 0.5
"""Share of the accuracy with the target's states below which a head was hardly trained on its own."""
FEW: Final = 20
HOPELESS: Final = 0.05
"""Share of right first guesses that a drafter reaches without reading anything: the most frequent tokens."""


def training_findings(directory: Path, base: Accuracy | None, known: Known, target: Target) -> list[Finding]:
    """Return findings on accuracy against the record, on the target's weights, on lengths, and on contamination."""
    try:
        record = read_json(directory / TRAINING).plain() if (directory / TRAINING).is_file() else {}
    except CheckpointError as error:
        return [Finding("record", "warn", str(error), "delete it, or download it again")]
    accuracy = _accuracy(record, base)
    kinds = _kinds(record, target, is_low=any(one.level == "problem" for one in accuracy))
    return [*accuracy, *kinds, *_lengths(record, known), *_reach(directory, target), *_overlap(directory)]


def _accuracy(record: Mapping[str, Any], base: Accuracy | None) -> list[Finding]:
    if base is None:
        return []
    held_out = record.get("held_out")
    shares = held_out.get("conditional") if isinstance(held_out, Mapping) else None
    told = shares[0] if isinstance(shares, list) and shares and isinstance(shares[0], float) else None
    found = base.accepted[0]
    evidence = f"{found:.1%} of first guesses are right"
    if told is not None:
        evidence += f", {told:.1%} on held-out text in training"
        if found < MUCH_LESS * told:
            return [Finding("accuracy", "problem", evidence, UNLIKE_TRAINING)]
    if found < HOPELESS:
        return [Finding("accuracy", "problem", evidence, UNLIKE_TRAINING)]
    return [Finding("accuracy", "ok", evidence)]


def own_state_findings(base: Accuracy) -> list[Finding]:
    """Return a finding on the second guess of a head that reads its own state there, beside the target's state."""
    second = next((one for one in base.depths if one.depth == 2), None)
    if second is None or second.count < FEW or not second.taught:
        return []
    evidence = f"the second guess is right in {second.own:.1%}, and in {second.taught:.1%} with the target's own state"
    if second.own < MUCH_LOST * second.taught:
        remedy = "draft one token (num_nodes=1), or train with more depths (--num-depths)"
        return [Finding("own states", "warn", evidence, remedy)]
    return [Finding("own states", "ok", evidence)]


UNLIKE_TRAINING: Final = (
    "mend what is named above; if nothing is, the weights are not of this target, or were trained on other text"
)


def _kinds(record: Mapping[str, Any], target: Target, *, is_low: bool) -> list[Finding]:
    """Return a finding on the kind of the target's weights, then and now."""
    told = record.get("target")
    then = told.get("weights", told.get("dtype")) if isinstance(told, Mapping) else None
    now = target.spec.weights
    if not isinstance(then, str):
        return []
    evidence = f"the target's were {then} in training and are {now} here"
    if then == now:
        return [Finding("target's weights", "ok", f"{now}, as in training")]
    if is_low:
        remedy = "run the doctor with --weights bf16: if accuracy rises, train with the weights that you run"
        return [Finding("target's weights", "warn", evidence, remedy)]
    return [Finding("target's weights", "ok", evidence)]


def _reach(directory: Path, target: Target) -> list[Finding]:
    """Return a finding if the drafter stops before the target's longest text."""
    try:
        reach = section_of(read_json(directory / CONFIG).plain()).get("max_position_embeddings")
    except CheckpointError:
        return []
    most = target.spec.max_positions
    if type(reach) is not int or reach >= most:
        return []
    evidence = f"it reads texts of {reach} tokens, the target of {most}: behind that nothing is drafted"
    return [Finding("reach", "warn", evidence, "raise max_position_embeddings if its rope is made for longer texts")]


def _lengths(record: Mapping[str, Any], known: Known) -> list[Finding]:
    train = record.get("train")
    longest = train.get("row_length") if isinstance(train, Mapping) else None
    if type(longest) is not int:
        return []
    lengths = [len(text.known.tokens) for text in known.texts]
    beyond = sum(length > longest for length in lengths)
    evidence = f"trained on rows of {longest} tokens; the longest text here has {max(lengths)}"
    if beyond:
        remedy = "train on longer rows, or expect less acceptance behind that length"
        return [Finding("context", "warn", f"{evidence}, and {beyond} of {len(lengths)} are longer", remedy)]
    return [Finding("context", "ok", evidence)]


def _overlap(directory: Path) -> list[Finding]:
    try:
        recorded = recorded_contamination(directory)
    except CheckpointError:
        return []
    if recorded is None:
        return []
    share, count = recorded.get("share"), recorded.get("num_prompts")
    if not isinstance(share, int | float) or not isinstance(count, int):
        return []
    evidence = f"{share:.0%} of the benchmark's {count} prompts occur in the training texts"
    if share > 0:
        return [Finding("overlap", "warn", evidence, "test with --prompts of your own: figures on those are too good")]
    return [Finding("overlap", "ok", evidence)]
