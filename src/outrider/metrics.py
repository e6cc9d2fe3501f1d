"""The figures of a run: one record per step, and every figure a pure function of the records.

For each slot a step emits the accepted tokens and the bonus, without those behind a stop. With E emitted tokens in S
slot-steps,

    tokens_per_target_forward   tau = E / S, over all steps after prefill, with or without a draft
    mean_acceptance_length      1 + accepted / slot-steps that had a draft
    draft_coverage              slot-steps with a draft / slot-steps
    draft_acceptance_rate       accepted / drafted tokens (chains); `node_efficiency` for trees
    acceptance_per_pos[k]       slot-steps that accepted to depth k + 1 / slot-steps with a draft
    conditional_..._per_pos[k]  accepted to depth k + 1 / accepted to depth k
    wasted_rows                 verified and rejected nodes / verified nodes
    ..._share                   part of the step time spent proposing, verifying, accepting, committing, on the host

Tokens that an answer's form forces count in tau, but not as drafts: `num_forced_tokens` counts them alone.

For a chain with conditional acceptance a_1..a_k, tau = 1 + sum_i prod_{j<=i} a_j. Names follow vLLM's counters.

Worked example: two steps, drafts of 3 nodes, accepted 2 and 0: E = 3 + 1, tau = 2, mean_acceptance_length = 2,
draft_acceptance_rate = 1/3, acceptance_per_pos = (0.5, 0.5, 0).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "PrefillRecord",
    "SlotStep",
    "StepRecord",
    "Summary",
    "context_per_row",
    "expected_tau",
    "summarize",
    "ttft_s",
]


@dataclass(frozen=True, slots=True)
class SlotStep:
    """One slot in one step.

    context_length   committed tokens before the step, the root included
    num_nodes        nodes drafted; `draft_depth` is the depth of the deepest
    num_accepted     accepted nodes whose token was emitted
    num_emitted      emitted tokens: accepted ones and the bonus, without those behind a stop
    num_forced       nodes that the form of the answer forced, all or none of `num_nodes`; no proposer drafted them
    """

    request: int
    context_length: int
    num_nodes: int
    draft_depth: int
    num_accepted: int
    num_emitted: int
    finished: bool
    num_forced: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: its target forward and the work around it, in seconds.

    propose_s   the proposer's own work: drafting, and observing the accepted path
    host_s      the rest: emitting, stop conditions, book-keeping
    """

    step: int
    num_rows: int
    is_chain: bool
    slots: tuple[SlotStep, ...]
    propose_s: float
    verify_s: float
    accept_s: float
    commit_s: float
    host_s: float

    @property
    def context_per_row(self) -> float:
        """Mean over the rows of the forward of the tokens in their slots."""
        return context_per_row((slot.context_length, slot.num_nodes) for slot in self.slots)

    @property
    def total_s(self) -> float:
        return self.propose_s + self.verify_s + self.accept_s + self.commit_s + self.host_s


@dataclass(frozen=True, slots=True)
class PrefillRecord:
    """One chunk of prompts: the tokens read, and the seconds of target and proposer. A long prompt takes several.

    cached_tokens   tokens of each request that an earlier text had made known, in the first of its records (then 0)
    waited_s        seconds since each request was added, after this chunk
    started         requests whose prompt was read to the end
    """

    requests: tuple[int, ...]
    num_tokens: int
    target_s: float
    proposer_s: float
    cached_tokens: tuple[int, ...] = ()
    waited_s: tuple[float, ...] = ()
    started: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a run, as the module's docstring defines them. Ratios are None where their denominator is 0."""

    num_steps: int
    num_slot_steps: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_forced_tokens: int
    num_accepted_forced_tokens: int
    num_emitted_tokens: int
    tokens_per_target_forward: float | None
    mean_acceptance_length: float | None
    draft_coverage: float | None
    draft_acceptance_rate: float | None
    node_efficiency: float | None
    wasted_rows: float | None
    acceptance_per_pos: tuple[float, ...]
    conditional_acceptance_per_pos: tuple[float, ...]
    decode_s: float
    prefill_s: float
    shares: dict[str, float]


def summarize(steps: Sequence[StepRecord], prefills: Sequence[PrefillRecord] = ()) -> Summary:
    """Compute every count and ratio of a run."""
    slots = [slot for step in steps for slot in step.slots]
    drafted = [slot for slot in slots if slot.num_nodes > 0 and not slot.num_forced]
    num_nodes = sum(slot.num_nodes for slot in drafted)
    accepted = sum(slot.num_accepted for slot in drafted)
    emitted = sum(slot.num_emitted for slot in slots)
    rate = _ratio(accepted, num_nodes)
    is_chain = all(step.is_chain for step in steps)
    return Summary(
        num_steps=len(steps),
        num_slot_steps=len(slots),
        num_drafts=len(drafted),
        num_draft_tokens=num_nodes,
        num_accepted_tokens=accepted,
        num_forced_tokens=sum(slot.num_forced for slot in slots),
        num_accepted_forced_tokens=sum(slot.num_accepted for slot in slots if slot.num_forced),
        num_emitted_tokens=emitted,
        tokens_per_target_forward=_ratio(emitted, len(slots)),
        mean_acceptance_length=None if not drafted else 1 + accepted / len(drafted),
        draft_coverage=_ratio(len(drafted), len(slots)),
        draft_acceptance_rate=rate if is_chain else None,
        node_efficiency=None if is_chain else rate,
        wasted_rows=None if rate is None else 1 - rate,
        acceptance_per_pos=_acceptance_per_pos(drafted),
        conditional_acceptance_per_pos=_conditional(_acceptance_per_pos(drafted)),
        decode_s=sum(step.total_s for step in steps),
        prefill_s=sum(prefill.target_s + prefill.proposer_s for prefill in prefills),
        shares=_shares(steps),
    )


def ttft_s(steps: Sequence[StepRecord], prefills: Sequence[PrefillRecord]) -> dict[int, float]:
    """Return each request's time to its first token: what it waited until its prompt was read, and its first step."""
    waited = {request: seconds for one in prefills for request, seconds in zip(one.requests, one.waited_s, strict=True)}
    first: dict[int, float] = {}
    for step in steps:
        for slot in step.slots:
            first.setdefault(slot.request, step.total_s)
    return {request: seconds + first[request] for request, seconds in waited.items() if request in first}


def context_per_row(slots: Iterable[tuple[int, int]]) -> float:
    """Return the mean over the rows of a forward of the tokens in their slots: rows of long texts have more to read.

    Args:
        slots: committed tokens and verified nodes of each slot.

    >>> context_per_row([(100, 0), (400, 2)])
    325.0
    """
    found = list(slots)
    return sum(tokens * (1 + nodes) for tokens, nodes in found) / sum(1 + nodes for _, nodes in found)


def expected_tau(conditional_acceptance: Sequence[float]) -> float:
    """Return the tokens per forward of a chain with these conditional acceptances: 1 + sum_i prod_{j<=i} a_j.

    >>> expected_tau([0.5, 0.5])
    1.75
    """
    tau, reached = 1.0, 1.0
    for acceptance in conditional_acceptance:
        reached *= acceptance
        tau += reached
    return tau


def _acceptance_per_pos(drafted: Sequence[SlotStep]) -> tuple[float, ...]:
    deepest = max((slot.draft_depth for slot in drafted), default=0)
    return tuple(sum(slot.num_accepted > k for slot in drafted) / len(drafted) for k in range(deepest))


def _conditional(joint: Sequence[float]) -> tuple[float, ...]:
    before = (1.0, *joint[:-1])  # P(depth k | depth k - 1) = P(depth k) / P(depth k - 1)
    return tuple(after / reached if reached > 0 else 0.0 for after, reached in zip(joint, before, strict=False))


def _shares(steps: Sequence[StepRecord]) -> dict[str, float]:
    total = sum(step.total_s for step in steps)
    parts = ("propose", "verify", "accept", "commit", "host")
    return {part: sum(getattr(step, f"{part}_s") for step in steps) / total if total else 0.0 for part in parts}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
