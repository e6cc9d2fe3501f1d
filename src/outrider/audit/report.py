"""The result of an audit: a verdict, a line for each layer, and every comparison behind them.

    FAIL           a comparison found a text, a law or a draft that no rounding and no chance explains
    INCONCLUSIVE   none did, but it could have been missed: a planted fault was not caught, or nothing was accepted
    PASS           none did, and every planted fault was caught

Example: 1,500 equal tokens and no other one: a fault that changes one token in 500 or more would have been seen with a
probability of 95 %, since (1 - 1/500)^1500 = 0.05.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outrider.records.provenance import Manifest

__all__ = ["EXIT", "AuditReport", "Finding", "Layer", "Verdict", "combined", "detectable_rate"]

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
LayerName = Literal["rule", "contract", "text", "law", "controls", "server"]

EXIT: dict[Verdict, int] = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
"""Exit statuses of the command; 1, 2 and above 128 mean what they mean for every command."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison.

    name         setting that was compared
    verdict      its verdict
    detail       result, as a sentence
    counts       numbers behind it, by name
    """

    name: str
    verdict: Verdict
    detail: str
    counts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = {name: int(value) if float(value).is_integer() else value for name, value in self.counts.items()}
        object.__setattr__(self, "counts", whole)  # a count is the same before and behind a file of JSON


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of evidence, and its verdict in a sentence."""

    name: LayerName
    verdict: Verdict
    sentence: str
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, name: LayerName, findings: Sequence[Finding], sentence: str) -> "Layer":
        """Return the layer of some findings; where one is not a pass, the sentence is that one's."""
        verdict = combined([finding.verdict for finding in findings])
        worst = [finding for finding in findings if finding.verdict == verdict and verdict != "PASS"]
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        said = f"{worst[0].name}: {worst[0].detail}{more}" if worst else sentence
        return cls(name=name, verdict=verdict, sentence=said, findings=tuple(findings))

    def count(self, name: str) -> int:
        """Return the sum of a count over the findings."""
        return int(sum(finding.counts.get(name, 0) for finding in self.findings))


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """A whole audit.

    unit         unit of the counts; characters where only texts are known
    rate         share of wrong ones that would have been seen with 95 %; None where no text was compared
    distance     distance of a law that would have been seen with 95 % in every test; None where none was tested
    manifest     settings, versions and hardware
    seconds      time that the audit took
    """

    schema: str = "outrider.audit/1"
    verdict: Verdict
    sentence: str
    target: str
    methods: tuple[str, ...]
    unit: Literal["tokens", "characters"] = "tokens"
    num_compared: int
    num_ties: int
    num_violations: int
    rate: float | None
    distance: float | None = None
    layers: tuple[Layer, ...]
    manifest: Manifest
    seconds: float

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return EXIT[self.verdict]


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst verdict; nothing at all is a pass."""
    return "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def detectable_rate(num_compared: int) -> float | None:
    """Return the least share of wrong tokens that so many compared tokens show with 95 %; None without any.

    >>> round(detectable_rate(1500), 4)
    0.002
    """
    return 1 - 0.05 ** (1 / num_compared) if num_compared else None
