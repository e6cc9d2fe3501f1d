"""The audit of a server by text: its greedy answers against plain decoding's, character by character.

Plain decoding is a second server without speculation, or our own engine on the same weights. A first difference is

    unstable    if the server, or plain decoding, does not repeat its own text when asked twice more
    a tie       if plain decoding was within the margin (in nats) of the server's token there; where logits are told
                rounded, as vLLM's to bf16, within two of their steps if that is more
    violation   otherwise, also where nobody tells log-probabilities

Log-probabilities are plain decoding's; the server's own count only where plain decoding tells none. Every audit also
plants a fault: one text with a character changed, which must be called a violation.

Example: "the cat" against "the car", with log-probabilities -0.70 of " cat" and -0.72 of " car", is a tie at 0.05 nats.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final, Literal, NamedTuple

from outrider.audit.cells import Bench
from outrider.audit.config import AuditConfig
from outrider.audit.report import AuditReport, Finding, Layer, Verdict, combined, detectable_rate
from outrider.audit.requests import Requests, asked_texts, identity_of
from outrider.audit.servers.writers import Choices, OwnWriter, Prompt, ServerWriter, Writer
from outrider.audit.settings import loaded_target, plain_settings
from outrider.bench.serving.endpoint import endpoint_of
from outrider.errors import ConfigError, OutriderError, RunError
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import collect_manifest

__all__ = ["audit_server", "compared", "step_of"]

Kind = Literal["equal", "tie", "violation", "unstable"]
VERDICTS: dict[Kind, Verdict] = {"equal": "PASS", "tie": "PASS", "violation": "FAIL", "unstable": "INCONCLUSIVE"}
NUM_REPEATS = 2
NUM_STEPS, STEPS, LEAST_APART, TOLERANCE = 2, (0.5, 0.25, 0.125, 0.0625, 0.03125), 3, 1e-4
"""Steps of logits within which two can tie; steps that are looked for; differences that tell one; their error, nats."""
SPECULATION: Final = "speculation"
OTHER_ENGINE: Final = "; the two are different engines, which round differently: give a --baseline of the same engine"
UNTOLD: Final = "whether it drafts, the server does not tell"


class Difference(NamedTuple):
    """One text against another; `place` is the first character that differs."""

    kind: Kind
    place: int
    detail: str


class Found(NamedTuple):
    """All findings up to now: comparisons, the planted fault, and whether the server drafts."""

    findings: list[Finding]
    controls: list[Finding]
    drafts: list[Finding]


@dataclass
class Altered(Writer):
    """A writer whose text has one character changed: the planted fault."""

    inner: Writer
    place: int
    name: str = "the altered text"

    def write(self, index: int) -> str:
        text = self.inner.write(index)
        other = "~" if text[self.place : self.place + 1] != "~" else "#"
        return text[: self.place] + other + text[self.place + 1 :]

    def choices(self, index: int, place: int) -> Choices | None:
        return self.inner.choices(index, place)


def audit_server(
    config: AuditConfig,
    *,
    listen: Listener = unheard,
    ended: Callable[[AuditReport], None] = lambda report: None,
) -> AuditReport:
    """Compare the texts of `config.endpoint` with those of `config.baseline`, or of our own plain decoding.

    Nothing is kept for a later run: by then another server may answer there.

    Args:
        listen: told of the progress.
        ended: told of the report, also where an error or an interruption ends the audit behind its first comparison.

    Raises:
        OutriderError: if a server cannot be used, or the target cannot be loaded.
    """
    start = monotonic()
    config.check_places()
    url = endpoint_of(config.endpoint or "").url
    with ExitStack() as held:
        writers = _writers(config, url, held, listen)
        names, plain, served = writers.names, writers.plain, writers.served
        findings: list[Finding] = []
        controls: list[Finding] = []
        drafts: list[Finding] = []

        def report() -> AuditReport:
            found = Found(findings, controls, drafts)
            return _report(config, url, plain.name, identity_of(writers.prompts), found, monotonic() - start)

        try:
            for index, name in enumerate(names):
                listen(Progress(index, len(names) + 1, name))
                findings.append(_finding(name, compared(plain, served, index, config.tie_margin)))
            drafts.append(_speculation(served.num_accepted()))
            listen(Progress(len(names), len(names) + 1, "a planted fault"))
            controls += _control(plain, findings, config.tie_margin)
        except (OutriderError, KeyboardInterrupt) as error:
            if not findings:
                raise
            ended(report())  # what was found is not lost
            if isinstance(error, KeyboardInterrupt):
                raise
            raise RunError(f"{error}; {len(findings)} of {len(names)} prompts were compared") from error
        found = report()
        ended(found)
        return found


class Writers(NamedTuple):
    """The two sides of a comparison, and what both are asked."""

    names: list[str]
    prompts: list[Prompt]
    plain: Writer
    served: ServerWriter


def _writers(config: AuditConfig, url: str, held: ExitStack, listen: Listener) -> Writers:
    def server(name: str, url: str, prompts: list[Prompt], model: str | None) -> ServerWriter:
        tokens, timeout_s = config.size[1], config.time_limit
        writer = ServerWriter(name, url, prompts, model=model, max_tokens=tokens, timeout_s=timeout_s)
        return held.enter_context(closing(writer))

    if config.baseline is not None:
        texts = asked_texts(config)
        names, prompts = list(texts), list[Prompt](texts.values())
        plain: Writer = server("the baseline", endpoint_of(config.baseline).url, prompts, config.baseline_model)
    else:
        target = loaded_target(config, listen)
        if target.tokenizer is None:
            raise ConfigError(f"target {config.target} has no tokenizer and so no text; give --baseline URL")
        requests = Requests.of(config, target)
        names, prompts = list(requests.names), list[Prompt](requests.prompts)
        plain = OwnWriter(Bench(config, target, requests))
    return Writers(names, prompts, plain, server("the server", url, prompts, config.endpoint_model))


def compared(plain: Writer, served: Writer, index: int, margin: float) -> Difference:
    """Compare two texts; a difference is judged.

    Args:
        margin: nats by which a token may be less probable than plain decoding's, and still be a tie; where logits are
            rounded, two of their steps at least, since reading another number of rows can move each of two by one.

    Raises:
        RunError: if a text cannot be had.
    """
    want, got = plain.write(index), served.write(index)
    if want == got:
        return Difference("equal", len(want), f"all {len(want)} characters are equal")
    place = next((at for at, (one, other) in enumerate(zip(want, got, strict=False)) if one != other), None)
    place = min(len(want), len(got)) if place is None else place
    where = f"character {place} differs ({_around(want, place)} became {_around(got, place)})"
    engines = {plain.engine, served.engine} - {None}
    hint = OTHER_ENGINE if len(engines) > 1 else ""
    for writer, text in ((served, got), (plain, want)):
        if any(writer.write(index) != text for _ in range(NUM_REPEATS)):
            return Difference("unstable", place, f"{where}, but {writer.name} does not repeat its own text")
    for writer, text, other in ((plain, want, got), (served, got, want)):
        choices = writer.choices(index, place)
        if choices is not None and choices.text == text:
            distance, step = _distance(choices, other), step_of(choices)
            by = f"by {writer.name}" + (f" in steps of {step:g}" if step else "")
            if distance is not None and distance <= max(margin, NUM_STEPS * step + TOLERANCE):
                return Difference("tie", place, f"{where}: a tie, {distance:.3g} nats apart {by}")
            said = "no likely token" if distance is None else f"{distance:.3g} nats apart"
            return Difference("violation", place, f"{where}: {said} {by}{hint}")
    return Difference("violation", place, f"{where}, and no log-probabilities explain it{hint}")


def _distance(choices: Choices, other: str) -> float | None:
    """Return by how many nats the token of another text lies below the best one; None if it is not among the choices.

    Where the other text has ended, any other token may be the end's.
    """
    ended = len(other) <= choices.offset
    found = [
        value for token, value in choices.others.items() if ended or (token and other.startswith(token, choices.offset))
    ]
    if not found:
        return None
    best = max(choices.own, *choices.others.values())
    return best - min(choices.own, max(found))


def step_of(choices: Choices) -> float:
    """Return the step in nats, a power of two, that all log-probabilities lie apart by multiples of; 0 for a fine one.

    Logits in bf16 between 16 and 32 are multiples of 1/8, and so are differences of their log-probabilities.
    """
    values = [choices.own, *choices.others.values()]
    apart = [abs(value - values[0]) for value in values[1:]]
    if len(apart) < LEAST_APART:
        return 0.0
    fits = (step for step in STEPS if all(abs(value - step * round(value / step)) < TOLERANCE for value in apart))
    return next(fits, 0.0) if any(apart) else 0.0


def _around(text: str, place: int) -> str:
    return repr(text[place : place + 12]) if place < len(text) else "the end"


def _finding(name: str, found: Difference) -> Finding:
    counts = {"num_answers": 1, "num_compared": found.place + (found.kind in ("tie", "violation"))}
    counts |= {f"num_{words}": found.kind == kind for kind, words in (("tie", "ties"), ("violation", "violations"))}
    if found.kind == "unstable":
        counts["num_compared"] = 0
    return Finding(
        name=name,
        verdict=VERDICTS[found.kind],
        detail=found.detail,
        counts={key: float(n) for key, n in counts.items()},
    )


def _control(plain: Writer, findings: list[Finding], margin: float) -> Iterator[Finding]:
    """Change a character in the middle of plain decoding's first text that has one: that must be a violation."""
    name = "a changed character"
    for index in range(len(findings)):
        length = len(plain.write(index))
        if length:
            found = compared(plain, Altered(plain, length // 2), index, margin)
            caught = found.kind == "violation" and found.place == length // 2
            verdict: Verdict = "PASS" if caught else "INCONCLUSIVE"
            yield Finding(name=name, verdict=verdict, detail=f"{'' if caught else 'not '}caught: {found.detail}")
            return


def _speculation(num_accepted: int | None) -> Finding:
    """Return whether the server drafted at all: if not, equal texts say nothing about its speculation."""
    if num_accepted == 0:
        said = "no drafted token was accepted, so speculation was not tried; turn it on, or give other prompts"
        return Finding(name=SPECULATION, verdict="INCONCLUSIVE", detail=said)
    if num_accepted is None:
        return Finding(name=SPECULATION, verdict="PASS", detail=UNTOLD)
    counts = {"num_accepted": float(num_accepted)}
    return Finding(
        name=SPECULATION, verdict="PASS", detail=f"{num_accepted} drafted tokens were accepted", counts=counts
    )


def _report(config: AuditConfig, url: str, plain: str, identity: str, found: Found, seconds: float) -> AuditReport:
    layer, controls = Layer.of("server", found.findings, ""), found.controls
    answers, characters, ties, violations = (
        layer.count(f"num_{name}") for name in ("answers", "compared", "ties", "violations")
    )
    told = f", {ties} of them with a tie" if ties else ""
    layer = Layer.of("server", found.findings, f"{characters} characters of {answers} answers are {plain}'s{told}")
    if layer.verdict == "PASS" and not characters:
        layer = replace(layer, verdict="INCONCLUSIVE", sentence="nothing was compared: every text is empty")
    if not controls:
        controls = [
            Finding(name="a changed character", verdict="INCONCLUSIVE", detail="not planted, for want of a text")
        ]
    drafted = "".join(f"; {one.detail}" for one in found.drafts)
    layers = (layer, Layer.of("controls", [*controls, *found.drafts], f"1 planted fault, caught{drafted}"))
    verdict = combined([one.verdict for one in layers])
    rate = detectable_rate(characters)
    worst = next((one for one in layers if one.verdict == verdict != "PASS"), None)
    seen = "" if rate is None else f"; a fault in 1 of {1 / rate:.0f} characters would have been seen with 95 %"
    seen += "".join(f"; {one.detail}" for one in found.drafts if one.detail == UNTOLD)
    return AuditReport(
        verdict=verdict,
        sentence=f"the text is plain decoding's{seen}" if worst is None else f"{worst.name}: {worst.sentence}",
        target=url,
        methods=("served",),
        unit="characters",
        num_compared=characters,
        num_ties=ties,
        num_violations=violations,
        rate=rate,
        layers=layers,
        manifest=collect_manifest(seed=config.seed, settings=plain_settings(config), workload_hash=identity),
        seconds=seconds,
    )
