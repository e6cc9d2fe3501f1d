"""Where no method is named: what was tuned, else a shipped head, else suffix decoding with the adaptive budget."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outrider.costs.tuned import Tuned, TunedSpeedup, keep_tuned
from outrider.errors import ConfigError
from outrider.formats import shipped
from outrider.formats.eagle3 import write_native
from outrider.formats.store import fingerprint, provenance
from outrider.proposers import load_proposer
from outrider.proposers.auto import picked
from outrider.proposers.eagle3 import random_checkpoint
from outrider.target import Target
from outrider.testing import tiny_target


@pytest.fixture(autouse=True)
def heads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and an empty directory of shipped heads."""
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "head_roots", lambda: [tmp_path / "heads"])
    return tmp_path / "heads"


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(0, num_layers=6)


def tune(target: Target, method: str, budget: str = "fixed") -> None:
    """Keep a result as `outrider tune` does."""
    found = Tuned(
        target=target.spec.name,
        fingerprint=fingerprint(target),
        machine="a processor",
        method=method,
        budget=budget,  # type: ignore[arg-type]
        temperature=0.0,
        speedups=(TunedSpeedup(concurrency=1, point=1.25, low=1.2, high=1.3),),
        off_from=None,
        date="2026-01-02T03:04:05+00:00",
        run="/runs/x",
    )
    keep_tuned(target, found)


def ship(target: Target, heads: Path) -> None:
    directory = heads / "tiny" / "eagle3"
    directory.mkdir(parents=True)
    head = replace(random_checkpoint(target, 1), provenance=provenance(target))
    write_native(directory, head, torch.float64)


def test_without_weights_it_is_suffix_decoding_that_may_stop(target: Target) -> None:
    assert picked(target)[:2] == (picked(target).spec, "auto")
    assert picked(target).text == "suffix"
    assert type(load_proposer("auto", target)) is type(load_proposer("suffix", target))


def test_a_shipped_head_is_picked_for_its_target_alone(target: Target, heads: Path) -> None:
    ship(target, heads)
    pick = picked(target)
    assert (pick.text, pick.budget) == ("eagle3", "fixed")
    assert "is shipped for this target" in pick.why
    assert picked(tiny_target(1, num_layers=6)).text == "suffix"
    assert load_proposer("auto", target).spec.feature_layers


def test_what_was_tuned_comes_first(target: Target, heads: Path, caplog: pytest.LogCaptureFixture) -> None:
    ship(target, heads)
    tune(target, "ngram:num_nodes=3", "auto")
    with caplog.at_level(logging.INFO, "outrider"):
        pick = picked(target)
    assert (pick.text, pick.budget) == ("ngram:num_nodes=3", "auto")
    [line] = caplog.messages
    assert line == (
        "auto picked ngram:num_nodes=3 with the adaptive budget: outrider tune found it here on 2026-01-02, "
        "1.25 times plain decoding at one request"
    )
    assert load_proposer("auto", target).spec.max_nodes == 3


def test_leave_it_off_is_a_result(target: Target) -> None:
    tune(target, "none")
    assert picked(target).text == "none"
    assert load_proposer("auto", target).spec.max_nodes == 0


@pytest.mark.parametrize("method", ["eagle3:checkpoint=/gone/head", "a_method_of_another_package", "ngram:depth=3"])
def test_what_can_no_longer_be_used_is_passed_over(
    method: str, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    tune(target, method)
    assert picked(target).text == "suffix"
    assert "cannot be used now" in caplog.text


def test_settings_go_with_a_method(target: Target) -> None:
    with pytest.raises(ConfigError, match="leave out num_nodes, or name a method"):
        load_proposer("auto", target, num_nodes=3)
