"""The second layer: answers token by token against plain decoding's, the same loop with an empty draft.

Plain decoding decodes one request at a time, without a limit that a method could share. Where rows are batch invariant
every token must be equal. Elsewhere the first difference of an answer is judged (`outrider.results.equality.verdict`):
a tie, which measured rounding explains, or a violation. What follows a tie is not compared.

Example: 8 answers of 48 tokens, one of which parts at a tie in token 20: 7 * 48 + 21 tokens are compared, 27 skipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from outrider.audit.cells import Answers, Bench, Cell, Plant
from outrider.audit.config import Processing
from outrider.audit.kept import Kept
from outrider.audit.report import Finding
from outrider.errors import RunError
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.requests.events import Completion
from outrider.results.equality.summary import summarize_verdicts
from outrider.results.equality.verdict import Verdict, judge

__all__ = ["Texts"]


@dataclass(frozen=True, kw_only=True)
class PlainAnswer:
    """An answer of plain decoding."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finished: str | None


@dataclass(frozen=True, kw_only=True)
class PlainAnswers:
    """The answers to all prompts under one setting."""

    answers: tuple[PlainAnswer, ...]


@dataclass(frozen=True)
class Texts:
    """Plain decoding's answers, each decoded once, and comparisons with them."""

    bench: Bench
    kept: Kept = field(default_factory=Kept)
    _plain: dict[tuple[float, Processing], tuple[PlainAnswer, ...]] = field(default_factory=dict)

    def plain(self, cell: Cell) -> tuple[PlainAnswer, ...]:
        """Return plain decoding's answers to the requests of a cell.

        Raises:
            RunError: if the target's logits are not finite.
        """
        key = cell.temperature, cell.processing
        if key not in self._plain:
            alone = cell._replace(method="plain decoding", rule="coupled", batch=1)
            self._plain[key] = self.kept.piece(alone.name, PlainAnswers, lambda: self._decoded(alone)).answers
        return self._plain[key]

    def _decoded(self, alone: Cell) -> PlainAnswers:
        found = self.bench.answers(NoProposer(), alone, self.bench.params(alone)).completions
        for name, one in zip(self.bench.requests.names, found, strict=True):
            if one.error is not None:
                raise RunError(f"plain decoding of {name} fails, so there is nothing to compare with: {one.error}")
        return PlainAnswers(
            answers=tuple(
                PlainAnswer(prompt=tuple(one.prompt), tokens=tuple(one.tokens), finished=one.finished) for one in found
            )
        )

    def compared(self, proposer: Proposer, cell: Cell) -> Finding:
        """Return the comparison of all answers of a cell.

        Raises:
            ContractError: as `Bench.answers`.
        """
        plain = self.plain(cell)
        answers = self.bench.answers(proposer, cell, self.bench.params(cell))
        verdicts = list(self._verdicts(cell, plain, answers.completions))
        found = summarize_verdicts(verdicts, self.bench.requests.names)
        ties = f", {found.ties} numerical ties" if found.ties else ""
        detail = f"{found.num_compared} tokens of {len(verdicts)} answers are equal{ties}"
        if found.violations:
            detail = f"{found.violations} of {len(verdicts)} answers are not plain decoding's: {found.where}"
        return Finding(
            name=cell.name,
            verdict="FAIL" if found.violations else "PASS",
            detail=detail,
            counts=_counts(answers)
            | {
                "num_answers": len(verdicts),
                "num_compared": found.num_compared,
                "num_skipped": found.num_skipped,
                "num_ties": found.ties,
                "num_violations": found.violations,
            },
        )

    def differs(self, proposer: Proposer, cell: Cell, plant: Plant) -> bool:
        """Return whether an answer is called a violation when a fault is planted; each is judged until one is.

        Where rows are batch invariant, every difference is one.

        Raises:
            ContractError: as `Bench.answers`.
        """
        plain = self.plain(cell)
        answers = self.bench.answers(proposer, cell, self.bench.params(cell), plant)
        if self.bench.target.spec.batch_invariant:
            return any(want.tokens != tuple(got.tokens) for want, got in zip(plain, answers.completions, strict=True))
        return any(one.kind == "violation" for one in self._verdicts(cell, plain, answers.completions))

    def _verdicts(self, cell: Cell, plain: Sequence[PlainAnswer], found: Sequence[Completion]) -> Iterator[Verdict]:
        for want, got, params in zip(plain, found, self.bench.params(cell), strict=True):
            verdict = judge(self.bench.target, want.prompt, params, want.tokens, got.tokens, num_slots=cell.batch)
            if verdict.kind == "exact" and want.finished != got.finished:
                verdict = Verdict(
                    kind="violation", position=len(got.tokens), num_compared=verdict.num_compared, num_skipped=0
                )
            yield verdict


def _counts(answers: Answers) -> dict[str, float]:
    return {"num_drafted": answers.num_drafted, "num_accepted": answers.num_accepted}
