"""Steps of single answers, put together as a batch would have run them: units of the benchmark without a clock.

A group of requests is admitted while there are slots, in order; each step takes one step of every running answer; the
turns of a conversation follow each other. That is what the engine does, so the units differ from measured ones in their
times alone, which are those of a cost table (`outrider.planning.check.retimed`).

Example: answers of three and one steps at two slots are three batch steps, of two, one and one slots.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from outrider.bench.cells import Cell, Group
from outrider.bench.contender import Name
from outrider.data.dialogue import Rules
from outrider.metrics import SlotStep, StepRecord
from outrider.results.unit import Answer, UnitResult
from outrider.tuning.replays.replay import Walk
from outrider.tuning.replays.texts import Text

__all__ = ["ONE_S", "answer_of", "batched", "units_of"]

Key = tuple[str, int]
ONE_S: Final = 1.0


def units_of(
    label: str,
    cells: Sequence[Cell],
    texts: Mapping[Key, Text],
    walks_of: Mapping[int, Mapping[Key, Walk]],
    rules: Rules,
) -> list[UnitResult]:
    """Return the units of a method in all cells, each of its steps without a time.

    Args:
        walks_of: steps of every answer, by the number of requests at once.
    """
    name = Name("outrider", label)
    return [_unit(name, cell, group, texts, walks_of[cell.batch], rules) for cell in cells for group in cell.groups]


def batched(walks: Sequence[Walk], num_slots: int, number: int = 0) -> Iterator[StepRecord]:
    """Yield the steps of answers that share so many slots; request i is `walks[i]`, numbered from `number`."""
    waiting = deque(enumerate(walks, number))
    running: list[tuple[int, Iterator[SlotStep]]] = []
    while waiting or running:
        while waiting and len(running) < num_slots:
            request, walk = waiting.popleft()
            running.append((request, iter(walk)))
        slots = tuple(replace(next(steps), request=request) for request, steps in running)
        yield StepRecord(
            step=0,
            num_rows=1 + max(slot.num_nodes for slot in slots),
            is_chain=all(slot.num_nodes == slot.draft_depth for slot in slots),
            slots=slots,
            propose_s=0.0,
            verify_s=0.0,
            accept_s=0.0,
            commit_s=0.0,
            host_s=0.0,
        )
        ended = {slot.request for slot in slots if slot.finished}
        running = [one for one in running if one[0] not in ended]


def _unit(
    name: Name, cell: Cell, group: Group, texts: Mapping[Key, Text], walks: Mapping[Key, Walk], rules: Rules
) -> UnitResult:
    answers: list[Answer] = []
    steps: list[StepRecord] = []
    for turn in range(max(len(conversation.turns) for conversation in group)):
        keys = [(conversation.id, turn) for conversation in group if (conversation.id, turn) in walks]
        steps += batched([walks[key] for key in keys], cell.batch, len(answers))
        answers += [answer_of(texts[key], number) for number, key in enumerate(keys, len(answers))]
    return name.result(cell, group, rules, answers, ONE_S, steps=tuple(steps))


def answer_of(text: Text, request: int) -> Answer:
    """Return a known answer as the record of a request."""
    return Answer(
        conversation=text.conversation,
        turn=text.turn,
        request=request,
        seed=text.sampling.seed,
        num_prompt_tokens=len(text.known.prompt),
        tokens=text.known.answer,
    )
