"""Times that a user feels, of each answer and of each burst of a unit.

    first_token_s     from submission to the first token
    per_token_s       (latency - time to the first token) / tokens behind the first burst, where there are some
    between_bursts_s  from one burst to the next: the time of its step

The tokens of a step come at once, as a burst. Where other requests are admitted between two steps, reading their
prompts counts in `per_token_s`, and not in `between_bursts_s`.

Worked example: an answer of 9 tokens that came as 1 + 4 + 4, the first after 20 ms, the others after 30 and 42 ms:
first_token_s 0.02, per_token_s 0.022 / 8, between_bursts_s 0.010 and 0.012.
"""

from outrider.results.unit import UnitResult

__all__ = ["between_bursts_s", "first_token_s", "per_token_s"]


def first_token_s(unit: UnitResult) -> list[float]:
    """Return the times to the first token, of the answers where it is known."""
    return [answer.ttft_s for answer in unit.answers if answer.ttft_s is not None]


def per_token_s(unit: UnitResult) -> list[float]:
    """Return the seconds per token behind the first burst, of each answer that has such tokens and whose times are
    known."""
    return [
        (answer.latency_s - answer.ttft_s) / rest
        for answer in unit.answers
        if answer.latency_s is not None
        and answer.ttft_s is not None
        and (rest := len(answer.tokens) - unit.first_bursts[answer.request]) > 0
    ]


def between_bursts_s(unit: UnitResult) -> list[float]:
    """Return the times of steps, once for each answer that got a burst then which was not its first."""
    begun, found = set[int](), list[float]()
    for step in unit.steps:
        found += [step.total_s for slot in step.slots if slot.request in begun]
        begun |= {slot.request for slot in step.slots}
    return found
