"""The filters leave out what is no prompt, in any language, and nothing of what is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.data.contamination import Sought, words_of
from outrider.data.filters import PromptFilter, benchmark_prompts
from outrider.data.workloads import CATEGORIES, load_category
from writing import words

GOOD = (
    "Why is the sky blue?",
    "今天天气怎么样？请告诉我。",
    "Опиши, пожалуйста, как работает двигатель.",
    "ما هي عاصمة فرنسا؟",
    "Fix this: `for i in range(10): print(i]`",
    "Solve 3x + 2 = 11.",
    "क्या आप मुझे एक कहानी सुना सकते हैं?",
)


def prompt_filter(max_tokens: int = 256, **evaluation: list[str]) -> PromptFilter:
    return PromptFilter(max_tokens=max_tokens, evaluation={name: Sought(texts) for name, texts in evaluation.items()})


def fault(text: str, judge: PromptFilter | None = None, tokens: list[int] | None = None) -> str | None:
    return (judge or prompt_filter()).fault(text, list(text.encode()) if tokens is None else tokens)


@pytest.mark.parametrize("text", GOOD)
def test_prompts_of_every_language_pass(text: str) -> None:
    assert fault(text) is None


def test_our_own_prompts_pass() -> None:
    for name in CATEGORIES:
        for one in load_category(name):
            assert prompt_filter(10**6).wrong_form(one.turns[0], one.turns[0].split()) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ok", "length"),
        ("a very long prompt " * 20, "length"),
        ("broken \ufffd character", "unprintable"),
        ("a bell \x07 rings here", "unprintable"),
        ("------------- !!! --------", "not text"),
        ("the same again, " * 10, "repetitive"),
    ],
)
def test_what_is_no_prompt_is_left_out(text: str, wanted: str) -> None:
    assert fault(text) == wanted


@given(st.integers(0, 10**6))
def test_equal_and_near_equal_prompts_are_found(seed: int) -> None:
    text, judge = words(seed, 24), prompt_filter()
    judge.keep(text)
    assert fault(text.upper() + "!", judge, list(range(30))) == "duplicate"
    assert fault(text + " ra", judge, list(range(30))) == "near duplicate"
    assert [fault(other, judge, list(range(30))) for other in GOOD] == [None] * len(GOOD)


def test_what_was_forgotten_may_come_again() -> None:
    judge = prompt_filter()
    judge.keep(GOOD[0])
    assert fault(GOOD[0], judge) == "duplicate"
    judge.forget(GOOD[0])
    assert fault(GOOD[0], judge) is None


@pytest.mark.parametrize("name", CATEGORIES)
def test_prompts_of_the_benchmark_are_found(name: str) -> None:
    judge = PromptFilter(max_tokens=10**6, evaluation=benchmark_prompts())
    for one in [one for one in load_category(name) if len(words_of(one.turns[0])) >= 5][:3]:
        assert str(judge.overlaps(f"please: {one.turns[0].upper()}")).startswith("overlap with ")
    assert judge.overlaps(words(name, 60)) is None


def test_an_overlap_is_thirteen_words_long() -> None:
    planted = words("planted", 40).split()
    judge = prompt_filter(chat=[" ".join(planted)])
    assert judge.overlaps("and " + " ".join(planted[5:18]) + " too") == "overlap with chat"
    assert judge.overlaps("and " + " ".join(planted[5:17]) + " too") is None
