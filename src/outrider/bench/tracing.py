"""Traces of a few answers, for the ribbon of a report.

They are recorded behind the measurements, in a pass of its own: no figure of the run knows of them. Each method answers
the first prompts of each category once more, one request at a time, at the first temperature, with nothing learnt; so
the times of a step are those of one request, whatever batches were measured. A run that was interrupted records what is
missing.

Example: 4 methods, 2 categories and `traces=1` are 8 traces.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from outrider.bench.plan import RunPlan
from outrider.bench.workload import rules_of
from outrider.data.workloads import Conversation
from outrider.records.progress import Listener, Progress
from outrider.results.store import RunStore

__all__ = ["record_traces"]


class _Place(NamedTuple):
    """A prompt whose answers are traced."""

    category: str
    conversation: Conversation


def record_traces(plan: RunPlan, store: RunStore, listen: Listener) -> None:
    """Record the traces that the run's directory lacks.

    Raises:
        RunError: if the directory cannot be written.
    """
    places = list(_places(plan))
    temperature = plan.config.temperatures[0]
    rules = rules_of(plan.config, plan.workload.max_len, temperature)
    done, total = 0, len(places) * len(plan.traced)
    for contender in plan.traced:
        method = contender.name.method
        missing = [
            one for one in places if (method, one.category, one.conversation.id, temperature) not in store.traces
        ]
        done += len(places) - len(missing)
        if not missing:
            continue
        contender.open(1)
        try:
            for place in missing:
                listen(Progress(done, total, f"trace of {method}, {place.category}"))
                trace = contender.trace(place.conversation, place.category, rules)
                if trace is not None:
                    store.keep_trace(trace)
                done += 1
        finally:
            contender.close()


def _places(plan: RunPlan) -> Iterator[_Place]:
    """Yield the first prompts of each category that was measured."""
    first: dict[str, Sequence[Conversation]] = {}
    for cell in plan.workload.cells:
        first.setdefault(cell.category, [one for group in cell.groups for one in group])
    for category, conversations in first.items():
        for conversation in conversations[: plan.config.traces]:
            yield _Place(category, conversation)
