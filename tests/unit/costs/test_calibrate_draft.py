"""Measuring a method: which steps run, and which count."""

from collections.abc import Sequence

import pytest

from outrider.costs.calibrate_draft import SKIPPED, measure_draft, node_counts
from outrider.draft import Tree
from outrider.engine import Engine
from outrider.errors import ConfigError
from outrider.proposer import DraftLimit
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.testing import Scripted, tiny_target


class World:
    """Tells the time. Drafting takes 1 s per node; not finding anything takes 1000 s."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[int] = []

    def script(self, tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        self.asked.append(limit.num_nodes)
        self.now += limit.num_nodes
        return Tree.chain([1] * limit.num_nodes)

    def rarely(self, tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        if len(tokens) % 3:
            self.now += 1000
            return Tree([], [])
        return self.script(tokens, sampling, DraftLimit(1, 1))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr("outrider.loop.clock.perf_counter", lambda: found.now)
    return found


def test_rooms_are_fixed_and_take_turns(world: World) -> None:
    heard: list[tuple[int, int]] = []
    costs = measure_draft(
        tiny_target(0),
        Scripted(world.script, max_nodes=4),
        slots=(1, 2),
        nodes=(0, 1, 4),
        repeats=3,
        progress=lambda done, total: heard.append((done, total)),
    )
    for slots in (1, 2):
        for nodes in (0, 1, 4):
            assert costs.propose_s(slots, slots * nodes, nodes) == slots * nodes
    rounds = SKIPPED + 3
    assert world.asked[:4] == [4, 1, 1, 4], "without room a script is not asked"
    assert (world.asked.count(4), world.asked.count(1)) == (3 * rounds, 3 * rounds)
    assert heard == [(done + 1, 2 * rounds) for done in range(2 * rounds)]


def test_steps_without_a_draft_do_not_count_where_the_method_can_draft(world: World) -> None:
    proposer = Scripted(world.rarely, max_nodes=4)
    costs = measure_draft(tiny_target(0), proposer, slots=(1,), nodes=(2,), repeats=9)
    assert costs.propose_s(1, 2, 2) == 1


def test_plain_decoding_has_no_nodes_and_long_runs_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[Engine] = []
    reset = Engine.reset
    monkeypatch.setattr(Engine, "reset", lambda self: (resets.append(self), reset(self))[1])
    target = tiny_target(0)
    proposer = load_proposer("none", target)
    assert node_counts(proposer) == (0,)
    costs = measure_draft(target, proposer, slots=(1,), nodes=node_counts(proposer), repeats=120)
    assert costs.propose.axes == {"slots": (1,), "nodes_per_slot": (0,)}
    assert costs.propose_s(1, 0, 0) >= 0
    assert len(resets) == 3, "a text of 48 prompt tokens has room for 47 steps"


def test_lookups_find_something_in_the_prompt() -> None:
    target = tiny_target(0)
    proposer = load_proposer("ngram", target)
    assert node_counts(proposer) == (0, 1, 2, 4, proposer.spec.max_nodes)
    costs = measure_draft(target, proposer, slots=(2,), nodes=(0, 2), repeats=2)
    assert costs.propose_s(2, 4, 2) > 0


@pytest.mark.parametrize(
    ("slots", "nodes", "repeats"), [((0,), (1,), 1), ((), (1,), 1), ((1,), (-1,), 1), ((1,), (1,), 0)]
)
def test_out_of_range(slots: tuple[int, ...], nodes: tuple[int, ...], repeats: int) -> None:
    target = tiny_target(0)
    with pytest.raises(ConfigError, match="must be at least 1, 0 and 1"):
        measure_draft(target, load_proposer("none", target), slots=slots, nodes=nodes, repeats=repeats)
