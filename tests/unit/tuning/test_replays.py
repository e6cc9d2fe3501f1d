"""A replay along known answers takes the steps that the real engine took with the real target."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from outrider.bench.cells import Cell
from outrider.data.dialogue import Rules
from outrider.data.workloads import Conversation
from outrider.engine import Engine
from outrider.metrics import SlotStep, StepRecord
from outrider.proposer import Proposer
from outrider.proposers import load_proposer, proposer_class
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.tuning.replays.known import KnownText, ReplayTarget
from outrider.tuning.replays.rebuild import rebuilt, with_states
from outrider.tuning.replays.replay import Reach, chain_reach, replay_cells, replay_texts, walked
from outrider.tuning.replays.texts import Text, is_degenerate, write_texts
from outrider.tuning.replays.units import batched

MAX_LEN = 120
CONVERSATIONS = [
    Conversation(id="a", category="x", turns=("abc abc", "on")),
    Conversation(id="b", category="x", turns=("one two one two",)),
    Conversation(id="c", category="x", turns=("zzzz",)),
]
Steps = list[tuple[int, int, int, int, int, bool]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory: Path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    return load_target(str(directory), dtype="float64")


def rules(temperature: float) -> Rules:
    return Rules(temperature=temperature, repeat=0, seed=3, max_new_tokens=30, max_len=MAX_LEN, ignore_eos=False)


def texts_of(target: Target, proposer: Proposer, temperature: float = 0.0) -> tuple[list[Text], ReplayTarget]:
    layers = proposer.spec.feature_layers
    texts = write_texts(target, CONVERSATIONS, rules(temperature), batch=2, max_len=MAX_LEN, layers=layers).texts
    return texts, ReplayTarget(target, [text.known for text in texts], layers)


def plain(steps: Sequence[SlotStep]) -> Steps:
    return [
        (one.context_length, one.num_nodes, one.draft_depth, one.num_accepted, one.num_emitted, one.finished)
        for one in steps
    ]


def real_steps(target: Target, proposer: Proposer, text: Text, num_nodes: int) -> Steps:
    records: list[StepRecord] = []
    engine = Engine(target, proposer, max_len=MAX_LEN, num_nodes=num_nodes, record=records.append)  # type: ignore[arg-type]
    [answer] = engine.generate([list(text.known.prompt)], text.sampling)
    assert tuple(answer.tokens) == text.known.answer
    return plain([record.slots[0] for record in records if isinstance(record, StepRecord)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("name", "seed"), [("ngram", None), ("eagle3", 3), ("mtp", 0), ("pard", 0)])
def test_one_pass_gives_the_steps_of_every_depth(
    target: Target, name: str, seed: int | None, temperature: float
) -> None:
    if seed is None:
        proposer = load_proposer(name, target, num_nodes=4, min_n=1)
    else:
        proposer = proposer_class(name).example(target, seed)
    texts, known = texts_of(target, proposer, temperature)
    reaches = chain_reach(known, proposer, texts, MAX_LEN)
    assert reaches is not None
    for text in texts:
        for depth in range(proposer.spec.max_nodes + 1):
            assert plain(walked(text, reaches[text.key], depth)) == real_steps(target, proposer, text, depth)


def test_a_tree_is_replayed_step_by_step(target: Target) -> None:
    proposer = load_proposer("ngram", target, num_nodes=6, min_n=1, num_candidates=3)
    texts, known = texts_of(target, proposer)
    assert chain_reach(known, proposer, texts, MAX_LEN) is None
    walks = replay_texts(known, proposer, texts, MAX_LEN)
    for text in texts:
        assert plain(walks[text.key]) == real_steps(target, proposer, text, 6)


def test_a_tree_from_features_is_replayed_step_by_step(target: Target) -> None:
    proposer = proposer_class("eagle3").example(target, 2)
    texts, known = texts_of(target, proposer)
    walks = replay_texts(known, proposer, texts, MAX_LEN)
    for text in texts:
        assert plain(walks[text.key]) == real_steps(target, proposer, text, proposer.spec.max_nodes)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_method_that_learns_has_seen_the_same_answers_before(target: Target, batch: int) -> None:
    proposer = load_proposer("suffix", target, num_nodes=4)
    texts, known = texts_of(target, proposer)
    groups = tuple(tuple(CONVERSATIONS[start : start + batch]) for start in range(0, 3, batch))
    cell = Cell(batch=batch, repeat=0, temperature=0.0, category="x", groups=groups, teaching=(), first=0)
    walks = replay_cells(known, proposer, texts, [cell], MAX_LEN)[batch]
    records: list[StepRecord] = []
    engine = Engine(target, proposer, max_batch=batch, max_len=MAX_LEN, record=records.append)  # type: ignore[arg-type]
    by_key = {text.key: text for text in texts}
    requests = {}
    for group in groups:
        for turn in range(max(len(one.turns) for one in group)):
            for key in [(one.id, turn) for one in group if (one.id, turn) in by_key]:
                requests[engine.add(list(by_key[key].known.prompt), by_key[key].sampling)] = key
            list(engine.run())
    slots = [slot for record in records if isinstance(record, StepRecord) for slot in record.slots]
    for request, key in requests.items():
        assert plain(walks[key]) == plain([slot for slot in slots if slot.request == request])


@pytest.mark.parametrize("layers", [(), (0, 2)])
def test_a_text_that_is_rebuilt_from_its_answer_is_the_one_that_was_written(
    target: Target, layers: tuple[int, ...]
) -> None:
    written = write_texts(target, CONVERSATIONS, rules(1.0), batch=2, max_len=MAX_LEN, layers=layers).texts
    assert max(text.turn for text in written) > 0
    for one in CONVERSATIONS:
        wanted = [text for text in written if text.conversation == one.id]
        answers = {text.turn: text.known.answer for text in wanted}
        found = [with_states(text, target, layers) for text in rebuilt(one, answers, target, rules(1.0))]
        assert [(text.key, text.known.tokens, text.sampling) for text in found] == [
            (text.key, text.known.tokens, text.sampling) for text in wanted
        ]
        for rebuilt_text, text in zip(found, wanted, strict=True):
            torch.testing.assert_close(rebuilt_text.known.states_TLE, text.known.states_TLE, rtol=0, atol=1e-9)


def test_the_worked_example_of_depths() -> None:
    text = Text("a", 0, KnownText((1,), (5, 6, 7, 8)), SamplingParams())
    reach = Reach(lengths=(2, 2, 1, 0), right=(2, 0, 1, 0))
    assert [one.num_emitted for one in walked(text, reach, 1)] == [2, 2]
    assert [one.num_emitted for one in walked(text, reach, 2)] == [3, 1]
    assert [one.num_emitted for one in walked(text, reach, 0)] == [1, 1, 1, 1]


def test_answers_share_slots_as_in_the_engine() -> None:
    text = Text("a", 0, KnownText((1,), (5, 6, 7)), SamplingParams())
    long = walked(text, Reach((0, 0, 0), (0, 0, 0)), 0)
    short = walked(Text("b", 0, KnownText((1,), (5,)), SamplingParams()), Reach((0,), (0,)), 0)
    assert [[slot.request for slot in step.slots] for step in batched([long, short], 2)] == [[0, 1], [0], [0]]
    assert [[slot.request for slot in step.slots] for step in batched([long, short, short], 2)] == [[0, 1], [0, 2], [0]]


@pytest.mark.parametrize(
    ("answer", "loops"),
    [([1] * 12, True), ([1] * 11, False), ([1, 2, 3] * 7, True), (list(range(60)), False), ([1, 2] * 3, False)],
)
def test_a_loop_is_an_n_gram_of_eight_tokens_five_times(answer: list[int], loops: bool) -> None:
    assert is_degenerate(answer) == loops
