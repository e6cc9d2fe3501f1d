"""What finds a wrong example, on pages with one fault each."""

from pathlib import Path

import pytest
from page_blocks import ROOT, Block, PageError, blocks_of
from page_commands import CommandError, commands_of, read
from page_runner import Ending, ExampleError, Page, compare, planned
from page_world import World

README = ROOT / "README.md"


def block_of(text: str) -> Block:
    [block] = blocks_of(README, text)
    return block


def test_a_directive_belongs_to_the_block_below() -> None:
    first, second = blocks_of(
        README, "<!-- example: with --a 'b c' -->\n```bash\noutrider bench\n```\n\n    x = 1\n\nand `outrider tune`"
    )[:2]
    assert (first.words("with"), first.line, first.language) == ("--a 'b c'", 2, "bash")
    assert (second.directives, second.text) == ((), "x = 1\n")


def test_code_before_a_block_keeps_its_lines() -> None:
    block = block_of("<!-- example: before\nfor x in y:\n    print(x)\n-->\n<!-- example: output -->\n```\n1\n```\n")
    assert block.words("before") == "for x in y:\n    print(x)"
    assert block.has("output")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- example: skip: slow -->\n```bash\nls\n```\n", "'skip: slow' is no directive; known: only parsed"),
        ("<!-- example: not run -->\n```\nx\n```\n", "give a reason"),
        ("<!-- example: with --a -->\n\nA sentence.\n", "no block follows the directive 'with'"),
        ("A sentence.\n\n<!-- example: output -->\n", "no block follows the directive 'output'"),
    ],
)
def test_a_wrong_directive_is_named(text: str, said: str) -> None:
    with pytest.raises(PageError, match=said):
        blocks_of(README, text)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("```python\nx = 1\n```", "run"),
        ("```bash\noutrider bench\n```", "run"),
        ("<!-- example: only parsed: it takes hours -->\n```bash\noutrider bench\n```", "parsed"),
        ("```bash\nmake test\n```", "parsed"),
        ("<!-- example: not run: a formula -->\n```\ny = a x\n```", "marked"),
        ("<!-- generated:cli -->\n\n```text\nhelp\n```\n\n<!-- /generated -->", "held"),
        ("<!-- generated:cli -->\n<!-- /generated -->\n\n```python\nx = 1\n```", "run"),
    ],
)
def test_every_block_has_an_ending(text: str, how: str) -> None:
    [ending] = planned(block_of(text))
    assert isinstance(ending, Ending)
    assert ending.how == how


@pytest.mark.parametrize("language", ["", "text", "json", "yaml"])
def test_a_block_that_is_not_marked_fails(language: str) -> None:
    with pytest.raises(ExampleError, match="is neither run nor marked"):
        planned(block_of(f"```{language}\nx\n```"))


def test_words_are_those_of_a_shell() -> None:
    text = 'T="--a 1 --b"\nx one \\\n  $T  # why\n# nothing\ny \'{"k":\n "v"}\'\n'
    assert list(commands_of(text)) == [["x", "one", "--a", "1", "--b"], ["y", '{"k":\n "v"}']]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("outrider bench --bathces 1", "no option --bathces; did you mean '--batches'"),
        ("outrider bench --batches one", "needs a whole number"),
        ("outrider bench --batches 400 --categories chat", "batches that no category can fill"),
        ("outrider generate x --method ngram:num_node=3", "did you mean 'num_nodes'"),
        ("outrider generate x --method telepathy", "unknown method 'telepathy'"),
        ("outrider train eagle3 --draft-vocabulary 3", "no option --draft-vocabulary"),
        ("outrider benhc", "no command 'benhc'"),
        ("python benchmarks/gpu.py --sizes 7b", "unrecognized arguments|ambiguous|--sizes"),
        ("python benchmarks/nothing.py", "no such script"),
        ("python -m outrider.nothing", "there is no module outrider.nothing"),
        ("make everything", "no target everything"),
        ("pip install '.[serv]'", "no extra serv"),
        ("bash dev/heads.sh learn", "has no learn"),
        ("frobnicate", "is no program that can be checked"),
    ],
)
def test_a_wrong_command_is_refused(command: str, said: str) -> None:
    [words] = commands_of(command)
    with pytest.raises(CommandError, match=said):
        read(words)


@pytest.mark.parametrize(
    "command",
    [
        "outrider plan",
        "outrider train METHOD --help",
        "outrider tune",
        "outrider synthesize --source",
        "outrider bench ...",
    ],
)
def test_a_command_in_a_sentence_may_be_short(command: str) -> None:
    read(command.split(), is_inline=True)


@pytest.mark.parametrize(
    ("shown", "printed", "figures", "is_equal"),
    [
        ("a 1\nb", "a 1\nb\n", False, True),
        ("a 1\nb", "a 2\nb\n", False, False),
        ("a 1\nb", "a  23.5\nb\n", True, True),
        ("a 1\nb", "a x\nb\n", True, False),
        ("a\n...\nd", "a\nb\nc\nd\n", False, True),
        ("a\n  ...", "a\n", False, True),
        ("a\n...", "b\n", False, False),
        ("a.c", "abc", False, False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, figures: bool, is_equal: bool) -> None:
    if is_equal:
        compare(shown, printed, figures=figures, place="here")
    else:
        with pytest.raises(ExampleError, match="here: the page shows"):
            compare(shown, printed, figures=figures, place="here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nprint(1 + 1)  # 3\n```", r"\['3'\]\nand it prints\n2"),
        ("```python\nx = 1\n```\n\n```python\nprint(x)  # 1\ny\n```", "README.md:5: this example fails: NameError"),
        ("```bash\noutrider plan --hardware h100 --model nothing\n```", "README.md:1: this example fails"),
        ("<!-- example: part of LICENSE -->\n```\nno such line\n```", "LICENSE has no line 'no such line'"),
        ("<!-- example: with a=>b -->\n```python\nx = 1\n```", "replaces 'a', which is not there"),
    ],
)
def test_a_wrong_example_names_its_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("page_runner.blocks_of", lambda page: blocks_of(page, text))
    with pytest.raises(ExampleError, match=said):
        Page(README, World(tmp_path), tmp_path, capsys).run()
