"""`outrider chat`: several turns over a pipe, its commands, and Ctrl-C in an answer."""

import io
from pathlib import Path

import pytest

from outrider.cli import main
from outrider.engine import Engine
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.targets import load_target

OPTIONS = ("--dtype", "float64", "--max-new-tokens", "12", "--max-len", "512", "--method", "ngram")


def chat(monkeypatch: pytest.MonkeyPatch, model: Path, text: str, *more: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", str(model), *OPTIONS, *more])


def answers(model: Path, *conversations: list[str]) -> list[str]:
    """What the library says to the last turn of each conversation: user, assistant, user, ..."""
    target = load_target(str(model), dtype="float64")
    roles = ("user", "assistant")
    prompts = [[{"role": roles[at % 2], "content": text} for at, text in enumerate(one)] for one in conversations]
    engine = Engine(target, load_proposer("none", target))
    return [answer.text for answer in engine.generate(prompts, SamplingParams(max_tokens=12))]


def test_turns_build_on_each_other_until_a_reset(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, tiny_model, "abc abc\n\ngo on\n/reset\ngo on\n/exit\nnever\n") == 0
    [first] = answers(tiny_model, ["abc abc"])
    expected = [first, *answers(tiny_model, ["abc abc", first, "go on"], ["go on"])]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)


def test_drafts_are_marked_and_a_wrong_command_explains_itself(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, tiny_model, "/what\nabc abc abc abc\n", "--show-drafts", "--max-new-tokens", "60") == 0
    output = capsys.readouterr()
    assert "/reset: " in output.err
    assert "[" in output.out


def test_a_turn_that_does_not_fit_leaves_the_conversation(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, tiny_model, f"{'x' * 600}\ngo on\n") == 0
    output = capsys.readouterr()
    assert output.out == f"{answers(tiny_model, ['go on'])[0]}\n"
    assert "context limit is 512" in output.err


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, num_steps = Engine.step, 0

    def interrupted(engine: Engine) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            raise KeyboardInterrupt
        step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    assert chat(monkeypatch, tiny_model, "abc abc\n/reset\ngo on\n") == 0
    stopped, whole = capsys.readouterr().out.splitlines()[-2:]
    assert stopped.endswith(" ...")
    assert whole == answers(tiny_model, ["go on"])[0].splitlines()[-1]
