"""How far texts are equal, answer by answer."""

from typing import Any

from outrider.results.equality.summary import equality_of
from outrider.results.rows import Equality
from outrider.results.unit import Answer, UnitResult


def unit(*texts: tuple[str, int, tuple[int, ...]], **more: Any) -> UnitResult:
    answers = [
        Answer(conversation=name, turn=turn, request=at, seed=0, num_prompt_tokens=1, tokens=tokens)
        for at, (name, turn, tokens) in enumerate(texts)
    ]
    fields = {"method": "m", "category": "c", "batch": 1, "temperature": 0.0, "repeat": 0, "wall_s": 1.0} | more
    return UnitResult(unit="u", conversations=("a",), answers=tuple(answers), **fields)  # type: ignore[arg-type]


def test_the_example_of_the_docstring() -> None:
    first, second = tuple(range(10)), tuple(range(8))
    plain, own = unit(("a", 0, first), ("b", 0, second)), unit(("a", 0, first), ("b", 0, (0, 1, 2, 9, 9, 9, 9, 9)))
    assert equality_of([(own, plain)]) == Equality(num_answers=2, num_equal=1, equal_share=(1 + 3 / 8) / 2)


def test_turns_behind_a_difference_are_not_compared() -> None:
    plain = unit(("a", 0, (1, 2)), ("a", 1, (3, 4)), ("b", 0, (5,)))
    own = unit(("a", 1, (3, 4)), ("a", 0, (1, 9)), ("b", 0, (5,)))
    assert equality_of([(own, plain)]) == Equality(num_answers=2, num_equal=1, equal_share=0.75)


def test_nothing_to_compare() -> None:
    assert equality_of([]) is None
    assert equality_of([(unit(("a", 1, (1,))), unit(("a", 0, (1,))))]) is None
