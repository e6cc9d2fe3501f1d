"""The test of a law: its statistics against plain formulas, few false alarms, and faults that it sees."""

import math
import random
from dataclasses import replace

import pytest
from test_audit_run import SMALL

from outrider import load_proposer
from outrider.audit import audit
from outrider.audit.layers.uniform import chance_of, detectable_distance, holm, largest_distance
from outrider.testing import tiny_target


def test_the_distance_is_that_of_the_two_functions() -> None:
    values = [0.1, 0.2, 0.9]
    # just behind 0.2 two thirds lie below, and just before 0.9 too
    assert largest_distance(values) == pytest.approx(0.7 / 1.5)
    assert largest_distance([0.25, 0.75]) == pytest.approx(0.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([], 0.05) == []


def test_false_alarms_stay_within_the_budget() -> None:
    """2,000 uniform samples at one in twenty: at most 100 are expected, and 139 is four deviations above."""
    draw = random.Random(1)
    samples = [[draw.random() for _ in range(100)] for _ in range(2000)]
    alarms = sum(chance_of(largest_distance(sample), 100) <= 0.05 for sample in samples)
    assert 0 < alarms <= 100 + 4 * math.sqrt(2000 * 0.05 * 0.95)


def test_a_law_at_the_stated_distance_is_seen_nineteen_times_in_twenty() -> None:
    """Values uniform on [d, 1] lie at a distance of d from uniform: 400 samples, 380 alarms at least."""
    draw, count, alpha, tests = random.Random(2), 300, 0.001, 4
    least = detectable_distance(count, tests, alpha)
    found = [
        chance_of(largest_distance([least + (1 - least) * draw.random() for _ in range(count)]), count)
        for _ in range(400)
    ]
    assert sum(chance <= alpha / tests for chance in found) >= 380
    # and the statement is not idle: a third of that distance is mostly missed
    third = least / 3
    missed = [
        chance_of(largest_distance([third + (1 - third) * draw.random() for _ in range(count)]), count)
        for _ in range(100)
    ]
    assert sum(chance <= alpha / tests for chance in missed) < 20


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_sampled_rules_keep_the_law_and_every_planted_fault_is_caught(rule: str) -> None:
    target = tiny_target(max_positions=128)
    config = replace(
        SMALL, verification=(rule,), temperatures=(0.7,), processors=("none",), batches=(3,), law_tokens=768
    )
    report = audit(config, target, {"ngram": load_proposer("ngram", target)})
    assert report.verdict == "PASS", report.sentence
    [law] = [layer for layer in report.layers if layer.name == "law"]
    assert law.count("num_tokens") >= 768
    [controls] = [layer for layer in report.layers if layer.name == "controls"]
    caught = {one.name.rpartition(": ")[2] for one in controls.findings if one.counts.get("is_caught")}
    assert {"the bonus by argmax", "one token too many", "false probabilities"} <= caught
