"""Methods and their settings by name: every spelling, every wrong type, and the head that is meant without a word."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from outrider.errors import ConfigError
from outrider.formats import shipped
from outrider.formats.eagle3 import write_native
from outrider.formats.store import provenance
from outrider.proposers import configure, load_proposer, method_name, with_checkpoint
from outrider.proposers.eagle3 import random_checkpoint
from outrider.proposers.method_spec import exported_checkpoint, method_specs, spelled, split_settings, with_heads
from outrider.proposers.settings import checked_settings
from outrider.target import Target
from outrider.testing.tiny import tiny_target
from outrider.train.objectives import objective_name

SPELLINGS = {
    "draft_model": ("draft_model", "draft-model", "draft", "Draft-Model", "draftmodel"),
    "eagle3": ("eagle3", "eagle-3", "EAGLE_3", "eagle 3"),
    "ngram": ("ngram", "n-gram", "NGram"),
    "none": ("none", "None"),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
def test_a_method_is_known_in_every_spelling(name: str, text: str) -> None:
    assert method_name(text) == name
    assert spelled(f"{text}:num_nodes=3") == f"{name}:num_nodes=3"


@pytest.mark.parametrize(("text", "near"), [("eagle4", "eagle3"), ("draft_modle", "draft_model"), ("", "known: ")])
def test_an_unknown_method_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown method '{text}'; .*{near}"):
        method_name(text)


def test_settings_are_known_with_dashes_and_only_once() -> None:
    assert split_settings("x:num-nodes=3,a-b=1,2") == ("x", {"num_nodes": "3", "a_b": "1,2"})
    [choice] = method_specs(["draft-model:layers=0,1,num-nodes=2"])
    assert (choice.name, choice.label) == ("draft_model", "draft_model")
    assert choice.settings == {"layers": "0,1", "num_nodes": 2}
    with pytest.raises(ConfigError, match="gives num_nodes twice"):
        split_settings("x:num_nodes=3,num-nodes=4")
    with pytest.raises(ConfigError, match="has a value without a setting"):
        split_settings("x:=4")


def test_the_labels_of_several_settings_have_one_name() -> None:
    labels = [choice.label for choice in method_specs(["n-gram:num_nodes=2", "ngram:num_nodes=3"])]
    assert labels == ["ngram:num_nodes=2", "ngram:num_nodes=3"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int
    share: float = 0.5
    flag: bool = False
    name: str | None = None
    shares: tuple[float, ...] = ()
    kind: Literal["a", "b"] = "a"
    free: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"count": np.int64(3)}, {"count": 3}),
        ({"count": 3, "share": 1}, {"count": 3, "share": 1.0}),
        ({"count": 3, "name": (0, 1, 28)}, {"count": 3, "name": "0,1,28"}),
        ({"count": 3, "name": Path("a/b")}, {"count": 3, "name": "a/b"}),
        ({"count": 3, "name": None, "flag": True}, {"count": 3, "name": None, "flag": True}),
        ({"count": 3, "shares": [1, 0.5]}, {"count": 3, "shares": (1.0, 0.5)}),
        ({"count": 3, "kind": "b", "free": {"x": 1}}, {"count": 3, "kind": "b", "free": {"x": 1}}),
    ],
)
def test_values_of_their_type_are_taken(given: dict[str, Any], taken: dict[str, Any]) -> None:
    assert checked_settings("x", Settings, given) == taken


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs the setting 'count': write x:count=VALUE"),
        ({"count": "3"}, "count='3' must be a whole number"),
        ({"count": 3.0}, "count=3.0 must be a whole number"),
        ({"count": True}, "count=True must be a whole number"),
        ({"count": None}, "count=None must be a whole number"),
        ({"count": 3, "share": float("nan")}, "share=nan must be a number"),
        ({"count": 3, "share": float("inf")}, "share=inf must be a number"),
        ({"count": 3, "share": "0.5"}, "share='0.5' must be a number"),
        ({"count": 3, "flag": 1}, "flag=1 must be True or False"),
        ({"count": 3, "name": 5}, "name=5 must be text"),
        ({"count": 3, "name": []}, r"name=\[\] must be text"),
        ({"count": 3, "shares": [0.5, "x"]}, r"shares=\[0.5, 'x'\] must be a number"),
        ({"count": 3, "kind": "c"}, "kind='c' must be one of a, b"),
        ({"count": 3, "cuont": 3}, "no setting 'cuont'; did you mean 'count'"),
    ],
)
def test_values_of_another_type_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_settings("x", Settings, given)


def test_a_method_without_settings_says_so() -> None:
    with pytest.raises(ConfigError, match="method 'none' has no settings, but 'num_nodes' was given"):
        configure("none", {"num_nodes": 3})


def test_a_target_must_be_loaded() -> None:
    with pytest.raises(ConfigError, match=r"drafts for a loaded target, not 'smollm2-135m'; pass load_target"):
        load_proposer("ngram", "smollm2-135m")  # type: ignore[arg-type]


@pytest.fixture
def target() -> Target:
    return tiny_target(num_layers=6)


@pytest.fixture
def head(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head that is shipped for the target."""
    directory = tmp_path / "tiny" / "eagle3"
    directory.mkdir(parents=True)
    checkpoint = random_checkpoint(target, 0)
    object.__setattr__(checkpoint, "provenance", provenance(target))
    write_native(directory, checkpoint, target.spec.dtype)
    monkeypatch.setattr("outrider.formats.shipped.head_roots", lambda: [tmp_path])
    return directory


@pytest.mark.usefixtures("head")
@pytest.mark.parametrize("name", ["eagle3", "EAGLE-3", "hybrid"])
def test_the_shipped_head_is_meant_without_a_checkpoint(name: str, target: Target) -> None:
    assert load_proposer(name, target, num_nodes=2).spec.max_nodes >= 2


def test_a_run_says_which_head_it_took(head: Path, target: Target) -> None:
    [choice] = with_heads(method_specs(["eagle3:num_nodes=2"]), target)
    assert choice.settings == {"num_nodes": 2, "checkpoint": str(head)}
    [given] = with_heads(method_specs(["eagle3:checkpoint=mine"]), target)
    assert given.settings == {"checkpoint": "mine"}
    [cut] = with_heads(method_specs(["draft_model:layers=0"]), target)
    assert cut.settings == {"layers": "0"}


def test_export_takes_a_method_or_a_directory(head: Path, target: Target) -> None:
    assert exported_checkpoint("eagle-3", target) == head
    assert exported_checkpoint(str(head), target) == head
    assert exported_checkpoint(f"eagle3:checkpoint={head}", target) == head
    for text in ("ngram", "draft_model:layers=0"):
        with pytest.raises(ConfigError, match=f"method '{text}' has no weights of its own to export"):
            exported_checkpoint(text, target)


@pytest.mark.usefixtures("head")
@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("eagle3", "write eagle3:checkpoint=DIR with"),
        ("draft-model", "write draft_model:checkpoint=DIR with a directory or hub id, or draft_model:layers="),
        ("hybrid", "write hybrid:drafter=eagle3,checkpoint=DIR with"),
    ],
)
def test_without_a_shipped_head_the_missing_setting_is_named(name: str, spelling: str) -> None:
    other = tiny_target(1, num_layers=6)
    with pytest.raises(ConfigError, match=f"'checkpoint', since no head .* tiny-1: {spelling}.*drafters tiny-1` lists"):
        load_proposer(name, other)


def test_without_any_shipped_head_that_is_said(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.formats.shipped.head_roots", list)
    with pytest.raises(ConfigError, match="no shipped heads are on this machine"):
        load_proposer("medusa", target)


def test_the_name_of_a_known_place_is_kept(head: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {"tiny": None}
    monkeypatch.setattr(shipped, "EMBEDDED", found)
    locate: Callable[[str], Path] = lambda name: head  # noqa: E731
    monkeypatch.setattr(shipped, "locate", locate)
    assert with_checkpoint("eagle3", configure("eagle3", {}), target).checkpoint == "tiny/eagle3"


def test_training_knows_the_same_names() -> None:
    assert [objective_name(text) for text in ("draft", "draft-model", "draft_model", "EAGLE-3")] == [
        "draft",
        "draft",
        "draft",
        "eagle3",
    ]
    with pytest.raises(ConfigError, match="method 'ngram' has no weights to train; train one of eagle3"):
        objective_name("n-gram")
    with pytest.raises(ConfigError, match="unknown method 'eagel3'; did you mean 'eagle3'"):
        objective_name("eagel3")
