"""`outrider synthesize`, end to end on a tiny model."""

import json
from pathlib import Path

import pytest
from invoking import status_of

from outrider.data.generator import EngineGenerator
from outrider.data.shards import Dataset


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = ["alpha beta gamma", "delta epsilon", "zeta eta theta", "iota kappa", "lambda mu nu"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [*texts, texts[0]]), encoding="utf-8")
    return path


def synthesize(model: Path, output: Path, *more: object) -> int:
    given = ["--target", model, "--output", output, "--dtype", "float64", "--max-prompt-tokens", 120]
    given += ["--max-turn-tokens", 40, "--max-new-tokens", 8, "--shard-size", 2, "--max-batch", 4, *more]
    return status_of("synthesize", *given)


def test_a_run_ends_with_one_json_line(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(tiny_model, tmp_path / "d", "--source", prompts, "--heldout-fraction", "0.4") == 0
    found = capsys.readouterr()
    line = json.loads(found.out.splitlines()[-1])
    assert len(found.out.splitlines()) == 1
    assert (line["schema"], line["num_prompts"], line["num_shards"]) == ("outrider.synthesize/1", 5, 3)
    assert line["dropped"] == {"duplicate": 1}
    assert line["num_new_tokens"] == line["num_learnt_tokens"] > 0
    assert line["seconds"] > 0
    assert "left out: 1 duplicate" in found.err
    data = Dataset.open(tmp_path / "d")
    assert (len(data), len(data.split().held_out)) == (line["num_texts"], line["num_held_out_texts"])


def test_an_interrupted_run_says_how_to_go_on(
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, calls = EngineGenerator.write, []

    def stopping(self: EngineGenerator, *arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, *arguments)

    with monkeypatch.context() as broken:
        broken.setattr(EngineGenerator, "write", stopping)
        assert synthesize(tiny_model, tmp_path / "d", "--source", prompts) == 130
    assert f"finished shards are in {tmp_path}/d, and the same command goes on there" in capsys.readouterr().err
    assert synthesize(tiny_model, tmp_path / "d", "--source", prompts) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["num_prompts"] == 5
    assert 0 < line["num_new_tokens"] < line["num_learnt_tokens"]


def test_a_target_that_writes_gibberish_cannot_write_prompts(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outrider.data.synthesis.PATIENCE", 20)
    assert synthesize(tiny_model, tmp_path / "d", "--num-prompts", 3, "--max-turn-tokens", 12) == 2
    assert "prompts in a row cannot be used; left out:" in capsys.readouterr().err


BAD = [
    (("--num-prompts", "0"), "num_prompts=0"),
    (("--source", "nowhere.jsonl"), "nowhere.jsonl is neither magpie"),
    (("--source", "hub:x"), "must be hub:name:split:field"),
    (("--temperatures", "-1"), "temperatures="),
    (("--max-new-tokens", "100000"), "do not fit"),
    (("--max-batch", "0"), "max_batch=0"),
    (("--seed-phrases", "nowhere.txt"), "the seed phrases in nowhere.txt cannot be read"),
    (("--endpoint", "localhost"), "endpoint=localhost must begin with http://"),
    (("--method", "sufix"), "did you mean 'suffix'?"),
    (("--dtype", "float63"), "did you mean 'float64'?"),
    (("--target", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(tiny_model, tmp_path / "d", *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("outrider: ")]
    assert len(lines) == 1
    assert said in lines[0]
