"""The stopwatch: host time on the CPU, events on a GPU, read once and late."""

import pytest
import torch

from outrider.loop.clock import Clock


class FakeEvent:
    """An event of a device on which every recording comes 2 ms after the one before."""

    made: list["FakeEvent"] = []  # noqa: RUF012
    num_waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = 2.0 * len(FakeEvent.made)
        FakeEvent.made.append(self)

    def synchronize(self) -> None:
        FakeEvent.num_waits += 1

    def elapsed_time(self, other: "FakeEvent") -> float:
        return other.at_ms - self.at_ms


def test_marks_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = Clock(torch.device("cuda"))
    for part in ("propose", "verify", "propose", "host"):
        with clock(part):
            pass
    assert FakeEvent.num_waits == 0
    assert clock.seconds() == {
        "propose_s": 0.004,
        "verify_s": 0.002,
        "accept_s": 0.0,
        "commit_s": 0.0,
        "host_s": 0.002,
    }
    assert FakeEvent.num_waits == 1


def test_parts_add_up_on_the_host() -> None:
    clock = Clock(torch.device("cpu"))
    for part in ("propose", "verify", "host"):
        with clock(part):
            pass
    seconds = clock.seconds()
    assert seconds["accept_s"] == 0.0
    assert sum(seconds.values()) == pytest.approx(clock._marks[-1] - clock._marks[0])


def test_an_unknown_part_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="'lunch'"):
        Clock(torch.device("cpu"))("lunch")


def test_an_open_block_is_not_counted() -> None:
    clock = Clock(torch.device("cpu"))
    with clock("verify"):
        pass
    with clock("host"):
        seconds = clock.seconds()
    assert seconds["verify_s"] > 0
    assert seconds["host_s"] == 0
    assert clock.seconds()["host_s"] > 0
