"""`outrider plan`, end to end: from a data sheet, from measured costs, from a run, against a run, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from outrider.cli import main
from outrider.costs.grid import Grid
from outrider.costs.tables import CostFile, Identity, MeasuredCosts, MeasuredDraftCosts
from outrider.errors import CheckpointError
from outrider.planning.models import model_spec
from outrider.results.rows import Report, Row, to_json
from outrider.results.statistics import Interval

SHEET = ("plan", "--hardware", "h100", "--model", "qwen2.5-7b")


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 ms and 1 ms a row; drafting 0.5 ms a node."""
    slots, rows = (1.0, 4.0), (1.0, 8.0)
    judged = {"slots": slots, "rows_per_slot": rows}
    target = MeasuredCosts(
        forward=Grid({**judged, "contexts": (1.0, 100.0)}, [[[9e-3 + b * r * 1e-3] * 2 for r in rows] for b in slots]),
        accept_greedy=Grid(judged, [[0.0, 0.0], [0.0, 0.0]]),
        accept_sampled=Grid(judged, [[1e-3, 1e-3], [1e-3, 1e-3]]),
        rest=Grid({"slots": slots}, [0.0, 0.0]),
    )
    nodes = (0.0, 8.0)
    drafts = Grid({"slots": slots, "nodes_per_slot": nodes}, [[b * n * 5e-4 for n in nodes] for b in slots])
    facts: dict[str, Any] = {}
    for name, kind in Identity.__annotations__.items():
        facts[name] = 1 if kind in (int, "int") else "x"
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    CostFile(identity=Identity(**facts), target=target, drafts={"lookup": MeasuredDraftCosts(propose=drafts)}).write(
        path
    )
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    row = Row(
        engine="outrider",
        method="lookup",
        category="chat",
        batch=1,
        temperature=0.0,
        num_prompts=1,
        tau=1.75,
        mean_acceptance_length=1.75,
        draft_coverage=1.0,
        draft_acceptance_rate=0.375,
        acceptance_per_pos=(0.5, 0.25),
        conditional_acceptance_per_pos=(0.5, 0.5),
        speedup=Interval(point=1.25, low=None, high=None),
    )
    report = Report(run="r", target="x", dtype="float64", device="cpu", commit=None, rows=(row,))
    directory = tmp_path_factory.mktemp("run")
    (directory / "report.json").write_text(to_json(report) + "\n", encoding="utf-8")
    return directory


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(arguments) == 0
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["schema"] == "outrider.plan/1"
    return last


def test_from_a_data_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--acceptance", "0.8,0.6", "ngram=0.9@0.3", "--methods", "eagle3", "ngram", "--batches", "8", "1")
    assert main((*SHEET, *more, "--nodes", "0..4", "--context", "64")) == 0
    out = capsys.readouterr().out
    assert "eagle3: predicted speedup by number of nodes" in out
    assert "eagle3 pays up to batch" in out
    assert "a roofline, not a measurement" in out
    assert "eagle3: acceptance is known to depth 2; deeper guesses repeat the last" in out
    found = json.loads(out.splitlines()[-1])
    assert [method["method"] for method in found["methods"]] == ["eagle3", "ngram"]
    eagle, lookup = found["methods"]
    assert [batch["batch"] for batch in eagle["batches"]] == [1, 8]
    first = eagle["batches"][0]
    assert [one["num_nodes"] for one in first["nodes"]] == [0, 1, 2, 3, 4]
    assert first["nodes"][2]["tau"] == pytest.approx(1 + 0.8 + 0.48)
    assert first["best"] == max(first["nodes"], key=lambda one: one["speedup"])
    assert first["best"]["waterfall"]["with_host"] == pytest.approx(first["best"]["speedup"])
    assert lookup["acceptance"] == {"ranks": [[0.9]], "coverage": 0.3, "width": 1.0}
    assert 32 < eagle["crossover_batch"] < 4096
    assert [(one["batch"], one["method"]) for one in found["best"]] == [(1, "eagle3"), (8, "eagle3")]
    assert found["best"][0]["speedup"] == first["best"]["speedup"]
    assert "the best of all" in out


def test_a_draft_model_of_any_shape(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    label = f"draft_model:model={tiny_model}"
    found = planned(capsys, *SHEET, "--methods", label, "draft_model", "--acceptance", "0.8", "--batches", "1")
    small, usual = (method["batches"][0]["nodes"][4] for method in found["methods"])
    assert small["step_ms"]["propose"] < usual["step_ms"]["propose"]
    assert small["speedup"] > usual["speedup"]


def test_trees_and_answers_that_end(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--methods", "medusa", "--batches", "1", "--nodes", "4")
    chain = planned(capsys, *SHEET, *more, "--acceptance", "0.6,0.5")
    tree = planned(capsys, *SHEET, *more, "--acceptance", "0.6/0.2,0.5/0.1")
    short = planned(capsys, *SHEET, *more, "--acceptance", "0.6,0.5", "--tokens", "8")
    taus = [found["methods"][0]["batches"][0]["nodes"][-1]["tau"] for found in (tree, chain, short)]
    assert taus == sorted(taus, reverse=True)
    assert taus[0] == pytest.approx(1 + 0.6 + 0.2 + 0.3 + 0.15)  # (0), (1), (0, 0), (0, 0, 0): the last depth repeats


def test_a_batch_beyond_the_memory_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(
        capsys, *SHEET, "--methods", "eagle3", "--acceptance", "0.8", "--context", "4096", "--batches", "999"
    )
    assert "at a context of 4096, memory ends at batch 246" in found["notes"]


def test_from_measured_costs(capsys: pytest.CaptureFixture[str], costs: Path) -> None:
    more = ("--acceptance", "0.5", "--batches", "1", "8", "--nodes", "0..2")
    found = planned(capsys, "plan", "--costs", str(costs), *more)
    method = found["methods"][0]
    one, eight = method["batches"]
    assert [forecast["speedup"] for forecast in one["nodes"]] == pytest.approx([1, 1.5 * 10 / 11.5, 1.75 * 10 / 13])
    assert one["plain_tokens_per_s"] == pytest.approx(100)
    assert eight["best"]["num_nodes"] == 0
    assert [one["method"] for one in found["best"]] == ["lookup", None]
    # One node: 1.5 (9 + B) against 9 + 2.5 B, equal at B = 4.5; two nodes: 1.75 (9 + B) against 9 + 4 B, at 3.
    assert method["crossover_batch"] == 5
    assert "costs were measured up to batch 4; beyond, they go on in a straight line" in found["notes"]


def test_sampling_is_judged_at_its_own_cost(capsys: pytest.CaptureFixture[str], costs: Path) -> None:
    more = ("--acceptance", "0.5", "--batches", "1", "--temperature", "1")
    found = planned(capsys, "plan", "--costs", str(costs), *more)
    assert found["methods"][0]["batches"][0]["plain_tokens_per_s"] == pytest.approx(1000 / 11)


def test_acceptance_of_a_run(capsys: pytest.CaptureFixture[str], costs: Path, run_dir: Path) -> None:
    found = planned(capsys, "plan", "--costs", str(costs), "--run", str(run_dir), "--batches", "1")
    method = found["methods"][0]
    assert method["acceptance"] == {"ranks": [[0.5], [0.5]], "coverage": 1.0, "width": 1.0}
    assert method["batches"][0]["nodes"][2]["speedup"] == pytest.approx(1.75 * 10 / 13)


def test_a_check(capsys: pytest.CaptureFixture[str], costs: Path, run_dir: Path) -> None:
    found = planned(capsys, "plan", "--costs", str(costs), "--check", str(run_dir))
    check = found["check"]
    assert check["rows"][0]["measured"] == 1.25
    assert check["rows"][0]["predicted"] == pytest.approx(1.75 * 10 / 13)
    assert check["median_error"] == pytest.approx(1.75 * 10 / 13 / 1.25 - 1)
    assert found["methods"] == []
    assert main(("plan", "--costs", str(costs), "--check", str(run_dir))) == 0
    assert "median absolute relative error over 1 rows: 7.7 %" in capsys.readouterr().out


def test_a_data_sheet_does_not_guess_a_runs_draft_model(
    capsys: pytest.CaptureFixture[str], run_dir: Path, tmp_path: Path
) -> None:
    text = (run_dir / "report.json").read_text(encoding="utf-8").replace('"lookup"', '"draft_model"')
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert main((*SHEET, "--check", str(tmp_path))) == 2
    assert "the costs hold no table of draft_model" in capsys.readouterr().err
    found = planned(capsys, *SHEET, "--check", str(tmp_path), "--methods", "draft_model")
    assert len(found["check"]["rows"]) == 1
    assert any("the run's target is x, the costs are those of qwen2.5-7b" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--acceptance", "0.8"), "give either --costs FILE"),
        ((*SHEET, "--costs", "c.json"), "give either --costs FILE"),
        (SHEET, "nothing is known of acceptance"),
        ((*SHEET, "--acceptance", "1.8"), "an acceptance of 1.8 is not between 0 and 1"),
        ((*SHEET, "--acceptance", "good"), "'good' is not a list of shares"),
        ((*SHEET, "--acceptance", "0.8", "--methods", "eagle4"), "no sizes of method 'eagle4'; did you mean 'eagle3'?"),
        ((*SHEET, "--acceptance", "0.8", "--methods", "eagle3:k=2"), "no setting 'k'"),
        ((*SHEET, "--acceptance", "0.8", "--nodes", "8..0"), "nodes '8..0' must lie between"),
        ((*SHEET, "--acceptance", "0.8", "--batches", "0"), "batches=0 must be between 1 and 4096"),
        ((*SHEET, "--acceptance", "0.8", "--batches"), "batches is empty"),
        ((*SHEET, "--acceptance", "0.8", "--context", "0"), "context=0 must be between"),
        ((*SHEET, "--acceptance", "0.8", "--tokens", "0"), "tokens=0 must be between"),
        ((*SHEET, "--acceptance", "0.8", "--temperature", "-1"), "temperature=-1 must be between"),
        (
            ("plan", "--hardware", "l4", "--model", "qwen2.5-7b", "--bytes-per-weight", "8"),
            "does not fit into the memory",
        ),
        ((*SHEET, "--run", "/nowhere"), "does not exist; give the directory of a finished"),
        ((*SHEET, "--check", "/nowhere"), "does not exist; give the directory of a finished"),
        (("plan", "--hardware", "h101", "--acceptance", "0.8"), "unknown hardware 'h101'; did you mean 'h100'?"),
        (("plan", "--hardware", "/nowhere.toml", "--acceptance", "0.8"), "/nowhere.toml cannot be read"),
        (("plan", "--hardware", "h100", "--model", "qwen", "--acceptance", "0.8"), "no model directory, config.json"),
        (("plan", "--costs", "/nowhere.json", "--acceptance", "0.8"), "/nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert [line.startswith("outrider: ") for line in captured.err.splitlines()] == [True]
    assert captured.out == ""


def test_costs_that_lack_a_method(capsys: pytest.CaptureFixture[str], costs: Path, run_dir: Path) -> None:
    assert main(("plan", "--costs", str(costs), "--acceptance", "0.8", "--methods", "lookups")) == 2
    assert "has no costs of 'lookups'; did you mean 'lookup'?" in capsys.readouterr().err
    assert main(("plan", "--costs", str(costs), "--run", str(run_dir), "--methods", "other")) == 2
    assert "the run has no method 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'name = "n"\nsource = "s"\nmemory_bytes = 1e12\nbytes_per_s = 1.0\nflop_per_s = 1.0\n',
            "no setting 'flop_per_s'; did you mean",
        ),
        ('name = "n"\nsource = "s"\nmemory_bytes = 1e12\nbytes_per_s = 1.0\n', "lacks the field 'flops_per_s'"),
        (
            'name = "n"\nsource = "s"\nmemory_bytes = 1e12\nbytes_per_s = "1"\nflops_per_s = 1.0\n',
            "bytes_per_s is '1' but must be a number",
        ),
        ("name", "give a TOML file"),
    ],
)
def test_a_sheet_with_a_fault(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text(text, encoding="utf-8")
    assert main(("plan", "--hardware", str(tmp_path / "my.toml"), "--acceptance", "0.8")) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("passes = 1\n", "outside a table"), ('[m]\npasses = "two"\n', "passes"), ("[m]\nlayers = 1\n", "'layers'")],
)
def test_drafters_with_a_fault(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text(text, encoding="utf-8")
    assert main((*SHEET, "--drafters", str(tmp_path / "my.toml"), "--acceptance", "0.8")) == 2
    assert words in capsys.readouterr().err


def test_a_model_is_its_config_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(hub_id: str, file: str, **options: object) -> str:
        if hub_id == "some/absent":
            raise OSError("no route")
        return str(tiny_model / file)

    monkeypatch.setattr("outrider.planning.models.hf_hub_download", fetch)
    assert model_spec(str(tiny_model)) == model_spec(str(tiny_model / "config.json")) == model_spec("some/model")
    with pytest.raises(
        CheckpointError, match=r"config\.json of some/absent could not be fetched \(OSError: no route\)"
    ):
        model_spec("some/absent")


def test_a_lookup_is_not_planned_from_a_learned_drafters_acceptance(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *SHEET, "--acceptance", "0.8,0.6", "--batches", "1")
    assert [method["method"] for method in found["methods"]] == [
        "eagle3",
        "peagle",
        "mtp",
        "medusa",
        "draft_model",
        "pard",
    ]
    (note,) = [note for note in found["notes"] if note.startswith("left out")]
    assert note.startswith("left out: ngram, suffix: a lookup drafts only where the text repeats itself")
    assert "give ngram=0.8@0.3" in note
    found = planned(capsys, *SHEET, "--acceptance", "0.8", "ngram=0.9@0.3", "suffix=0.9", "--batches", "1")
    labels = [method["method"] for method in found["methods"]]
    assert {"ngram", "suffix"} <= {*labels}
    assert [note for note in found["notes"] if "every step is assumed" in note] == [
        "suffix: a draft in every step is assumed; write suffix=0.8@0.3 where it finds one in 30 % of them"
    ]
    for acceptance in ("0.8", "0.8@0.4"):
        assert main((*SHEET, "--acceptance", acceptance, "--methods", "eagle3", "ngram")) == 2
        assert "nothing is known of 'ngram': a lookup drafts only" in capsys.readouterr().err


def told(costs: Path, tmp_path: Path, spread: object) -> Path:
    """The same costs with what they say of their sweeps."""
    plain = json.loads(costs.read_text(encoding="utf-8"))
    plain["facts"]["spread"] = spread
    (tmp_path / "told.json").write_text(json.dumps(plain), encoding="utf-8")
    return tmp_path / "told.json"


@pytest.mark.parametrize(
    ("spread", "margin", "words"),
    [
        (0.02, 0.05, None),
        (0.1, 0.1, None),
        (0.38, 0.38, "was disturbed while it was measured: its sweeps were 38 % apart"),
        (None, 0.1, "does not say how far its sweeps were apart"),
        ("much", 0.1, "does not say how far its sweeps were apart"),
        (-1, 0.1, "does not say how far its sweeps were apart"),
    ],
)
def test_a_disturbed_profile_widens_the_margin_and_says_so(
    spread: object, margin: float, words: str | None, costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(capsys, "plan", "--costs", str(told(costs, tmp_path, spread)), "--acceptance", "0.5")
    assert found["margin"] == margin
    said = [note for note in found["notes"] if "sweeps were" in note]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_a_crossover_is_about_even_within_the_margin(
    costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One node gains 1.5 (9 + B) / (9 + 2.5 B): 1.1 at B = 2.88, 1 at 4.5, 1 / 1.1 at 6.82."""
    more = ("--acceptance", "0.5", "--batches", "1", "4", "--nodes", "1")
    path = str(told(costs, tmp_path, 0.1))
    found = planned(capsys, "plan", "--costs", path, *more)
    method = found["methods"][0]
    assert (method["even_from"], method["crossover_batch"], method["loses_from"]) == (3, 5, 7)
    assert [one["about_even"] for one in found["best"]] == [False, True]
    assert main(("plan", "--costs", path, *more)) == 0
    out = capsys.readouterr().out
    assert "lookup pays up to batch 2, is about even from 3 to 6 (within 10 %), and loses from 7 on." in out
    assert "1 (even)" in out
