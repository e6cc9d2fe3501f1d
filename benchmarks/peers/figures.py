"""From measurements to figures: pure functions, no clock.

    end to end   tokens of all requests / seconds until the last one ended
    decoding     t0 = when the last request had its first tokens, t1 = when the last one ended:
                 tokens that came in after t0 / (t1 - t0)

Arrivals are read as a line between known points, so that a peer which only reports when its first token came and when
it ended can be compared too. A figure of a category is the geometric mean over its prompts of the median over repeats.
A ratio is taken pair by pair: same prompts, same repeat, seconds per token of the one over those of the other; then the
same median and mean, with the interval of `outrider.results.statistics`. Texts differ between engines where bfloat16
rounds a near tie differently; their token counts then may too, and rates are per token of each peer's own text.

Worked example: 64 tokens, one after 0.5 s and the last after 2.6 s, are 24.6 tokens/s end to end and 30 decoding.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from ledger import Answer, Cell, Key, Ledger, Measurement

from outrider.results.statistics import Interval, paired_speedup

ALL = "all"
MIXED = "mixed"
OURS = "outrider"

Rate = Callable[[Measurement], float | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method at a number of requests; rates in tokens per second, by category and over all.

    to_ours, to_own      decoding speed over Outrider's plain decoding, and over the peer's own
    to_ours_end_to_end   the same from prompt to end
    same_text, same_own  share of answers with the tokens of Outrider's and of the peer's own plain decoding
    num_agreeing         mean number of leading tokens that equal Outrider's plain decoding
    num_ended            answers that ended by themselves, of `num_answers`
    """

    key: Key
    num_requests: int
    decoding: dict[str, float | None]
    end_to_end: dict[str, float | None]
    to_ours: Interval | None
    to_own: Interval | None
    to_ours_end_to_end: Interval | None
    same_text: float | None
    same_own: float | None
    num_agreeing: float | None
    num_answers: int
    num_ended: int
    num_repeats: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A cell in which a peer decodes faster than every method of ours."""

    num_requests: int
    category: str
    winner: Key
    winner_rate: float
    ours: Key
    our_rate: float


def end_to_end(measurement: Measurement) -> float | None:
    return sum(len(answer.tokens) for answer in measurement.answers) / measurement.wall_s


def decoding(measurement: Measurement) -> float | None:
    """Return tokens per second after every request has its first; None if the peer does not tell."""
    lines = [answer.arrivals for answer in measurement.answers if answer.arrivals]
    if len(lines) < len(measurement.answers):
        return None
    start, end = max(line[0][0] for line in lines), max(line[-1][0] for line in lines)
    num_tokens = sum(line[-1][1] - tokens_by(line, start) for line in lines)
    return num_tokens / (end - start) if end > start and num_tokens > 0 else None


def tokens_by(line: tuple[tuple[float, int], ...], time_s: float) -> float:
    """Return the tokens received by a time, interpolated between known points."""
    before = [point for point in line if point[0] <= time_s]
    after = [point for point in line if point[0] > time_s]
    if not before:
        return 0.0
    if not after:
        return float(before[-1][1])
    (t0, n0), (t1, n1) = before[-1], after[0]
    return n0 + (n1 - n0) * (time_s - t0) / (t1 - t0)


def rows(ledger: Ledger, plain: str, eos: Iterable[int]) -> list[Row]:
    """Return one row for each method and number of requests that was measured."""
    table = _Table(ledger, plain, frozenset(eos))
    keys = sorted({(found.cell.num_requests, key) for (key, _), found in ledger.measurements.items()})
    return [table.row(key, num_requests) for num_requests, key in keys]


def losses(found: list[Row]) -> list[Loss]:
    """Return the cells where a peer decodes faster than our fastest, the worst first."""
    lost = []
    for num_requests, category in sorted({(row.num_requests, name) for row in found for name in row.decoding}):
        rates = {
            row.key: rate
            for row in found
            if row.num_requests == num_requests and (rate := row.decoding.get(category)) is not None
        }
        ours = max((key for key in rates if key.engine == OURS), key=rates.__getitem__, default=None)
        if ours is None:
            continue
        for key, rate in rates.items():
            if key.engine != OURS and rate > rates[ours]:
                lost.append(_loss(num_requests, category, key, ours, rates))
    return sorted(lost, key=lambda loss: loss.our_rate / loss.winner_rate)


def _loss(num_requests: int, category: str, winner: Key, ours: Key, rates: dict[Key, float]) -> Loss:
    return Loss(
        num_requests=num_requests,
        category=category,
        winner=winner,
        winner_rate=rates[winner],
        ours=ours,
        our_rate=rates[ours],
    )


def ratio(ledger: Ledger, key: Key, base: Key, num_requests: int) -> Interval | None:
    """Return the factor by which one row decodes faster than another, over the cells that both have."""
    own = [found for found in ledger.measurements.values() if found.key == key]
    return _paired(ledger, [found for found in own if found.cell.num_requests == num_requests], base, decoding)


def _paired(ledger: Ledger, own: list[Measurement], base: Key, rate: Rate) -> Interval | None:
    pairs: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for found in own:
        other = ledger.measurements.get((base, found.cell))
        mine, theirs = rate(found), rate(other) if other else None
        if mine is not None and theirs is not None:
            pairs.setdefault(found.cell.prompts, []).append((1 / theirs, 1 / mine))
    if not pairs:
        return None
    groups = list(pairs.values())
    return paired_speedup([[a for a, _ in group] for group in groups], [[b for _, b in group] for group in groups])


class _Table:
    def __init__(self, ledger: Ledger, plain: str, eos: frozenset[int]) -> None:
        self.ledger, self.plain, self.eos = ledger, plain, eos

    def row(self, key: Key, num_requests: int) -> Row:
        own = [found for found in self.ledger.measurements.values() if found.key == key]
        own = [found for found in own if found.cell.num_requests == num_requests]
        categories = list(dict.fromkeys(found.cell.category for found in own))
        names = [*categories, ALL] if len(categories) > 1 else categories
        answers = [answer for found in own for answer in found.answers]
        ours, base = Key(OURS, self.plain), Key(key.engine, self.plain)
        return Row(
            key=key,
            num_requests=num_requests,
            decoding={name: _figure(own, name, decoding) for name in names},
            end_to_end={name: _figure(own, name, end_to_end) for name in names},
            to_ours=self._ratio(own, ours, decoding),
            to_own=self._ratio(own, base, decoding),
            to_ours_end_to_end=self._ratio(own, ours, end_to_end),
            same_text=self._same(own, ours),
            same_own=self._same(own, base),
            num_agreeing=self._agreeing(own, ours),
            num_answers=len(answers),
            num_ended=sum(bool(self.eos.intersection(answer.tokens[-1:])) for answer in answers),
            num_repeats=min(len(group) for group in _by_prompts(own).values()),
        )

    def _ratio(self, own: list[Measurement], base: Key, rate: Rate) -> Interval | None:
        return _paired(self.ledger, own, base, rate)

    def _agreeing(self, own: list[Measurement], base: Key) -> float | None:
        """Return the mean number of leading tokens that equal another row's in the same cell."""
        counts = [
            _num_alike(self._text(mine), self._text(theirs))
            for found in own
            if (other := self.ledger.measurements.get((base, found.cell))) is not None
            for mine, theirs in zip(found.answers, other.answers, strict=True)
        ]
        return sum(counts) / len(counts) if counts else None

    def _same(self, own: list[Measurement], base: Key) -> float | None:
        """Return the share of answers with the tokens of another row in the same cell, without the end of text."""
        verdicts = [
            self._text(mine) == self._text(theirs)
            for found in own
            if (other := self.ledger.measurements.get((base, found.cell))) is not None
            for mine, theirs in zip(found.answers, other.answers, strict=True)
        ]
        return sum(verdicts) / len(verdicts) if verdicts else None

    def _text(self, answer: Answer) -> tuple[int, ...]:
        end = next((index for index, token in enumerate(answer.tokens) if token in self.eos), len(answer.tokens))
        return answer.tokens[:end]


def _num_alike(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _by_prompts(measurements: Iterable[Measurement]) -> dict[tuple[int, tuple[str, ...]], list[Measurement]]:
    groups: dict[tuple[int, tuple[str, ...]], list[Measurement]] = {}
    for found in measurements:
        groups.setdefault((found.cell.num_requests, found.cell.prompts), []).append(found)
    return groups


def _figure(measurements: list[Measurement], category: str, rate: Rate) -> float | None:
    kept = [found for found in measurements if category in (ALL, found.cell.category)]
    medians = []
    for group in _by_prompts(kept).values():
        rates = [value for found in group if (value := rate(found)) is not None]
        if rates:
            medians.append(median(rates))
    return math.exp(sum(map(math.log, medians)) / len(medians)) if medians else None


def rounds(texts: dict[str, list[str]], num_requests: int, num_groups: int, repeats: int) -> list[Cell]:
    """Return the cells of one number of requests, repeat by repeat.

    One request at a time takes each prompt alone. Several at once are of mixed categories: prompts are dealt in turn.

    Args:
        texts: category -> ids of its prompts.
        num_groups: prompts of each category at one request.
    """
    if num_requests == 1:
        groups: list[tuple[str, tuple[str, ...]]] = [
            (name, (id,)) for name, ids in texts.items() for id in ids[:num_groups]
        ]
    else:
        dealt = [
            ids[turn] for turn in range(max(map(len, texts.values()))) for ids in texts.values() if turn < len(ids)
        ]
        groups = [(MIXED if len(texts) > 1 else next(iter(texts)), tuple(dealt[:num_requests]))]
    return [
        Cell(num_requests=num_requests, category=category, prompts=prompts, repeat=repeat)
        for repeat in range(repeats)
        for category, prompts in groups
    ]
