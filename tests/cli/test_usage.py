"""What is said about words that are no command, about help, and about ends that nobody planned."""

import errno
import os
import re
from pathlib import Path

import pytest

from outrider.cli import COMMANDS, main
from outrider.cli.commands.generate import Generate

REFUSED = [
    ([], f"give a command: {', '.join(COMMANDS)};"),
    (["benhc"], "there is no command 'benhc'; did you mean 'bench'?"),
    (["--versoin"], "there is no option '--versoin'; did you mean '--version'?"),
    (["bench", "--targt", "x"], "bench has no option --targt; did you mean '--target'?"),
    (["bench", "--max_new_token=3"], "did you mean '--max-new-tokens'?"),
    (["bench", "--zzz"], "bench has no option --zzz; outrider bench --help lists them"),
    (["bench", "--repeats", "x"], "--repeats needs a whole number, not 'x'"),
    (["bench", "--temperatures", "warm"], "--temperatures needs a number"),
    (["bench", "--repeats"], "--repeats needs a value"),
    (["bench", "--engine", "vlm"], "--engine does not take 'vlm'; did you mean 'vllm'?"),
    (["bench", "word"], "bench does not take 'word'"),
    (["generate"], "generate needs PROMPT"),
    (["generate", "--foo"], "generate has no option --foo"),
    (["generate", "two", "words"], "generate does not take 'words'; quote a text that has spaces"),
    (["export"], "export needs CHECKPOINT, --output"),
    (["train"], "train needs one of: eagle3"),
    (["train", "eagle3", "--learning-rat", "3"], "train eagle3 has no option --learning-rat; did you mean"),
    (["bench", "--target\x1b[31m"], r"\x1b[31m"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_words_that_are_no_command_get_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    [line] = found.err.splitlines()
    assert line.startswith("outrider: ")
    assert said in line
    assert "\x1b" not in line


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["train", "mtp"]], ids=" ".join)
@pytest.mark.parametrize("width", [40, 80])
def test_help_fits_the_terminal(
    words: list[str], width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: outrider")
    longest = max(re.findall(r"\S+", text), key=len)
    assert max(map(len, text.splitlines())) <= max(width, len(longest) + 30 if width == 40 else 0)
    assert text.isascii() or "\u2022" in text


def test_version_names_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"outrider [\w.+]+, torch [\w.+]+, Python [\d.]+\n", capsys.readouterr().out)


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(self: Generate) -> None:
        raise error

    monkeypatch.setattr(Generate, "run", run)
    return main(["generate", "x"])


ENDS = [
    (
        OSError(errno.ENOSPC, "No space left on device", "/somewhere/x.bin"),
        2,
        "/somewhere/x.bin cannot be used (No space",
    ),
    (OSError(errno.EIO, "Input/output error"), 2, "(Input/output error)"),
    (PermissionError(errno.EACCES, "Permission denied", "a\x1bb"), 2, r"a\x1bb cannot be used (Permission denied)"),
    (TimeoutError(), 2, "TimeoutError"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "Broken pipe"),  # of a connection: our own output has a reader
    (MemoryError(), 2, "not enough memory"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("stopped at\x1b 3"), 130, r"stopped at\x1b 3"),
]


@pytest.mark.parametrize(("error", "status", "said"), ENDS, ids=[repr(error) for error, _, _ in ENDS])
def test_an_end_that_nobody_planned_is_one_sentence(
    error: BaseException,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_raising(error, monkeypatch) == status
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_fault_of_ours_keeps_its_traceback_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_raising(ZeroDivisionError("by\x1b[31m zero"), monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert r"ZeroDivisionError: by\x1b[31m zero" in said
    assert "please report it" in said.splitlines()[-1]


def test_paths_that_are_not_utf8_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"\xff\xfe")
    assert main(["generate", "x", "--method", "none", "--target", str(tmp_path / name)]) == 2
    assert r"\udcff\udcfe" in capsys.readouterr().err
