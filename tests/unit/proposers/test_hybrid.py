"""The hybrid takes whichever has been worth more, and learns that from every lookup, taken or not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import pytest
import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.errors import ConfigError
from outrider.proposer import Commit, DraftLimit, Session
from outrider.proposers.hybrid import HybridConfig, HybridSession, Worth, bucket, num_equal
from outrider.proposers.lookup.slot_index import SlotIndex
from outrider.sampling import SamplingParams

REPEATED = [5, 6, 7, 8, 9, 10, 11, 12, 13, 5, 6, 7, 8, 9, 10, 11, 12, 13, 5, 6, 7, 8, 9]
LIMIT = DraftLimit(8, 8)


@final
@dataclass(eq=False)
class Nines(Session):
    """A head that always drafts two nines, and remembers for whom."""

    asked: list[list[int]] = field(default_factory=list)

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        pass

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        self.asked.append(list(slots))
        assert all(limit.num_nodes <= 2 for limit in limits)
        return Draft.of_chains([[99, 99] for _ in slots])

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        pass

    def release(self, slot: int) -> None:
        pass

    def reset(self) -> None:
        pass

    @property
    def num_bytes(self) -> int:
        return 7


@pytest.fixture
def head() -> Nines:
    return Nines()


@pytest.fixture
def session(head: Nines) -> HybridSession:
    config = HybridConfig(drafter="mtp", checkpoint="", lookup_nodes=8)
    return HybridSession(head, 2, config, SlotIndex(24, 10_000), torch.device("cpu"))


def test_a_long_match_is_looked_up_and_the_head_asked_for_the_others(session: HybridSession, head: Nines) -> None:
    session.admit(3, REPEATED, SamplingParams(), None)
    session.admit(1, [1, 2, 3, 4], SamplingParams(), None)
    draft = session.propose([3, 1], [LIMIT, LIMIT])
    assert [tree.tokens for tree in draft.trees] == [[10, 11, 12, 13, 5, 6, 7, 8], [99, 99]]
    assert head.asked == [[1]]
    assert (session.part(3), session.part(1)) == ("look-up", "mtp")


def test_lookups_that_fail_are_given_up_and_come_back_when_they_would_have_been_right(
    session: HybridSession, head: Nines
) -> None:
    session.admit(0, REPEATED, SamplingParams(), None)
    found = session.propose([0], [LIMIT])
    where = session.lookups[0].bucket
    for _ in range(30):
        session.worth.saw_lookup(where, 0)
    for _ in range(10):
        session.worth.saw_head(1)
    assert session.propose([0], [LIMIT]).trees[0].tokens == [99, 99]
    for _ in range(20):  # the head is wrong, the lookup would have been right
        session.propose([0], [LIMIT])
        assert session.lookups[0].tokens[:1] == [found.trees[0].tokens[0]]
        session.observe([Commit(slot=0, rows=[0], tokens=[found.trees[0].tokens[0]], place=0)], None)
        session.strings.close(0)
        session.admit(0, REPEATED, SamplingParams(), None)
    assert session.propose([0], [LIMIT]).trees[0].tokens == found.trees[0].tokens


def test_forgetting_starts_again(session: HybridSession) -> None:
    session.admit(0, REPEATED, SamplingParams(), None)
    session.propose([0], [LIMIT])
    for _ in range(50):
        session.worth.saw_lookup(session.lookups[0].bucket, 0)
    session.release(0)
    session.reset()
    session.admit(0, REPEATED, SamplingParams(), None)
    assert len(session.propose([0], [LIMIT]).trees[0].tokens) == 8


def test_no_room_means_no_lookup(session: HybridSession, head: Nines) -> None:
    session.admit(0, REPEATED, SamplingParams(), None)
    session.propose([0], [DraftLimit(0, 0)])
    assert head.asked == [[0]]


def test_a_short_lookup_cannot_be_worth_more_than_its_length() -> None:
    worth = Worth()
    for _ in range(40):
        worth.saw_lookup(4, 8)
        worth.saw_head(2)
    assert worth.prefers_lookup(4, 2)
    assert not worth.prefers_lookup(4, 1)


def test_matches_are_classed_by_powers_of_two() -> None:
    assert [bucket(length) for length in (0, 1, 2, 3, 4, 7, 8, 15, 16, 400)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_tokens_that_both_begin_with_are_counted() -> None:
    assert [num_equal([1, 2, 3], other) for other in ([], [9], [1, 9], [1, 2, 3], [1, 2, 3, 4])] == [0, 0, 1, 3, 3]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("drafter", "none", "drafter=none cannot draft in a hybrid"),
        ("drafter", "oracle", "drafter=oracle cannot draft in a hybrid"),
        ("drafter", "hybrid", "drafter=hybrid cannot draft in a hybrid"),
        ("drafter", "eagel3", "unknown method 'eagel3'"),
        ("num_nodes", 0, "num_nodes=0 must be between 1 and 256"),
        ("lookup_nodes", 300, "lookup_nodes=300"),
        ("max_depth", 1, "max_depth=1 must be between 2"),
        ("max_cached_requests", -2, "max_cached_requests=-2 must be -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridConfig(**{"drafter": "mtp", "checkpoint": "", setting: value})  # type: ignore[arg-type]
