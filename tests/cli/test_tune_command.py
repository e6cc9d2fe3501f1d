"""`outrider tune`, end to end on a tiny model: the result, what it leaves behind, going on, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import outrider
from outrider.bench.preset import chosen
from outrider.cli import main
from outrider.costs.tuned import last_tuned
from outrider.errors import ConfigError
from outrider.results.kept import read_units
from outrider.tuning import tune as module

PROMPTS = ("abc abc abc", "xyz xyz", "one two one two", "again and again")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("outrider.tuning.verify.MOST_ROUNDS", 2)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    return path


def words(model: Path, prompts: Path, *more: str) -> list[str]:
    return [
        *("tune", str(model), "--prompts", str(prompts), "--concurrency", "1", "2", "8", "--time", "2h"),
        *("--max-new-tokens", "12", "--temperature", "1", "--dtype", "float64", "--run-dir", "run", *more),
    ]


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_tune_ends_with_a_result_that_can_be_used(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny_model, prompts)) == 0
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    assert found["schema"] == "outrider.tune/1"
    assert said[0] == found["sentence"]
    assert found["sentence"].startswith(("Use ", "Leave it off: "))
    assert found["concurrency"] == [1, 2]
    assert any(note.startswith("not measured: 8 requests at once") for note in found["notes"])
    assert any("no drafter with weights takes part, so lookups alone were tried" in note for note in found["notes"])
    assert {row["lossless"] for row in found["rows"]} == {"exact"}
    assert {(check["method"], check["budget"]) for check in found["checks"]} <= {
        (one["method"], one["budget"]) for one in found["forecasts"]
    }
    # the recipe is a preset that measures the choice on the same prompts
    config = chosen(found["recipe"], {})
    assert config.methods == tuple(dict.fromkeys(("none", found["method"])))
    assert config.budgets == (found["budget"],)
    assert [json.loads(line)["turns"] for line in Path(config.prompts[0]).read_text().splitlines()]
    # what was found last is kept for this target
    kept = last_tuned(outrider.load_target(str(tiny_model), dtype="float64"))
    assert kept is not None
    assert (kept.method, kept.budget) == (found["method"], found["budget"])
    # the same command again measures nothing twice
    units = tmp_path / "run" / "verify" / "units.jsonl"
    before = units.read_text()
    assert {kept.unit.repeat for kept in read_units(units).values()} == {0, 1}
    assert main(words(tiny_model, prompts)) == 0
    assert units.read_text() == before
    again = result(capsys)["checks"]
    assert [one["predicted"] for one in again] == [one["predicted"] for one in found["checks"]]
    assert [one["measured"] for one in again] == pytest.approx([one["measured"] for one in found["checks"]])


def test_an_interrupt_says_where_the_work_is_and_the_same_command_goes_on(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("outrider.tuning.tune.verify", interrupt)
        assert main(words(tiny_model, prompts)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said == f"outrider: interrupted; what is finished is in {tmp_path / 'run'}, and the same command goes on there"
    )
    replays = (tmp_path / "run" / "replays.json").read_text()
    monkeypatch.setattr("outrider.tuning.prices.forecast.chain_reach", interrupt)
    monkeypatch.setattr("outrider.tuning.prices.forecast.replay_cells", interrupt)
    assert main(words(tiny_model, prompts)) == 0
    assert (tmp_path / "run" / "replays.json").read_text() == replays
    assert main(words(tiny_model, prompts, "--seed", "5")) == 2
    assert "was started with" in capsys.readouterr().err


def test_answers_that_are_written_are_not_written_again(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, asked = module.write_texts, list[list[str]]()

    def stopping_at(calls: int) -> Any:
        def wrapped(target: Any, wave: Any, *args: Any, **more: Any) -> Any:
            asked.append([one.turns[0] for one in wave])
            if len(asked) == calls:
                raise KeyboardInterrupt
            return write(target, wave, *args, **more)

        return wrapped

    few = ("--concurrency", "1", "--hardware", "h100")
    monkeypatch.setattr(module, "write_texts", stopping_at(3))
    assert main(words(tiny_model, prompts, *few)) == 130
    assert main(words(tiny_model, prompts, *few)) == 0
    assert [len(wave) for wave in asked] == [1, 1, 1, 1, 1]
    assert asked[2] == asked[3], "only what was being written is written again"
    assert sorted(text for wave in (*asked[:2], *asked[3:]) for text in wave) == sorted(PROMPTS)
    names = ("answers.json", "prompts.jsonl", "replays.json")
    resumed = {name: (tmp_path / "run" / name).read_text() for name in names}
    assert main(words(tiny_model, prompts, *few)) == 0
    assert len(asked) == 5, "a finished run writes none"
    shutil.rmtree(tmp_path / "run")
    assert main(words(tiny_model, prompts, *few)) == 0
    whole = {name: (tmp_path / "run" / name).read_text() for name in names}
    for found in (resumed, whole):
        found["answers.json"] = {**json.loads(found["answers.json"]), "prefill_s": None}
    assert resumed == whole


def test_other_hardware_is_predicted_and_nothing_is_timed(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny_model, prompts, "--hardware", "h100")) == 0
    found = result(capsys)
    assert found["is_prediction"]
    assert found["sentence"].startswith("Predicted for h100: ")
    assert found["rows"] == []
    assert found["kept"] is None
    assert not (tmp_path / "run" / "verify").exists()
    assert not (tmp_path / "cache" / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--time", "10s"), "time=10s is less than the 30s"),
        (("--prompts", "empty.jsonl"), "empty.jsonl holds no prompt"),
        (
            ("--prompts", "long.jsonl"),
            "no prompt leaves room for an answer: all 1 have more than 509 of the 511 tokens",
        ),
        (("--drafters", "nowhere"), "nowhere"),
        (("--drafters", "head"), "head was trained for another, whose embedding differs from that of "),
        (("--concurrency", "9"), "concurrency=9 needs as many prompts, and 4 can be used"),
    ],
)
def test_bad_input_is_one_sentence(
    options: tuple[str, ...], said: str, tiny_model: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.jsonl").write_text("")
    Path("long.jsonl").write_text(json.dumps({"prompt": "so " * 600}) + "\n")
    Path("head").mkdir()
    Path("head/config.json").write_text(json.dumps({"outrider": {"target": "another", "target_fingerprint": "x"}}))
    assert main(words(tiny_model, prompts, *options)) == 2
    [*_, last] = capsys.readouterr().err.splitlines()
    assert last.startswith("outrider: ")
    assert said in last


def test_the_library_has_the_same(tiny_model: Path, prompts: Path) -> None:
    target = outrider.load_target(str(tiny_model), dtype="float64")
    report = outrider.tune(target, prompts=(str(prompts),), concurrency=(1,), time="2h", max_new_tokens=8)
    assert report.sentence
    assert report.concurrency == (1,)
    with pytest.raises(ConfigError, match="tune has no setting 'concurency'; did you mean 'concurrency'"):
        outrider.tune(target, concurency=(1,))
