"""What is asked for wins over a preset, whose caps do not hide it."""

from pathlib import Path

import pytest
import tyro

from outrider.bench.cells import cells_of
from outrider.bench.config import BenchConfig
from outrider.bench.preset import chosen, read_preset
from outrider.cli.commands.bench import with_settings
from outrider.data.workloads import Conversation
from outrider.errors import ConfigError


def asked(*arguments: str) -> BenchConfig:
    return tyro.cli(with_settings(), args=list(arguments)).config()


def test_prompts_alone_are_those_prompts_and_all_of_them() -> None:
    config = asked("--prompts", "mine.jsonl")
    assert (config.categories, config.all_prompts, config.max_prompt_tokens) == ((), True, None)
    assert config.external_categories is None
    both = asked("--prompts", "mine.jsonl", "--categories", "chat", "--max-prompt-tokens", "50")
    assert (both.categories, both.all_prompts, both.max_prompt_tokens) == (("chat",), True, 50)
    few = asked("--prompts", "mine.jsonl", "--num-prompts", "3")
    assert (few.all_prompts, few.num_prompts) == (False, 3)


def test_all_prompts_of_a_file_are_in_the_plan_and_a_category_of_ours_keeps_its_number() -> None:
    workload = {
        name: [Conversation(id=f"{name}{at}", category=name, turns=("x",)) for at in range(20)] for name in "ab"
    }
    config = BenchConfig(num_prompts=3, batches=(1, 4), repeats=1)
    counts = {
        (cell.batch, cell.category): sum(map(len, cell.groups)) for cell in cells_of(config, workload, frozenset("b"))
    }
    assert counts == {(1, "a"): 3, (1, "b"): 20, (4, "a"): 4, (4, "b"): 20}


def test_an_option_without_a_value_is_empty() -> None:
    assert asked("--methods").methods == ("none",)
    assert asked("--external").external == ()
    assert asked("--external-categories").external_categories == ()
    assert asked("--categories", "--prompts", "mine.jsonl").categories == ()
    for option, said in (("--batches", "batches is empty"), ("--temperatures", "temperatures is empty")):
        with pytest.raises(ConfigError, match=said):
            asked(option)
    with pytest.raises(ConfigError, match="there are no prompts"):
        asked("--categories")
    with pytest.raises(ConfigError, match="there is no engine"):
        asked("--engine")


def test_what_the_preset_lists_may_be_left_out_and_what_is_asked_for_may_not() -> None:
    preset = read_preset("quick")
    assert asked("--target", "mine").optional == (*preset["methods"], *preset["external"])
    assert asked("--target", "mine", "--methods", "ngram").optional == tuple(preset["external"])
    assert asked("--methods", "ngram", "--external", "transformers").optional == ()


def test_baselines_that_are_asked_for_answer_everything() -> None:
    config = asked("--external", "transformers", "--categories", "code")
    assert config.external_categories is None
    assert config.external_prompts >= config.num_prompts
    assert asked("--external", "transformers", "--external-prompts", "1").external_prompts == 1


def test_a_preset_of_ones_own_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('target = "a"\nmethods = ["ngram"]\n')
    assert chosen(str(path), {}).optional == ()
    assert chosen(str(path), {"target": "a"}).optional == ()
    assert chosen(str(path), {"target": "b"}).optional == ("ngram",)
    path.write_text("methods = 3\ntarget = 4\n")
    with pytest.raises(ConfigError, match="the setting"):
        chosen(str(path), {"target": "b"})


def test_a_batch_larger_than_its_category_is_no_cell() -> None:
    workload = {"c": [Conversation(id=str(at), category="c", turns=("x",)) for at in range(4)]}
    cells = list(cells_of(BenchConfig(batches=(1, 4, 8), repeats=1, num_prompts=8), workload))
    assert [cell.batch for cell in cells] == [1, 4]


def test_an_optional_engine_of_a_preset_stays_optional() -> None:
    assert {"vllm", "llama.cpp"} <= {*chosen("engines", {}).optional}
