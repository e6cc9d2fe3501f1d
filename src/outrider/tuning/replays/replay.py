"""Proposers along known texts: what each setting would have had accepted, without the target.

**Chains that do not learn.** A deeper chain begins with the shallower one, and a draft depends on the committed text
alone. So one pass suffices for all depths: at every position the deepest chain is drafted, nothing of it is kept
(`_EveryPosition`), and its right tokens are counted. With right(p) of length(p) tokens at position p, depth k steps

    nodes = min(k, length(p)),  accepted = min(k, right(p)),  p <- p + 1 + accepted

**Trees** are run once per setting, since texts do not depend on their neighbours. **Methods that learn** are run for
each number of requests at once, in the order of the benchmark.

Worked example: right = 2, 0, 1, .. at positions 0, 1, 2: depth 1 steps from 0 to 2 and accepts one token, depth 2 steps
from 0 to 3 and accepts two.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, final

from outrider.bench.cells import Cell
from outrider.budget import Budget, FixedBudget, SlotState
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, SlotStep, StepRecord
from outrider.proposer import Commit, DraftLimit, Proposer
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.texts import Text

__all__ = ["Reach", "Walk", "chain_reach", "replay_cells", "replay_texts", "walked"]

Key = tuple[str, int]
Walk = tuple[SlotStep, ...]
"""Steps of one answer, in order."""
SLOTS: Final = 16
"""Texts that are replayed at once, where the number makes no difference."""


class Reach(NamedTuple):
    """Drafts at every position of an answer: their lengths, and how many of their tokens are right."""

    lengths: tuple[int, ...]
    right: tuple[int, ...]


@final
class _EveryPosition(Budget):
    """Notes what would be accepted of each draft, and keeps nothing of it: every position becomes a root."""

    def __init__(self, num_nodes: int) -> None:
        self._fixed = FixedBudget(num_nodes)
        self._slots: list[int] = []
        self.drafts: dict[int, list[list[int]]] = {}
        self.is_chain = True

    def limits(self, slot_states: Sequence[SlotState], num_waiting: int = 0) -> list[DraftLimit]:
        self._slots = [state.request for state in slot_states]
        return self._fixed.limits(slot_states, num_waiting)

    def prune(self, draft: Draft) -> Draft:
        for request, tree in zip(self._slots, draft.trees, strict=True):
            self.is_chain &= tree.parents == list(range(-1, len(tree.parents) - 1))
            self.drafts.setdefault(request, []).append(list(tree.tokens))
        return draft.keep([[] for _ in draft.trees])

    def observe(self, commits: Sequence[Commit], seconds: Mapping[str, float]) -> None:
        """Learn nothing."""

    def reset(self) -> None:
        """Forget nothing: there is one run."""


def chain_reach(
    target: ReplayTarget, proposer: Proposer, texts: Sequence[Text], max_len: int
) -> dict[Key, Reach] | None:
    """Return what is right of the deepest chains at every position; None for a proposer of trees."""
    budget = _EveryPosition(proposer.spec.max_nodes)
    engine = Engine(target, proposer, max_batch=min(SLOTS, len(texts)), max_len=max_len, budget=budget)
    asked = {engine.add(list(text.known.prompt), text.sampling): text for text in texts}
    for _ in engine.run():
        if not budget.is_chain:
            return None
    return {text.key: _reach(text.known.answer, budget.drafts[request]) for request, text in asked.items()}


def walked(text: Text, reach: Reach, depth: int) -> Walk:
    """Return the steps of one answer with chains of up to `depth` tokens; 0 is plain decoding."""
    place, total, steps = 0, len(text.known.answer), list[SlotStep]()
    while place < total:
        nodes = min(depth, reach.lengths[place])
        accepted = min(nodes, reach.right[place])
        emitted = min(accepted + 1, total - place)
        steps.append(
            SlotStep(
                request=0,
                context_length=len(text.known.prompt) + place,
                num_nodes=nodes,
                draft_depth=nodes,
                num_accepted=min(accepted, emitted),
                num_emitted=emitted,
                finished=place + emitted == total,
            )
        )
        place += emitted
    return tuple(steps)


def replay_texts(target: ReplayTarget, proposer: Proposer, texts: Sequence[Text], max_len: int) -> dict[Key, Walk]:
    """Return the steps of every answer, for a proposer that does not learn."""
    log = _Log()
    engine = Engine(target, proposer, max_batch=min(SLOTS, len(texts)), max_len=max_len, record=log)
    asked = {engine.add(list(text.known.prompt), text.sampling): text.key for text in texts}
    _drain(engine)
    return {key: log.walk(request) for request, key in asked.items()}


def replay_cells(
    target: ReplayTarget, proposer: Proposer, texts: Sequence[Text], cells: Sequence[Cell], max_len: int
) -> dict[int, dict[Key, Walk]]:
    """Return the steps of every answer by the number of requests at once, for a proposer that learns."""
    known = {text.key: text for text in texts}
    found: dict[int, dict[Key, Walk]] = {}
    for batch in dict.fromkeys(cell.batch for cell in cells):
        log = _Log()
        engine = Engine(target, proposer, max_batch=batch, max_len=max_len, record=log)
        asked: dict[int, Key] = {}
        for cell in (cell for cell in cells if cell.batch == batch):
            engine.reset()
            for group in cell.groups:
                for turn in range(max(len(conversation.turns) for conversation in group)):
                    for text in (known.get((conversation.id, turn)) for conversation in group):
                        if text is not None:
                            asked[engine.add(list(text.known.prompt), text.sampling)] = text.key
                    _drain(engine)
        found[batch] = {key: log.walk(request) for request, key in asked.items()}
    return found


class _Log:
    """Steps by request."""

    def __init__(self) -> None:
        self._steps: dict[int, list[SlotStep]] = {}

    def __call__(self, record: StepRecord | PrefillRecord) -> None:
        for slot in record.slots if isinstance(record, StepRecord) else ():
            self._steps.setdefault(slot.request, []).append(replace(slot, request=0))

    def walk(self, request: int) -> Walk:
        return tuple(self._steps[request])


def _drain(engine: Engine) -> None:
    for event in engine.run():
        event.raise_for_error()


def _reach(answer: Sequence[int], drafts: Sequence[Sequence[int]]) -> Reach:
    right = [_num_right(draft, answer[place:]) for place, draft in enumerate(drafts)]
    return Reach(tuple(map(len, drafts)), tuple(right))


def _num_right(draft: Iterable[int], answer: Sequence[int]) -> int:
    count = 0
    for drafted, token in zip(draft, answer, strict=False):
        if drafted != token:
            break
        count += 1
    return count
