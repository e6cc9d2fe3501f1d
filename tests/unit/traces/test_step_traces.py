"""A watched step as data: the tree's path, texts that add up, and lines of a file that are read back or refused."""

import json
from typing import Any

import pytest

from outrider.draft import Tree
from outrider.errors import RunError
from outrider.requests.events import Event
from outrider.requests.text import Piece
from outrider.traces.trace import Texts, Trace, step_trace
from outrider.traces.watch import Chosen, WatchedStep, path_of

TREE = Tree([5, 6, 7, 8], [-1, -1, 1, 1])


def watched(is_forced: bool = False) -> WatchedStep:
    return WatchedStep(
        step=3,
        tree=TREE,
        is_forced=is_forced,
        part="look-up",
        accepted=(1, 3),
        probs=(0.1, 0.2, None, 0.4),
        chosen=(Chosen(0.2, ((6, 0.2),)), Chosen(0.4, ()), Chosen(None, ())),
        seconds={"total": 0.0015},
    )


def test_a_path_is_found_in_the_tree() -> None:
    assert path_of(TREE, []) == ()
    assert path_of(TREE, [6, 8]) == (1, 3)
    assert path_of(TREE, [5]) == (0,)


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ((Piece("a", True), Piece("b", True), Piece("c", False)), ["a", "b", "c"]),
        ((), ["", "", ""]),
        ((Piece("x", False),), ["x", "", ""]),
        ((Piece("a", True), Piece("b", True), Piece("c", False), Piece("d", False)), ["a", "b", "cd"]),
    ],
)
def test_texts_of_tokens_add_up_to_the_chunk(pieces: tuple[Piece, ...], texts: list[str]) -> None:
    event = Event(request=1, tokens=(6, 8, 9), num_accepted=2, pieces=pieces)
    found = step_trace(watched(), event, Texts(None))
    assert [token.text for token in found.tokens] == texts
    assert [(token.id, token.by) for token in found.tokens] == [(6, "draft"), (8, "draft"), (9, "bonus")]
    assert [token.prob for token in found.tokens] == [0.2, 0.4, None]
    assert found.draft.probs == (0.1, 0.2, None, 0.4)
    assert (found.step, found.ms) == (3, {"total": 1.5})


def test_tokens_that_a_form_forced_are_not_the_drafts() -> None:
    event = Event(request=1, tokens=(6, 8, 9), num_accepted=2)
    found = step_trace(watched(is_forced=True), event, Texts(None))
    assert [token.by for token in found.tokens] == ["forced", "forced", "bonus"]
    assert (found.draft.part, trace().steps[0].draft.part) == ("", "look-up")


def trace() -> Trace:
    event = Event(request=1, tokens=(6, 8, 9), num_accepted=2, pieces=(Piece("\u2028</script>", True),))
    return Trace(target="tiny", method="m", prompt="\u202e?", steps=(step_trace(watched(), event, Texts(None)),))


def test_a_line_is_read_back() -> None:
    line = trace().to_json()
    assert line.isascii()
    assert "\n" not in line
    assert Trace.from_json(line) == trace()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "outrider.trace/2"}, "not of the version"),
        ({"method": 7}, r"Trace\.method is 7 but must be a string"),
        ({"steps": {}}, r"Trace\.steps is {} but must be a list"),
        ({"draft": {"parents": [-1, 3, 1, 1]}}, "a node above its parent"),
        ({"draft": {"accepted": [4]}}, "accepts a node that it does not have"),
        ({"draft": {"texts": []}}, "whose fields differ in length"),
        ({"draft": {"probs": [0.1, -2, None, 0.4]}}, "below 0"),
        ({"ms": {"total": float("nan")}}, "must be a number"),
    ],
)
def test_a_damaged_line_is_refused_in_one_sentence(change: dict[str, Any], said: str) -> None:
    plain = json.loads(trace().to_json())
    [step] = plain["steps"]
    if "draft" in change:
        step["draft"] |= change["draft"]
    elif "ms" in change:
        step |= change
    else:
        plain |= change
    with pytest.raises(RunError, match=said) as caught:
        Trace.from_json(json.dumps(plain))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["", "[]", '{"schema"', "null", "[" * 100_000])
def test_other_json_is_refused(line: str) -> None:
    with pytest.raises(RunError, match="a trace cannot be read"):
        Trace.from_json(line)
