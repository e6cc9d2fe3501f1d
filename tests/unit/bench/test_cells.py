"""The plan of a run, and the settings it comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.bench.cells import cells_of, groups_of, running_order
from outrider.bench.config import BenchConfig
from outrider.bench.preset import configured, read_preset
from outrider.data.workloads import Conversation
from outrider.env import data_directory
from outrider.errors import ConfigError
from outrider.proposers.method_spec import coerced, method_specs, split_settings


def conversations(count: int) -> list[Conversation]:
    return [Conversation(id=f"c-{index}", category="c", turns=("x",)) for index in range(count)]


@given(count=st.integers(0, 40), batch=st.integers(1, 9))
def test_groups_hold_each_conversation_once_and_fill_the_batch(count: int, batch: int) -> None:
    members = conversations(count)
    groups = groups_of(members, batch)
    assert [one for group in groups for one in group] == members
    assert all(group for group in groups)
    if count >= batch:
        assert all(batch <= len(group) < 2 * batch for group in groups)
    assert sum(len(group) != batch for group in groups) <= 1


def test_prompts_fill_the_last_batch_and_teaching_prompts_are_others() -> None:
    config = BenchConfig(num_prompts=3, batches=(1, 4), repeats=1)
    narrow, wide = cells_of(config, {"c": conversations(12)})
    assert [len(group) for group in narrow.groups] == [1, 1, 1]
    assert [len(group) for group in wide.groups] == [4]
    for cell in (narrow, wide):
        measured = {one.id for group in cell.groups for one in group}
        taught = {one.id for group in cell.teaching for one in group}
        assert len(measured) == len(taught)
        assert not measured & taught


def test_a_queue_is_longer_than_the_batch() -> None:
    config = BenchConfig(num_prompts=6, batches=(1, 2, 4), repeats=1, queue=0.5)
    sizes = [[len(group) for group in cell.groups] for cell in cells_of(config, {"c": conversations(12)})]
    assert sizes == [[2, 2, 2], [3, 3], [6]]


def test_running_order_alternates_over_groups_and_repeats() -> None:
    assert running_order("abc", 0, 0) == running_order("abc", 1, 1) == ["a", "b", "c"]
    assert running_order("abc", 1, 0) == running_order("abc", 0, 1) == ["c", "b", "a"]


def test_settings_are_split_and_typed() -> None:
    assert split_settings("x:a=1,b=0,1,2,c=d") == ("x", {"a": "1", "b": "0,1,2", "c": "d"})
    with pytest.raises(ConfigError, match="no setting before"):
        split_settings("x:8")
    assert coerced(int | None, "none", "x") is None
    assert coerced(bool, "yes", "x") is True
    assert coerced(float, "0.5", "x") == 0.5
    assert coerced(str | None, "8", "x") == "8"
    with pytest.raises(ConfigError, match="true or false"):
        coerced(bool, "maybe", "x")


def test_a_method_is_named_by_its_settings_only_where_needed() -> None:
    (alone,) = method_specs(["draft_model:layers=0,num_nodes=2"])
    assert (alone.label, alone.settings) == ("draft_model", {"layers": "0", "num_nodes": 2})
    both = method_specs(["draft_model:layers=0", "draft_model:layers=1"])
    assert [choice.label for choice in both] == ["draft_model:layers=0", "draft_model:layers=1"]


def test_our_presets_are_read_and_what_is_given_wins() -> None:
    names = [path.stem for path in data_directory("recipes").glob("*.toml")]
    assert {"quick", "full"} <= set(names)
    for name in names:
        config = configured(read_preset(name))
        assert config.title
        assert method_specs(config.methods)
    assert configured(read_preset("quick"), repeats=1, batches=(2,)).batches == (2,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bathces": [1]}, "did you mean 'batches'"),
        ({"repeats": "three"}, "the setting repeats is 'three'"),
        ({"batches": []}, "batches is empty"),
        ({"categories": [], "prompts": []}, "there are no prompts"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(settings)


def test_plain_decoding_always_takes_part_and_repeated_entries_count_once() -> None:
    config = BenchConfig(methods=("x", "x"), batches=(1, 1))
    assert config.methods == ("none", "x")
    assert config.batches == (1,)
