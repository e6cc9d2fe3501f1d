"""The law of sampled answers, for rules under which a text is not a function of its seed (`rejection`, `block`).

Let p be the target's distribution of a token given all before it, x the token, and F(x) the mass of the tokens that
come before x in some order. With v uniform, u = F(x) + v p(x) is uniform on [0, 1], and independent of the u before it,
exactly if the text has the target's law (Rosenblatt, 1952). Two orders are used, that of falling probability and a
shuffled one. Answers have a fixed length and a seed each, so the number of tokens is fixed too.

With D the largest distance of the empirical distribution of n values from the uniform one, chance exceeds it with a
probability of at most 2 exp(-2 n D^2) (Massart, 1990), at any n. Holm's procedure over all tests keeps the probability
of any false alarm in an audit at or below alpha.

Example: n = 800 and D = 0.1 give 2 exp(-16) = 2e-7.

Shapes: V vocabulary.
"""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from outrider.audit.cells import Bench, Cell, Plant
from outrider.draft import Draft
from outrider.errors import RunError
from outrider.params import SamplingParams
from outrider.processors.start import start_processors
from outrider.proposer import Proposer
from outrider.requests.events import Completion
from outrider.sampling import distribution
from outrider.target import Target

__all__ = ["ORDERS", "Sample", "chance_of", "holm", "largest_distance", "sampled"]

LEAST_TOKENS: Final = 768
ROWS: Final = 16
ORDERS: Final = ("falling", "shuffled")


class Sample(NamedTuple):
    """Test of one cell: for each order, the distance from uniform and the chance of it.

    num_tokens   tokens of all answers
    """

    num_tokens: int
    num_drafted: int
    num_accepted: int
    distances: tuple[float, ...]
    chances: tuple[float, ...]


def sampled(bench: Bench, proposer: Proposer, cell: Cell, plant: Plant = lambda engine: None) -> Sample:
    """Decode answers of a fixed length, and test their law.

    Raises:
        ContractError: as `Bench.answers`.
        RunError: if an answer ends in an error.
    """
    requests = bench.requests
    repeats = -(-LEAST_TOKENS // (len(requests.prompts) * requests.max_tokens))
    params = [
        requests.params(index, cell.temperature, cell.processing, repeat=repeat + 1, ignore_eos=True)
        for repeat in range(repeats)
        for index in range(len(requests.prompts))
    ]
    answers = bench.answers(proposer, cell, params, plant)
    values = list(_values(bench.target, answers.completions, params))
    distances = tuple(largest_distance(side) for side in zip(*values, strict=True))
    return Sample(
        num_tokens=len(values),
        num_drafted=answers.num_drafted,
        num_accepted=answers.num_accepted,
        distances=distances,
        chances=tuple(chance_of(distance, len(values)) for distance in distances),
    )


def largest_distance(values: Sequence[float]) -> float:
    """Return the largest distance of the empirical distribution from the uniform one (Kolmogorov's D).

    >>> largest_distance([0.5])
    0.5
    """
    ordered, count = sorted(values), len(values)
    return max(max((place + 1) / count - value, value - place / count) for place, value in enumerate(ordered))


def chance_of(distance: float, count: int) -> float:
    """Return a bound on the probability of such a distance, or a larger one, of `count` uniform values."""
    return min(1.0, 2 * math.exp(-2 * count * distance**2))


def holm(chances: Sequence[float], alpha: float) -> list[bool]:
    """Return which tests are rejected, with a probability of at most `alpha` that a true one is among them.

    >>> holm([0.03, 0.01], 0.05), holm([0.03, 0.04], 0.05)
    ([True, True], [False, False])
    """
    rejected = [False] * len(chances)
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        if chances[place] > alpha / (len(chances) - rank):
            break
        rejected[place] = True
    return rejected


def _values(
    target: Target, answers: Sequence[Completion], params: Sequence[SamplingParams]
) -> Iterator[tuple[float, ...]]:
    """Yield u in each order, for every token of every answer."""
    draw = random.Random(0)
    ranks_V = torch.randperm(target.spec.vocab_size, generator=torch.Generator().manual_seed(0))
    for answer, one in zip(answers, params, strict=True):
        if answer.error is not None:
            raise RunError(f"an answer cannot be tested: {answer.error}")
        for token, p_V in zip(answer.tokens, _laws(target, answer, one), strict=True):
            v, p = draw.random(), float(p_V[token])
            above = float(p_V[(p_V > p) | ((p_V == p) & (ranks_V < ranks_V[token]))].sum())
            before = float(p_V[ranks_V < ranks_V[token]].sum())
            yield above + v * p, before + v * p


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
