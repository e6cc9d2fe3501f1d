"""The contract of a method's class on a tiny target, and proposers that break it and must be seen.

`outrider.testing.check_contract` runs all its rules; a method that breaks one is named with the rule and what was seen.

Example: a class whose `propose` raises gives "C8: propose(slots=[0], ...) raised KeyError: 3 (at mine.py:41)".
"""

from collections.abc import Sequence
from typing import final

from outrider.audit.limits import time_limit
from outrider.audit.report import Finding
from outrider.draft import Draft, Tree
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.sampling import SamplingParams
from outrider.testing import ContractError, check_contract, tiny_target

__all__ = ["contract_controls", "kept_contract"]


def kept_contract(method: str, proposer_class: type[Proposer], seconds: float, num_cases: int = 1) -> Finding:
    """Return whether a method's class keeps the contract."""
    name = f"{method}, contract"
    try:
        with time_limit(seconds):
            report = check_contract(proposer_class, num_cases, tiny_target(max_positions=64))
    except ContractError as error:
        return Finding(name=name, verdict="FAIL", detail=str(error))
    counts: dict[str, float] = {
        "num_cases": len(report.cases),
        "num_drafted": sum(case.num_drafted for case in report.cases),
        "num_accepted": sum(case.num_accepted for case in report.cases),
    }
    return Finding(name=name, verdict="PASS", detail=str(report).partition("\n")[0], counts=counts)


@final
class _Overlong(Proposer):
    """Drafts one node more than its limit."""

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=2)

    def open(self, plan: SessionPlan) -> Session:
        return _Drafts(plan, extra=1)


@final
class _Impossible(Proposer):
    """Drafts a token that the target does not have."""

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=2)

    def open(self, plan: SessionPlan) -> Session:
        return _Drafts(plan, token=10**6)


@final
class _Drafts(Session):
    """Drafts the same token again and again."""

    def __init__(self, plan: SessionPlan, *, token: int = 1, extra: int = 0) -> None:
        self.plan, self.token, self.extra = plan, token, extra

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: object) -> None:
        return

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        counts = [min(limit.num_nodes, limit.max_depth) + self.extra for limit in limits]
        return Draft.of_trees([Tree.chain([self.token] * count) for count in counts], self.plan.device)

    def observe(self, commits: Sequence[Commit], features_BMF: object) -> None:
        return

    def release(self, slot: int) -> None:
        return


def contract_controls() -> list[Finding]:
    """Check proposers that are wrong in one way: every one must be seen."""
    findings = []
    wrong: dict[str, type[Proposer]] = {"a draft past its limit": _Overlong, "an impossible token": _Impossible}
    for name, broken in wrong.items():
        found = kept_contract(name, broken, 60.0, num_cases=0)
        caught = found.verdict == "FAIL"
        findings.append(
            Finding(
                name=f"contract: {name}",
                verdict="PASS" if caught else "INCONCLUSIVE",
                detail=f"{'caught' if caught else 'not caught'}: {found.detail}",
            )
        )
    return findings
