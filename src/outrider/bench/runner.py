"""The benchmark: contenders side by side on the same prompts, paired, interleaved and repeated.

One unit at a time: a contender answers a group of conversations, and the unit is on disk before the next one starts.
All contenders answer a group before the next group comes, so that what the machine does meets them alike. When plain
decoding and a method have both answered, the method's texts are compared with plain decoding's; that is not timed.

A run that was interrupted goes on where it stopped. Nothing is measured twice; only a method that learns reads the
groups it had already answered again, unmeasured, so that its state is the one it would have had.

Example: 4 methods, 2 categories of 3 prompts, batch 1, temperature 0, 3 repeats are 72 units.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, product
from time import perf_counter, sleep
from typing import final

from outrider.bench.cells import Cell, Group, running_order
from outrider.bench.contender import Contender, Name
from outrider.data.dialogue import Dialogue, Rules
from outrider.errors import RunError, on_one_line
from outrider.records.progress import Listener, Progress, unheard
from outrider.results.equality.replay import DEFAULT_ROWS
from outrider.results.equality.verdict import Verdict, judge
from outrider.results.kept import REMEDY
from outrider.results.rows import PLAIN
from outrider.results.store import RunStore
from outrider.results.unit import UnitResult
from outrider.target import Target

__all__ = ["BASELINE", "Runner"]

BASELINE = Name("outrider", PLAIN)
EXACT = Verdict(kind="exact")
PAUSE_S = 0.1
"""Between engines that take turns, so that the threads of the one are asleep when the other begins."""


@dataclass
class _Place:
    """The next group of a cell that a contender is in the right state for."""

    cell: Cell | None = None
    index: int = 0


@final
@dataclass(kw_only=True)
class Runner:
    """Runs the cells of a plan.

    Args:
        contender_groups: contenders that are open at the same time and take turns; one group after another.
        rules_of: the rules for a cell's temperature and repeat.
        verified: function from a temperature to True if texts are compared with plain decoding's.
        listen: called before each unit.
        excused: engines that may fail: their contender is left out from then on, and `lost` says why.
    """

    target: Target
    contender_groups: Sequence[Sequence[Contender]]
    cells: Sequence[Cell]
    rules_of: Callable[[Cell], Rules]
    verified: Callable[[float], bool]
    store: RunStore
    listen: Listener = unheard
    excused: Collection[str] = ()
    start_up_s: float = 0.0
    lost: dict[Name, str] = field(default_factory=dict)
    _places: dict[Name, _Place] = field(default_factory=dict)
    _last_engine: str | None = None

    def run(self) -> None:
        """Measure what is missing.

        Raises:
            RunError: if a unit on disk answers other prompts, or in other tokens, than the target has.
        """
        self._check_kept()
        for contenders in self.contender_groups:
            with ExitStack() as leaving:
                for contender in contenders:
                    leaving.callback(contender.leave)
                self._run_contenders(contenders)
        self.judge()

    def judge(self) -> None:
        """Compare the texts of all finished units that nobody compared yet."""
        for cell in self.cells:
            for group in cell.groups:
                self._judge(cell, group)

    def _check_kept(self) -> None:
        places = [(cell, group) for cell in self.cells for group in cell.groups]
        taken: dict[str, tuple[Cell, Group]] = {}
        for (cell, group), contender in product(places, self.contenders):
            name = contender.name.unit(cell, group)
            if name in taken:
                shown = on_one_line(name, 120)
                raise RunError(f"two groups of prompts would be called '{shown}'; give the prompts other ids")
            taken[name] = (cell, group)
            unit = self.store.units.get(name)
            if unit is not None and (flaw := self._flaw_of(unit, group)):
                place = self.store.place(unit.unit)
                raise RunError(f"{place}: the unit '{on_one_line(unit.unit, 120)}' {flaw}; {REMEDY}")

    def _flaw_of(self, unit: UnitResult, group: Group) -> str | None:
        num_turns = {conversation.id: len(conversation.turns) for conversation in group}
        if unit.conversations != tuple(num_turns):
            return "answers other conversations than those of its group"
        if any(answer.turn >= num_turns[answer.conversation] for answer in unit.answers):
            return "answers a turn that its conversation does not have"
        if any(token >= self.target.spec.vocab_size for answer in unit.answers for token in answer.tokens):
            return "has a token id that the target does not have"
        return None

    def _run_contenders(self, contenders: Sequence[Contender]) -> None:
        for batch, cells in groupby(self.cells, key=lambda cell: cell.batch):
            todo = [cell for cell in cells if any(self._missing(cell, contenders))]
            missing = {contender.name for cell in todo for contender, _ in self._missing(cell, contenders)}
            with self._opened([one for one in contenders if one.name in missing], batch):
                for cell in todo:
                    self._run_cell(cell, contenders)

    @cached_property
    def contenders(self) -> Sequence[Contender]:
        """Contenders of all groups."""
        return [contender for contenders in self.contender_groups for contender in contenders]

    @cached_property
    def num_units(self) -> int:
        """Number of units of the whole run, finished ones included."""
        places = [(cell, index) for cell in self.cells for index in range(len(cell.groups))]
        return sum(contender.takes(*place) for place in places for contender in self.contenders)

    def _missing(self, cell: Cell, contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Group]]:
        for index, group in enumerate(cell.groups):
            for contender in contenders:
                if self._is_due(contender, cell, index):
                    yield contender, group

    def _is_due(self, contender: Contender, cell: Cell, index: int) -> bool:
        name = contender.name.unit(cell, cell.groups[index])
        return contender.name not in self.lost and contender.takes(cell, index) and name not in self.store.units

    @contextmanager
    def _opened(self, contenders: Sequence[Contender], batch: int) -> Iterator[None]:
        start = perf_counter()
        try:
            for contender in contenders:
                with self._losing(contender):
                    contender.open(batch)
                self._places[contender.name] = _Place()
            self.start_up_s += perf_counter() - start
            yield
        finally:
            for contender in contenders:
                contender.close()

    def _run_cell(self, cell: Cell, contenders: Sequence[Contender]) -> None:
        for index, group in enumerate(cell.groups):
            for contender in running_order(contenders, cell.first + index, cell.repeat):
                if not self._is_due(contender, cell, index):
                    continue
                self.listen(Progress(len(self.store.units), self.num_units, contender.name.unit(cell, group)))
                unit = None
                with self._losing(contender):
                    self._prepare(contender, cell, index)
                    self._pause(contender.name.engine)
                    unit = contender.measure(cell, group, self.rules_of(cell))
                if unit is not None:
                    self.store.append(unit)
                    self._places[contender.name].index = index + 1
            self._judge(cell, group)

    @contextmanager
    def _losing(self, contender: Contender) -> Iterator[None]:
        """Go on without a contender of an excused engine that fails."""
        try:
            yield
        except RunError as error:
            if contender.name.engine not in self.excused:
                raise
            self.lost[contender.name] = str(error)
            contender.leave()

    def _pause(self, engine: str) -> None:
        """Wait where another engine has just answered."""
        if self._last_engine not in (None, engine):
            sleep(PAUSE_S)
        self._last_engine = engine

    def _prepare(self, contender: Contender, cell: Cell, index: int) -> None:
        """Put a contender into the state in which it answers the cell's group `index`."""
        place = self._places[contender.name]
        if (place.cell, place.index) == (cell, index) or (place.cell is cell and not contender.learns):
            return
        contender.reset()
        place.cell, place.index = cell, index
        if not contender.learns:
            return
        taught = cell.teaching if contender.name.state == "warm" else ()
        for group in (*taught, *cell.groups[:index]):
            contender.measure(cell, group, self.rules_of(cell))

    def _judge(self, cell: Cell, group: Group) -> None:
        plain = self.store.units.get(BASELINE.unit(cell, group))
        if plain is None or not self.verified(cell.temperature):
            return
        for contender in self.contenders:
            unit = self.store.units.get(contender.name.unit(cell, group))
            if unit is None or unit.engine != plain.engine or unit is plain:
                continue
            if any(answer.verdict is None for answer in unit.answers):
                self.store.judge(unit.unit, self._verdicts(cell, group, plain, unit))

    def _verdicts(self, cell: Cell, group: Group, plain: UnitResult, unit: UnitResult) -> list[Verdict]:
        """Return the verdict of every answer of `unit`; where a conversation has left plain decoding's, later turns
        have other prompts."""
        want = {(answer.conversation, answer.turn): answer for answer in plain.answers}
        dialogues = {conversation.id: Dialogue(conversation) for conversation in group}
        rules, last = self.rules_of(cell), {conversation.id: EXACT for conversation in group}
        num_rows = sorted({*DEFAULT_ROWS, max((step.num_rows for step in unit.steps), default=2)})
        verdicts = []
        for answer in unit.answers:
            id, dialogue = answer.conversation, dialogues[answer.conversation]
            if last[id].kind == "exact":
                reference = want.get((id, answer.turn))
                if reference is None:
                    raise RunError(
                        f"{self.store.place(plain.unit)} lacks the answer to '{on_one_line(id)}', turn {answer.turn}, "
                        f"that {self.store.place(unit.unit)} has; delete both lines and run the same command again"
                    )
                prompt = dialogue.ask(answer.turn, self.target.tokenizer)
                sampling = rules.sampling(dialogue.conversation, answer.turn)
                last[id] = judge(
                    self.target,
                    prompt,
                    sampling,
                    reference.tokens,
                    answer.tokens,
                    num_rows=num_rows,
                    num_slots=cell.batch,
                )
                dialogue.answer(reference.tokens, self.target.tokenizer)
            else:
                last[id] = Verdict(kind=last[id].kind, position=0, num_skipped=len(answer.tokens))
            verdicts.append(last[id])
        return verdicts
