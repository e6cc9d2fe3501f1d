"""The 13-gram check finds copies, whatever their dress, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.data.contamination import NGRAM, overlap, words_of
from outrider.errors import ConfigError

WORDS = [f"word{index}" for index in range(60)]
words = st.lists(st.sampled_from(WORDS), min_size=NGRAM, max_size=40, unique=True)


def sentence(first: int, count: int) -> str:
    return " ".join(WORDS[first : first + count])


@settings(deadline=None)
@given(words, words, words)
def test_a_copied_run_is_found_wherever_it_stands(before: list[str], copied: list[str], after: list[str]) -> None:
    training = " ".join([*before, *copied[:NGRAM], *after])
    assert overlap([" ".join(copied)], [training]).share == 1


@settings(deadline=None)
@given(words)
def test_case_punctuation_and_spacing_hide_nothing(copied: list[str]) -> None:
    dressed = ",\n ".join(word.upper() for word in copied)
    assert overlap([" ".join(copied)], [f"«{dressed}»!"]).share == 1


def test_one_word_less_than_the_run_is_not_enough() -> None:
    text = sentence(0, 30)
    assert overlap([text], [sentence(5, NGRAM)]).share == 1
    assert overlap([text], [sentence(5, NGRAM - 1)]).share == 0


def test_a_run_may_not_span_two_training_texts() -> None:
    assert overlap([sentence(0, NGRAM)], [sentence(0, 7), sentence(7, 20)]).share == 0


def test_a_short_text_overlaps_only_as_a_whole() -> None:
    assert overlap([sentence(0, 8)], [sentence(0, 8) + " tail"]).indices == (0,)
    assert overlap([sentence(0, 8)], [sentence(0, 7) + " tail"]).indices == ()


def test_a_very_short_text_is_not_judged() -> None:
    found = overlap(["thank you", sentence(0, 20)], ["thank you"])
    assert (found.num_texts, found.num_judged, found.num_training_texts) == (2, 1, 1)
    assert found.share == 0
    assert overlap(["thank you"], ["thank you"]).share is None


def test_the_share_counts_texts_and_names_them() -> None:
    texts = [sentence(0, 20), sentence(20, 20), sentence(40, 20)]
    found = overlap(texts, iter([sentence(30, 25), "unrelated"]))
    assert found.indices == (2,)
    assert found.share == pytest.approx(1 / 3)


def test_the_length_of_the_run_can_be_chosen_within_reason() -> None:
    assert overlap([sentence(0, 20)], [sentence(3, 6)], length=6).share == 1
    with pytest.raises(ConfigError, match="length=4"):
        overlap([], [], length=4)


def test_words_are_normalised() -> None:
    assert words_of("Ｆｕｌｌ wIDTH, straße_2!") == ["full", "width", "strasse", "2"]
