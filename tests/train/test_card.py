"""A model card tells what the run recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys import play, setup, small

from outrider.train.card import write_card


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("card") / "run"
    play(setup(small()), directory)
    return directory


def told(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name / "training.json").read_text())
    return found


def held_out(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "held_out"]


def test_the_curve_is_that_of_the_log(run: Path) -> None:
    curve = told(run, "final")["curve"]
    assert [point["tau"] for point in curve] == [line["tau"] for line in held_out(run)]
    tokens = [point["tokens"] for point in curve]
    assert tokens == sorted(tokens)
    assert (
        tokens[-1] == told(run, "final")["budget"]["tokens"] == json.loads((run / "summary.json").read_text())["tokens"]
    )


def test_the_figures_are_those_of_the_weights_beside_it(run: Path) -> None:
    lines = held_out(run)
    assert told(run, "final")["held_out"]["step"] == lines[-1]["step"]
    best = max(lines, key=lambda line: line["tau"])
    assert told(run, "best")["held_out"]["tau"] == best["tau"]
    assert f"**{best['tau']:.3f}**" in (run / "best" / "README.md").read_text()


def test_the_card_names_data_budget_settings_and_command(run: Path) -> None:
    text = (run / "final" / "README.md").read_text()
    summary, record = (json.loads((run / name).read_text()) for name in ("summary.json", "config.json"))
    assert f"{summary['data']['learnt_tokens']:,} of them written by the target" in text
    assert f"{summary['steps']} steps" in text
    assert f"`learning_rate={record['train']['learning_rate']}`" in text
    assert record["target"]["fingerprint"] in text
    assert record["data"]["train"] in text
    for name, value in record["settings"].items():
        assert f"`{name}={value}`" in text


def test_a_run_without_evaluations_claims_nothing(run: Path) -> None:
    log = run / "log.jsonl"
    kept = log.read_text()
    log.write_text(
        "".join(line + "\n" for line in kept.splitlines() if '"step", ' in line and '"held_out"' not in line)
    )
    write_card(run, "final")
    assert "No texts were held out." in (run / "final" / "README.md").read_text()
    log.write_text(kept)
