"""`outrider generate` without a method: one line says what was picked, and the text is the target's own."""

from pathlib import Path

import pytest

from outrider.cli import main


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))


@pytest.mark.parametrize("more", [(), ("--method", "auto")])
def test_what_was_picked_and_why_is_said_in_one_line(
    more: tuple[str, ...], tiny_model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["generate", "abc abc abc", "--target", str(tiny_model), "--dtype", "float64", "--max-new-tokens", "8"]
    assert main([*words, "--method", "none"]) == 0
    plain = capsys.readouterr().out
    caplog.clear()
    assert main([*words, *more]) == 0
    assert capsys.readouterr().out == plain
    [line] = [line for line in caplog.messages if line.startswith("auto picked")]
    assert line.startswith("auto picked suffix with the adaptive budget: no head is shipped for this target")


def test_a_head_that_is_not_there_names_the_remedy(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "abc", "--target", str(tiny_model), "--method", "eagle3"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("outrider: ")]
    assert f"`outrider drafters {tiny_model}` lists what fits" in line
    assert "'auto' in place of a method" in line
