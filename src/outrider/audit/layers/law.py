"""The law of sampled answers, for rules under which a text is not a function of its seed (`rejection`, `block`).

Let p be the target's distribution of a token given all before it, x the token, and F(x) the mass of the tokens that
come before x in some order. With v uniform, u = F(x) + v p(x) is uniform on [0, 1], and independent of the u before it,
exactly if the text has the target's law (Rosenblatt, 1952). Two orders are used, that of falling probability and a
shuffled one. Answers have a fixed length and a seed each, so the number of tokens is fixed too.

These rules also rely on the drafts: that a drafted token was drawn from the probabilities that the draft states. It is
tested in the same way, with the stated q in place of p; siblings are drawn without replacement.

Example: a draft that states q at temperature 1 and draws at 0.7 has too many u near 0 in falling order.

Shapes: V vocabulary.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from outrider.audit.cells import Bench, Cell, Plant
from outrider.audit.layers.uniform import Uniformity, detectable_distance, holm
from outrider.audit.report import Finding, Layer
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.errors import RunError
from outrider.params import SamplingParams
from outrider.processors.start import start_processors
from outrider.proposer import DraftLimit, Proposer
from outrider.requests.events import Completion
from outrider.sampling import distribution
from outrider.target import Target
from outrider.testing.checked import trees_of

__all__ = ["ORDERS", "Sample", "catches", "law_layer", "sampled"]

ROWS: Final = 16
ORDERS: Final = ("falling", "shuffled")
FEW_TOKENS, MANY_TOKENS = 192, 768
"""Tokens that show a planted fault: most take few."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Tests of one cell.

    text         tests of the tokens of all answers, one for each order
    drafts       tests of the drafted tokens, one for each order; empty where no draft states probabilities
    """

    num_drafted: int
    num_accepted: int
    text: tuple[Uniformity, ...]
    drafts: tuple[Uniformity, ...]

    @property
    def chances(self) -> list[float]:
        """The chance of every test."""
        return [test.chance for test in (*self.text, *self.drafts)]


def sampled(
    bench: Bench, proposer: Proposer, cell: Cell, num_tokens: int, plant: Plant = lambda engine: None
) -> Sample:
    """Decode answers of a fixed length with at least so many tokens in all, and test their law and their drafts'.

    Raises:
        ContractError: as `Bench.answers`.
        RunError: if an answer ends in an error.
    """
    requests = bench.requests
    repeats = -(-num_tokens // (len(requests.prompts) * requests.max_tokens))
    params = [
        requests.params(index, cell.temperature, cell.processing, repeat=repeat + 1, ignore_eos=True)
        for repeat in range(repeats)
        for index in range(len(requests.prompts))
    ]
    drawn = _Drawn(bench.target)

    def planted(engine: Engine) -> None:
        plant(engine)
        drawn.listen(engine)

    answers = bench.answers(proposer, cell, params, planted)
    return Sample(
        num_drafted=answers.num_drafted,
        num_accepted=answers.num_accepted,
        text=_tested(list(_values(bench.target, answers.completions, params))),
        drafts=_tested(drawn.values),
    )


def catches(bench: Bench, proposer: Proposer, cell: Cell, plant: Plant, level: float) -> str | None:
    """Return how a planted fault is caught, if it is; most are in a few tokens, and only the others take many.

    Args:
        level: chance at which a law counts as another, in the strictest of all tests.
    """
    for num_tokens in (FEW_TOKENS, MANY_TOKENS):
        sample = sampled(bench, proposer, cell, num_tokens, plant)
        for name, tests in (("the text", sample.text), ("drafted tokens", sample.drafts)):
            chance = min((test.chance for test in tests), default=1.0)
            if chance <= level:
                return f"chance gives such a law of {name} with at most {chance:.1g}"
    return None


def law_layer(samples: Mapping[str, Sample], alpha: float) -> Layer:
    """Return the verdict on all samples together."""
    rejected = iter(holm([chance for sample in samples.values() for chance in sample.chances], alpha))
    num_tests = sum(len(sample.chances) for sample in samples.values())
    findings, counts = [], {"text": 0, "drafts": 0}
    for name, sample in samples.items():
        for kind, tests in (("text", sample.text), ("drafts", sample.drafts)):
            wrong = sum(next(rejected) for _ in tests) > 0
            if tests:
                seen = detectable_distance(tests[0].num_values, num_tests, alpha)
                findings.append(_finding(name, kind, tests, seen, wrong))
                counts[kind] += tests[0].num_values
    drawn = f", and {counts['drafts']} drafted ones the law that they state" if counts["drafts"] else ""
    budget = f"false alarms of all {num_tests} tests together: at most {alpha:g}"
    return Layer.of("law", findings, f"{counts['text']} sampled tokens have the target's law{drawn} ({budget})")


def _finding(name: str, kind: str, tests: Sequence[Uniformity], seen: float, wrong: bool) -> Finding:
    worst = min(tests, key=lambda test: test.chance)
    of_text = "is not the target's" if wrong else "agrees with the target's"
    of_drafts = "is not what the drafts state" if wrong else "agrees with what the drafts state"
    said = of_text if kind == "text" else of_drafts
    return Finding(
        name=name if kind == "text" else f"{name}, drafts",
        verdict="FAIL" if wrong else "PASS",
        detail=f"the law of {worst.num_values} {'tokens' if kind == 'text' else 'drafted tokens'} {said}: "
        f"D={worst.distance:.3f}, which chance exceeds with a probability of at most {worst.chance:.2g}; a distance of "
        f"{seen:.2g} would have been seen",
        counts={"num_tokens": worst.num_values, "chance": worst.chance, "seen_distance": seen},
    )


def _tested(values: Sequence[tuple[float, ...]]) -> tuple[Uniformity, ...]:
    return tuple(Uniformity.of(side) for side in zip(*values, strict=True))


@final
class _Orders:
    """The two orders of a vocabulary: u of a token in each."""

    def __init__(self, target: Target) -> None:
        self._draw = random.Random(0)
        self._ranks_V = torch.randperm(target.spec.vocab_size, generator=torch.Generator().manual_seed(0))

    def values(self, p_V: Tensor, token: int) -> tuple[float, float]:
        """Return u; `p_V` is on the host, in float64, and need not sum to 1."""
        ranks_V, v, p, total = self._ranks_V, self._draw.random(), float(p_V[token]), float(p_V.sum())
        is_before_V = ranks_V < ranks_V[token]
        above = float(p_V[(p_V > p) | ((p_V == p) & is_before_V)].sum())
        return (above + v * p) / total, (float(p_V[is_before_V].sum()) + v * p) / total


@final
class _Drawn:
    """u of every token whose draft states the probabilities that it was drawn from."""

    def __init__(self, target: Target) -> None:
        self.values: list[tuple[float, float]] = []
        self._orders = _Orders(target)

    def listen(self, engine: Engine) -> None:
        """Note the drafts of an engine from now on."""
        propose: Callable[[Sequence[int], Sequence[DraftLimit]], Draft] = engine.session.propose

        def noted(slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
            draft = propose(slots, limits)
            if draft.probs_BMV is not None:
                self._note(draft, draft.probs_BMV)
            return draft

        vars(engine.session)["propose"] = noted

    def _note(self, draft: Draft, probs_BMV: Tensor) -> None:
        for place, tree in enumerate(trees_of(draft)):
            for row, children in enumerate(tree.children()):
                if not children:
                    continue
                left_V = probs_BMV[place, row].double().cpu().clone()
                for child in children:
                    token = tree.tokens[child - 1]
                    self.values.append(self._orders.values(left_V, token))
                    left_V[token] = 0.0


def _values(
    target: Target, answers: Sequence[Completion], params: Sequence[SamplingParams]
) -> Iterator[tuple[float, ...]]:
    """Yield u in each order, for every token of every answer."""
    orders = _Orders(target)
    for answer, one in zip(answers, params, strict=True):
        if answer.error is not None:
            raise RunError(f"an answer cannot be tested: {answer.error}")
        for token, p_V in zip(answer.tokens, _laws(target, answer, one), strict=True):
            yield orders.values(p_V, token)


def _laws(target: Target, answer: Completion, params: SamplingParams) -> Iterator[Tensor]:
    """Yield the target's distribution [V] of each token of an answer, on the host in float64."""
    spec = target.spec
    session = target.open(target.plan(1, len(answer.prompt) + len(answer.tokens), ROWS))
    state = start_processors(params, answer.prompt, target.tokenizer, spec.vocab_size, spec.eos_ids)
    session.prefill([0], [answer.prompt[:-1]])
    text = [answer.prompt[-1], *answer.tokens[:-1]]
    for start in range(0, len(text), ROWS):
        rows = text[start : start + ROWS]
        logits_MV = session.forward([0], [rows[0]], Draft.of_chains([rows[1:]], spec.device)).logits_BMV[0]
        for row in range(len(rows)):
            logits_V = logits_MV[row].double()
            if state is not None:
                logits_V = state.transform(logits_V)
                state.advance(answer.tokens[start + row])
            yield distribution(logits_V[None], params)[0].cpu()
        session.cache.extend([0], [len(rows)])
