"""From candidates and answers to predicted speedups: replay what is missing, then price the steps.

Example: `Replaying(...).run()` replays a family of chains once and every tree and every method that learns by setting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from outrider.bench.cells import Cell
from outrider.data.dialogue import Rules
from outrider.planning.check import CostTables, retimed
from outrider.proposer import Proposer
from outrider.results.rows import PLAIN
from outrider.results.unit import UnitResult
from outrider.tuning.candidates import Family, Setting
from outrider.tuning.prices.predict import (
    Group,
    Pick,
    Predicted,
    gains_of,
    mean_speedup,
    predicted_choices,
    speedups_of,
)
from outrider.tuning.replays.kept import ANY, Replays, RunFiles
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.replay import Key, Reach, Walk, chain_reach, replay_cells, replay_texts, walked
from outrider.tuning.replays.texts import Text
from outrider.tuning.replays.units import units_of

__all__ = ["Forecasts", "Replaying", "forecasts_of"]


@dataclass(frozen=True, kw_only=True)
class Replaying:
    """Replays of families along texts.

    load     function from a method with settings to its proposer
    end      monotonic time after which no further family is begun
    """

    target: ReplayTarget
    texts: Mapping[Key, Text]
    cells: Sequence[Cell]
    files: RunFiles
    load: Callable[[str], Proposer]
    max_len: int
    end: float
    tell: Callable[[str], None]

    def run(self, families: Sequence[Family], replays: Replays) -> tuple[Family, ...]:
        """Make the replays that are missing, and return the families that there was time for."""
        done: list[Family] = []
        for family in families:
            if not is_replayed(family, replays):
                if monotonic() > self.end and done:
                    continue
                self.tell(f"replaying {family.base}")
                self._family(family, replays)
                self.files.keep_replays(replays)
            done.append(family)
        return tuple(done)

    def _family(self, family: Family, replays: Replays) -> None:
        texts = list(self.texts.values())
        learns = family.deepest.spec.learns
        reach = None if learns else chain_reach(self.target, family.deepest, texts, self.max_len)
        if reach is not None:
            replays.reaches[family.base] = reach
            return
        for setting in family.settings:
            is_deepest = setting == family.settings[-1]
            proposer = family.deepest if is_deepest else self.load(setting.text)
            if learns:
                replays.walks[setting.text] = replay_cells(self.target, proposer, texts, self.cells, self.max_len)
            else:
                replays.walks[setting.text] = {ANY: replay_texts(self.target, proposer, texts, self.max_len)}


def is_replayed(family: Family, replays: Replays) -> bool:
    """Return whether a family's replays are finished."""
    return family.base in replays.reaches or all(one.text in replays.walks for one in family.settings)


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Predicted speedups of every setting, by requests at once.

    speedups   with a fixed budget
    adaptive   with the adaptive budget, of the settings that were run on the tables' clock
    plain      plain decoding's units, timed by the tables
    depths     levels of the deepest draft, by setting
    gains      logarithms of the speedups of single groups, by the label of a choice
    """

    speedups: Mapping[Setting, Mapping[int, float]]
    plain: Sequence[UnitResult]
    depths: Mapping[str, int]
    adaptive: Mapping[Setting, Mapping[int, float]] = field(default_factory=dict)
    gains: Mapping[str, Mapping[Group, float]] = field(default_factory=dict)

    @property
    def predicted(self) -> list[Predicted]:
        """Every choice, the best score first."""
        return predicted_choices(self.speedups, self.adaptive)

    def speedup_on(self, choice: Pick, groups: Sequence[Group]) -> float:
        """Return the predicted speedup of a choice over some groups of one number of requests."""
        return mean_speedup(self.gains[choice.label], groups)


def forecasts_of(
    families: Sequence[Family],
    replays: Replays,
    texts: Mapping[Key, Text],
    cells: Sequence[Cell],
    tables: CostTables,
    rules: Rules,
) -> Forecasts:
    """Predict every setting: the prices of its steps."""

    def units(label: str, walks_of: Mapping[int, Mapping[Key, Walk]]) -> list[UnitResult]:
        return [retimed(unit, tables) for unit in units_of(label, cells, texts, walks_of, rules)]

    nothing = {key: Reach((0,) * len(text.known.answer), (0,) * len(text.known.answer)) for key, text in texts.items()}
    batches = dict.fromkeys(cell.batch for cell in cells)
    plain_walks = {key: walked(text, nothing[key], 0) for key, text in texts.items()}
    plain = units(PLAIN, dict.fromkeys(batches, plain_walks))
    speedups: dict[Setting, Mapping[int, float]] = {}
    depths: dict[str, int] = {}
    gains: dict[str, Mapping[Group, float]] = {}
    for family in families:
        for setting in family.settings:
            walks_of = _walks_of(family, setting, replays, texts, list(batches))
            own = units(setting.text, walks_of)
            speedups[setting], gains[setting.text] = speedups_of(own, plain), gains_of(own, plain)
            steps = [step for walks in walks_of.values() for walk in walks.values() for step in walk]
            depths[setting.text] = max((step.draft_depth for step in steps), default=0)
    return Forecasts(speedups=speedups, plain=plain, depths=depths, gains=gains)


def _walks_of(
    family: Family, setting: Setting, replays: Replays, texts: Mapping[Key, Text], batches: Sequence[int]
) -> Mapping[int, Mapping[Key, Walk]]:
    if family.base in replays.reaches:
        depth = setting.depth or family.deepest.spec.max_nodes
        reaches = replays.reaches[family.base]
        walks = {key: walked(text, reaches[key], depth) for key, text in texts.items()}
        return dict.fromkeys(batches, walks)
    found = replays.walks[setting.text]
    return {batch: found.get(batch, found.get(ANY, {})) for batch in batches}
