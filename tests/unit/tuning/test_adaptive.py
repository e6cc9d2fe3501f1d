"""The adaptive budget along known texts: the engine's own drafts, at the prices of a table."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from test_replays import CONVERSATIONS, MAX_LEN, rules, texts_of

from outrider.bench.cells import Cell
from outrider.costs.tables import DraftCosts
from outrider.metrics import StepRecord
from outrider.planning.check import CostTables
from outrider.planning.predict import FreeDrafts
from outrider.proposer import Proposer
from outrider.proposers import load_proposer
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.simulation import TableCosts
from outrider.tuning.replays.adaptive import KnownChains, adaptive_units
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.replay import chain_reach
from outrider.tuning.replays.texts import Text

FLAT = TableCosts({1: 5e-3, 64: 5e-3})
STEEP = TableCosts({1: 5e-3, 2: 15e-3, 64: 635e-3})


class _Reading(DraftCosts):
    """Drafts that are free, and pending tokens that are not."""

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        return 0.0

    def pending_s(self, num_pending: int) -> float:
        return num_pending * self.token_s


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory: Path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    return load_target(str(directory), dtype="float64")


def cells(batch: int) -> list[Cell]:
    groups = tuple(tuple(CONVERSATIONS[start : start + batch]) for start in range(0, 3, batch))
    return [Cell(batch=batch, repeat=0, temperature=0.0, category="x", groups=groups, teaching=(), first=0)]


def run(
    known: ReplayTarget,
    proposer: Proposer,
    texts: Mapping[tuple[str, int], Text],
    costs: TableCosts,
    drafts: DraftCosts | None = None,
    batch: int = 1,
) -> list[UnitResult]:
    tables = CostTables(target=costs, drafts={"m": drafts or FreeDrafts()})
    return adaptive_units(
        "m auto",
        known,
        proposer,
        cells(batch),
        texts,
        tables,
        rules(0.0),
        method="m",
        max_len=MAX_LEN,
        counts_itself=False,
    )


def steps_of(units: list[UnitResult]) -> list[StepRecord]:
    return [step for unit in units for step in unit.steps]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("costs", [FLAT, STEEP])
def test_chains_that_are_known_are_drafted_as_by_their_method(target: Target, costs: TableCosts, batch: int) -> None:
    proposer = load_proposer("ngram", target, num_nodes=4, min_n=1)
    texts, known = texts_of(target, proposer)
    reaches = chain_reach(known, proposer, texts, MAX_LEN)
    assert reaches is not None
    by_key = {text.key: text for text in texts}
    own = run(known, proposer, by_key, costs, batch=batch)
    again = run(known, KnownChains(by_key, reaches, 4, reads=False), by_key, costs, batch=batch)
    assert steps_of(own) == steps_of(again)
    assert [unit.answers for unit in own] == [unit.answers for unit in again]


def test_free_drafts_are_drafted_and_dear_ones_hardly(target: Target) -> None:
    proposer = load_proposer("ngram", target, num_nodes=4, min_n=1)
    texts, known = texts_of(target, proposer)
    by_key = {text.key: text for text in texts}
    free, dear = (steps_of(run(known, proposer, by_key, costs)) for costs in (FLAT, STEEP))
    total = sum(len(text.known.answer) for text in texts)
    assert sum(slot.num_emitted for step in free for slot in step.slots) == total
    assert len(free) < 0.8 * total
    assert all(step.total_s == pytest.approx(5e-3) for step in free)
    seconds = sum(step.total_s for step in dear)
    assert total * 5e-3 <= seconds <= 1.1 * total * 5e-3


@pytest.mark.parametrize(("token_s", "drafts"), [(1e-6, True), (1e-1, False)])
def test_a_text_is_read_before_the_first_draft_and_where_that_pays(
    target: Target, token_s: float, drafts: bool
) -> None:
    proposer = load_proposer("ngram", target, num_nodes=4, min_n=1)
    texts, known = texts_of(target, proposer)
    reaches = chain_reach(known, proposer, texts, MAX_LEN)
    assert reaches is not None
    by_key = {text.key: text for text in texts}
    reading = KnownChains(by_key, reaches, 4, reads=True)
    units = run(known, reading, by_key, FLAT, _Reading(token_s))
    read = [step for step in steps_of(units) if step.propose_s > 0]
    assert (len(read) > 1) == drafts, "the first text is read to learn what that costs"
    for step in read:
        [slot] = step.slots
        assert step.propose_s <= token_s * (slot.context_length - 1) * (1 + 1e-9)
    if read:
        [slot] = read[0].slots
        assert read[0].propose_s == pytest.approx(token_s * (slot.context_length - 1))


def test_prices_take_the_place_of_the_clock(target: Target) -> None:
    proposer = load_proposer("ngram", target, num_nodes=4, min_n=1)
    texts, known = texts_of(target, proposer)
    by_key = {text.key: text for text in texts}
    first, second = (steps_of(run(known, proposer, by_key, STEEP, batch=2)) for _ in range(2))
    assert first == second
    assert min(step.verify_s for step in first) == 5e-3
