"""From measurements to the table, with numbers worked out by hand."""

from pathlib import Path

import pytest
from figures import decoding, end_to_end, losses, rounds, rows, tokens_by
from ledger import Answer, Cell, Identity, Key, Ledger, Measurement
from page import page

OURS, NGRAM, PEER = Key("outrider", "plain"), Key("outrider", "ngram"), Key("other", "plain")
SETTINGS = {"max_new_tokens": 64, "threads": 2, "draft": "none", "machine": "a machine"}


def measured(key: Key, cell: Cell, first_s: float, last_s: float, tokens: tuple[int, ...]) -> Measurement:
    answer = Answer(tokens=tokens, arrivals=((first_s, 1), (last_s, len(tokens))))
    return Measurement(key=key, cell=cell, answers=(answer,), wall_s=last_s)


def cell(category: str, prompt: str, repeat: int) -> Cell:
    return Cell(num_requests=1, category=category, prompts=(prompt,), repeat=repeat)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Ours decodes 10 tokens/s, with n-grams 20; the other 30 on `a` and 5 on `b`, its third text ends elsewhere."""
    found = Ledger(tmp_path / "m.jsonl", SETTINGS)
    for category, speed in (("a", 30.0), ("b", 5.0)):
        for repeat in range(3):
            at = cell(category, f"{category}-1", repeat)
            tokens = tuple(range(11))
            found.add(measured(OURS, at, 0.5, 1.5, tokens))
            found.add(measured(NGRAM, at, 0.5, 1.0, tokens))
            other = (*range(5), 99) if (category, repeat) == ("b", 2) else tokens
            found.add(measured(PEER, at, 1.0, 1.0 + (len(other) - 1) / speed, other))
    found.identify(PEER, Identity(version="2.0", dtype="float16", notes="quick", settings=""))
    return found


def test_the_worked_example_of_the_module() -> None:
    found = measured(OURS, cell("a", "a-1", 0), 0.5, 2.6, tuple(range(64)))
    assert end_to_end(found) == pytest.approx(64 / 2.6)
    assert decoding(found) == pytest.approx(30.0)


def test_decoding_of_several_requests_counts_from_the_last_first_token() -> None:
    early = Answer(tokens=(1,) * 11, arrivals=((1.0, 1), (3.0, 11)))
    late = Answer(tokens=(1,) * 11, arrivals=((2.0, 1), (4.0, 11)))
    both = Measurement(key=OURS, cell=cell("a", "a-1", 0), answers=(early, late), wall_s=4.0)
    assert tokens_by(early.arrivals or (), 2.0) == pytest.approx(6.0)
    assert decoding(both) == pytest.approx((5 + 10) / 2.0)


def test_what_a_peer_does_not_say_stays_unknown() -> None:
    silent = Measurement(
        key=PEER, cell=cell("a", "a-1", 0), answers=(Answer(tokens=(1, 2), arrivals=None),), wall_s=1.0
    )
    assert decoding(silent) is None
    assert end_to_end(silent) == 2.0
    burst = Measurement(
        key=PEER, cell=cell("a", "a-1", 0), answers=(Answer(tokens=(1, 2), arrivals=((1.0, 2),)),), wall_s=1.0
    )
    assert decoding(burst) is None


def test_rows_hold_medians_and_ratios(ledger: Ledger) -> None:
    found = {row.key: row for row in rows(ledger, "plain", [99])}
    other = found[PEER]
    assert other.decoding["a"] == pytest.approx(30.0)
    assert other.decoding["b"] == pytest.approx(5.0)
    assert other.decoding["all"] == pytest.approx(150**0.5)
    assert other.to_ours is not None
    assert other.to_ours.point == pytest.approx((3 * 0.5) ** 0.5)
    assert other.to_own is not None
    assert other.to_own.point == 1.0
    assert found[NGRAM].to_ours is not None
    assert found[NGRAM].to_ours.point == pytest.approx(2.0)
    assert (other.num_answers, other.num_ended, other.num_repeats) == (6, 1, 3)
    assert other.same_text == pytest.approx(5 / 6)
    assert other.same_own == 1.0


def test_an_end_of_text_token_does_not_make_texts_differ(tmp_path: Path) -> None:
    found = Ledger(tmp_path / "m.jsonl", SETTINGS)
    at = cell("a", "a-1", 0)
    found.add(measured(OURS, at, 0.5, 1.5, (1, 2, 99)))
    found.add(measured(PEER, at, 0.5, 1.5, (1, 2)))
    assert {row.same_text for row in rows(found, "plain", [99])} == {1.0}


def test_cells_we_lose_are_found_and_marked(ledger: Ledger) -> None:
    found = rows(ledger, "plain", [99])
    [loss] = losses(found)
    assert (loss.category, loss.winner, loss.ours) == ("a", PEER, NGRAM)
    assert loss.our_rate / loss.winner_rate == pytest.approx(2 / 3)
    gone = Key("gone", "plain")
    text = page(found, ledger.identities, {gone: "no compiler"}, SETTINGS, [OURS, NGRAM, PEER, gone])
    assert "| 1 | other | plain | 30.0* | 5.0 | 12.2 | 1.22 (" in text
    assert "|  | gone | plain | did not run: no compiler |" in text
    assert "| 1 | a | other plain | 30.0 | ngram | 20.0 | 0.67 |" in text
    assert "| other | plain | 2.0 | float16 | quick |  |" in text


def test_rounds_of_one_and_of_several_requests() -> None:
    texts = {"a": ["a-1", "a-2", "a-3"], "b": ["b-1", "b-2"]}
    single = rounds(texts, 1, 2, 2)
    assert [found.prompts for found in single] == [("a-1",), ("a-2",), ("b-1",), ("b-2",)] * 2
    assert [found.repeat for found in single] == [0] * 4 + [1] * 4
    [mixed] = rounds(texts, 4, 2, 1)
    assert (mixed.category, mixed.prompts) == ("mixed", ("a-1", "b-1", "a-2", "b-2"))
