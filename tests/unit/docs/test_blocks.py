"""What the pages take from the code."""

import dataclasses
from pathlib import Path

import pytest
from blocks import blocks_of, commands, documented_fields, pictures, results, settings, source

from outrider.cli import COMMANDS
from outrider.errors import ConfigError
from outrider.proposers import REGISTRY, proposer_class
from outrider.results.pages.results import short_tables
from outrider.results.rows import Report, to_json


@pytest.mark.parametrize("name", REGISTRY)
def test_every_setting_is_explained_with_its_default(name: str) -> None:
    table = settings(name)
    fields = dataclasses.fields(proposer_class(name).Config)
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(lines) == len(fields)
    for field, line in zip(fields, lines, strict=True):
        assert line.startswith(f"| `{field.name}` |")
        assert ("required" if field.default is dataclasses.MISSING else f"`{field.default!r}`") in line


def test_every_method_has_a_line() -> None:
    table = blocks_of(Path())["methods"]("somewhere")
    lines = table.splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(REGISTRY)
    assert all(f"(somewhere/{name}.md)" in line for name, line in zip(REGISTRY, lines, strict=True))
    assert "| nothing | no | none |" in lines[0]


def test_fields_are_read_from_a_docstring() -> None:
    text = """What it is.

    one        the first,
               which goes on
    two, three   both of these
    Not a field.
      not one either
    """
    assert documented_fields(text) == {
        "one": "the first, which goes on",
        "two": "both of these",
        "three": "both of these",
    }


def test_every_command_is_shown_with_its_help() -> None:
    text = commands()
    for name in COMMANDS:
        assert f"## `outrider {name}`" in text
        assert f"usage: outrider {name}" in text


def test_a_definition_is_shown_as_it_stands(tmp_path: Path) -> None:
    text = "import os\nfrom a import b\n\n\n@final\nclass A:\n    x = 1\n\n"
    (tmp_path / "file.py").write_text(text + "    @property\n    def f(self):\n        return 2\n")
    assert source(tmp_path, "file.py#") == "```python\nimport os\nfrom a import b\n```"
    assert source(tmp_path, "file.py#A.f") == "```python\n@property\ndef f(self):\n    return 2\n```"
    assert source(tmp_path, "file.py#A").startswith("```python\n@final\nclass A:\n    x = 1")


@pytest.mark.parametrize(
    ("place", "says"), [("gone.py#A", "gone.py, which does not exist"), ("file.py#Bb", "no 'Bb'; did you mean 'B'")]
)
def test_a_definition_that_is_gone_is_named(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "file.py").write_text("class B:\n    pass\n")
    with pytest.raises(ConfigError, match=says):
        source(tmp_path, place)


def test_a_committed_run_is_shown_and_drawn(report: Report, tmp_path: Path) -> None:
    assert "No run has been committed" in results(tmp_path, "quick")
    assert pictures(tmp_path) == {}
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "quick.json").write_text(to_json(report), encoding="utf-8")
    assert "| editing | `slow` | 0.50 [0.40, 0.70] |" in results(tmp_path, "quick")
    short = results(tmp_path, "quick", short_tables)
    assert "| editing | `slow` | 0.50 [0.40, 0.70] |" in short
    assert len(short.splitlines()) < len(results(tmp_path, "quick").splitlines())
    ((path, drawn),) = pictures(tmp_path).items()
    assert path.name == "quick.svg"
    assert drawn.startswith("<svg ")


def test_a_command_is_shown_with_what_it_prints() -> None:
    words = [
        "plan",
        "--hardware",
        "l4",
        "--model",
        "qwen2.5-7b",
        "--acceptance",
        "0.5",
        "--nodes",
        "1",
        "--batches",
        "1",
    ]
    shown = blocks_of(Path())["output"]("|".join([*words, "--methods", "mtp"])).splitlines()
    assert shown[:2] == ["```text", f"$ outrider {' '.join(words)} --methods mtp"]
    assert shown[-1] == "```"
    assert any(line.startswith("mtp pays up to batch") for line in shown)
    assert not any(line.startswith("{") or line.endswith(" ") for line in shown)


def test_a_command_that_fails_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="the output of outrider plan --hardware l5, which fails"):
        blocks_of(Path())["output"]("plan|--hardware|l5")
