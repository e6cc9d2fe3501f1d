"""What a page is told of a step, and who may take it."""

import pytest

from outrider.draft import Tree
from outrider.requests.events import Event
from outrider.requests.text import Piece
from outrider.serve.engines.tracing import StepTrace, path_of
from outrider.serve.steps import Texts, step_json

TREE = Tree([5, 6, 7, 8], [-1, -1, 1, 1])


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
    trace = StepTrace(step=3, tree=TREE, accepted=(1, 3), probs=(0.1, 0.2, None, 0.4), seconds={"total": 0.0015})
    event = Event(request=1, tokens=(6, 8, 9), num_accepted=2, pieces=pieces)
    found = step_json(trace, event, Texts(None))
    assert [token["text"] for token in found["tokens"]] == texts
    assert [(token["id"], token["by"]) for token in found["tokens"]] == [(6, "draft"), (8, "draft"), (9, "bonus")]
    assert found["draft"]["probs"] == [0.1, 0.2, None, 0.4]
    assert (found["step"], found["ms"]) == (3, {"total": 1.5})
