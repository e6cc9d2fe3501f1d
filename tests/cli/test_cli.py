"""The command line, end to end on a tiny model: results, help, and every kind of bad input."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoking import sentence

from outrider.bench.engine_contender import EngineContender
from outrider.cli import main
from outrider.results.rows import from_json
from outrider.results.unit import UnitResult
from outrider.testing.directory import write_tiny_model


def bench(preset: Path, run_dir: Path, *more: str) -> int:
    return main(["bench", "--preset", str(preset), "--run-dir", str(run_dir), *more])


def test_bench_measures_everything_and_ends_with_one_json_line(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--batches", "1", "2", "--temperatures", "0", "1", "--external", "transformers", "transformers-lookup")
    more += ("transformers-assisted:layers=0",)
    assert bench(preset, tmp_path / "run", *more) == 0
    out = capsys.readouterr().out
    report = from_json(out.splitlines()[-1])
    assert (tmp_path / "run" / "report.json").read_text() == out.splitlines()[-1] + "\n"
    cells = {(row.engine, row.method, row.category, row.batch, row.temperature) for row in report.rows}
    ours = {
        ("outrider", method, category, batch, temperature)
        for method in ("none", "draft_model")
        for category, batch in (("alpha", 1), ("beta", 1), ("all", 1), ("alpha", 2))
        for temperature in (0.0, 1.0)
    }
    theirs = {
        ("transformers", method, category, 1, 0.0)
        for method in ("generate", "lookup", "assisted")
        for category in ("alpha", "beta", "all")
    }
    assert cells == ours | theirs
    assert {row.lossless.verdict for row in report.rows if row.engine == "outrider"} == {"exact"}
    assert all(row.speedup is not None and row.tokens_per_s for row in report.rows)
    assert any("4 of 4 answers equal" in note for note in report.notes)
    assert "batch 2, temperature 1" in out
    assert out.splitlines()[-2] == f"report: {report.run}/report.md with all columns; as data: report.json there"
    assert report.closing[-1] == out.splitlines()[-2]
    assert "left out: batch 2 of 'beta', which has 1 prompts" in report.notes
    assert "draft_model" in (tmp_path / "run" / "report.md").read_text()


def test_what_a_preset_lists_for_its_own_target_is_left_out_with_a_note(
    preset: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.toml"
    lines = ('target = "somebody/elses"', 'methods = ["ngram", "draft_model:layers=7,num_nodes=2"]',
             'external = ["transformers", "transformers-assisted:layers=0,7"]')  # fmt: skip
    kept = [line for line in preset.read_text().splitlines() if not line.startswith(("methods", "target"))]
    own.write_text("\n".join((*kept, *lines)) + "\n", encoding="utf-8")
    assert bench(own, tmp_path / "run", "--target", str(tiny_model)) == 0
    report = from_json(capsys.readouterr().out.splitlines()[-1])
    rows = {(row.engine, row.method) for row in report.rows}
    assert rows == {("outrider", "none"), ("outrider", "ngram"), ("transformers", "generate")}
    left_out = [note for note in report.notes if note.startswith("left out: ")]
    assert [note.split(",")[0].split(":")[1].strip() for note in left_out] == ["draft_model", "transformers-assisted"]
    assert all("layer 7 does not exist" in note for note in left_out)
    asked = ("--methods", "draft_model:layers=7,num_nodes=2")
    assert bench(own, tmp_path / "asked", "--target", str(tiny_model), *asked) == 2
    assert "layer 7 does not exist" in sentence(capsys)


@pytest.mark.parametrize("external", ["transformers", "transformers-lookup"])
def test_a_target_that_never_ends_by_itself_is_measured(
    external: str, preset: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "endless"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (model / "generation_config.json").unlink(missing_ok=True)
    assert bench(preset, tmp_path / "run", "--target", str(model), "--external", external) == 0
    report = from_json(capsys.readouterr().out.splitlines()[-1])
    assert {row.num_tokens for row in report.rows if row.category == "beta"} == {6}


def test_prompts_of_any_name_and_category_are_measured(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "strange.jsonl"
    names = ["../x", "a/b", "", "n" * 3000, "two\nlines", "[/red]|<b>\x1b[2J", "\u2028"]
    lines = [{"id": f"{name}{at}", "category": name, "turns": ["ab"]} for name in names for at in range(2)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    more = ("--prompts", str(prompts), "--methods", "--max-new-tokens", "2")
    assert bench(preset, tmp_path / "run", *more) == 0
    report = from_json(capsys.readouterr().out.splitlines()[-1])
    named = [name or "strange" for name in names]
    assert {row.category: row.num_prompts for row in report.rows} == dict.fromkeys(named, 2) | {"all": 14}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "strange.jsonl"}
    assert bench(preset, tmp_path / "run", *more) == 0


def test_multi_turn_answers_go_into_the_next_prompt(preset: Path, tmp_path: Path) -> None:
    assert bench(preset, tmp_path / "run") == 0
    units = [UnitResult.from_json(line) for line in (tmp_path / "run" / "units.jsonl").read_text().splitlines()]
    first, second = next(unit for unit in units if unit.conversations == ("a1",)).answers
    assert (first.turn, second.turn) == (0, 1)
    assert second.num_prompt_tokens >= first.num_prompt_tokens + len("<user\ngo on\nassistant\n")


def test_an_interrupted_run_says_how_to_go_on_and_measures_nothing_twice(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = EngineContender.measure

    def stopping(self: EngineContender, cell, group, rules):  # type: ignore[no-untyped-def]
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(self.name.unit(cell, group))
        return measure(self, cell, group, rules)

    monkeypatch.setattr(EngineContender, "measure", stopping)
    assert bench(preset, tmp_path / "run") == 130
    assert str(tmp_path / "run") in sentence(capsys)
    measured.append("the fourth is on")
    assert bench(preset, tmp_path / "run") == 0
    units = (tmp_path / "run" / "units.jsonl").read_text().splitlines()
    names = [json.loads(line)["unit"] for line in units]
    assert len(names) == len(set(names)) == 6
    assert sorted(measured) == sorted([*names, "the fourth is on"])
    capsys.readouterr()
    assert bench(preset, tmp_path / "run") == 0
    assert len(measured) == 7
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def test_an_unfinished_run_is_found_by_itself(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "--preset", str(preset), "--methods", "none", "--max-new-tokens", "2"]
    assert main(arguments) == 0
    (run,) = (tmp_path / "runs").iterdir()
    (run / "report.json").unlink()
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert main(arguments) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_other_settings_do_not_continue_a_run(preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(preset, tmp_path / "run", "--methods", "none", "--max-new-tokens", "2") == 0
    capsys.readouterr()
    assert bench(preset, tmp_path / "run", "--methods", "none", "--max-new-tokens", "3") == 2
    assert "max_new_tokens=2, not max_new_tokens=3" in sentence(capsys)


BAD_BENCH = [
    (("--preset", "quik"), "did you mean 'quick'?"),
    (("--preset", "missing.toml"), "missing.toml cannot be read"),
    (("--methods", "ngran"), "did you mean 'ngram'?"),
    (("--methods", "draft_model:num_node=3"), "did you mean 'num_nodes'?"),
    (("--methods", "draft_model:num_nodes=three"), "must be a whole number"),
    (("--methods", "draft_model:layers=7"), "layer 7 does not exist"),
    (("--methods", "none:num_nodes=3"), "has no settings"),
    (("--categories", "edditing"), "did you mean 'editing'?"),
    (("--batches", "0"), "batches=0 must be between"),
    (("--batches", "1000000"), "batches=1000000 must be between"),
    (("--temperatures", "-1"), "temperatures=-1.0 must be between"),
    (("--temperatures", "0.001"), "temperature=0.001"),
    (("--repeats", "0"), "repeats=0 must be between"),
    (("--max-new-tokens", "0"), "max_new_tokens=0 must be between"),
    (("--num-prompts", "0"), "num_prompts=0 must be between"),
    (("--prompts", "missing.jsonl"), "missing.jsonl cannot be read"),
    (("--external", "transformer"), "did you mean 'transformers'?"),
    (("--external", "transformers-assisted"), "needs an assistant"),
    (("--external", "transformers-assisted:layers=9"), "layer 9 does not exist"),
    (("--dtype", "float63"), "did you mean 'float64'?"),
    (("--verification", "couple"), "did you mean 'coupled'?"),
    (("--target", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_BENCH, ids=[" ".join(arguments) for arguments, _ in BAD_BENCH])
def test_bench_refuses_bad_input_in_one_sentence(
    arguments: tuple[str, ...], said: str, preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(preset, tmp_path / "run", *arguments) == 2
    assert said in sentence(capsys)


def generate(tiny_model: Path, *arguments: str) -> int:
    return main(["generate", "--target", str(tiny_model), "--dtype", "float64", *arguments])


def test_generate_streams_the_same_text_with_every_method(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for method in ("none", "draft_model:layers=0"):
        assert generate(tiny_model, "abc", "--method", method, "--max-new-tokens", "8", "--temperature", "0.7") == 0
        found = capsys.readouterr()
        texts.append(found.out)
        assert "tau" in found.err.splitlines()[-1]
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_generate_marks_what_was_drafted(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("abc", "--method", "draft_model:layers=0,1", "--max-new-tokens", "8")
    assert generate(tiny_model, *arguments) == 0
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert generate(tiny_model, *arguments, "--show-drafts") == 0
    shown = capsys.readouterr().out
    assert "\x1b[32m" in shown
    assert shown.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain
    monkeypatch.delenv("FORCE_COLOR")
    assert generate(tiny_model, *arguments, "--show-drafts") == 0
    marked = capsys.readouterr().out
    assert "\x1b" not in marked
    assert marked == shown.replace("\x1b[32m", "[").replace("\x1b[0m", "]")
    assert "[" in marked.replace(plain, "")


def test_generate_writes_a_ribbon(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("ab ab ab", "--method", "ngram", "--max-new-tokens", "12")
    assert generate(tiny_model, *arguments) == 0
    text = capsys.readouterr().out
    assert generate(tiny_model, *arguments, "--ribbon", str(tmp_path / "a.html")) == 0
    assert capsys.readouterr().out == text
    [data] = re.findall(r'json">(.*?)</script>', (tmp_path / "a.html").read_text(encoding="utf-8"))
    [trace] = json.loads(data)
    tokens = [token for step in trace["steps"] for token in step["tokens"]]
    assert "".join(token["text"] for token in tokens) == text.removesuffix("\n")
    assert (len(tokens), trace["method"], trace["prompt"]) == (12, "ngram", "ab ab ab")
    assert generate(tiny_model, *arguments, "--ribbon", str(tmp_path / "none" / "a.html")) == 2
    assert "is no directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--max-new-tokens", "3"), "(length)"),
        (("--max-new-tokens", "100000"), "(context)"),
        (("--max-new-tokens", "60", "--stop", *map(chr, range(33, 127))), "(stop)"),
    ],
)
def test_generate_says_why_it_ended(
    arguments: tuple[str, ...], reason: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, "abc", "--method", "none", "--no-chat", "--temperature", "1", *arguments) == 0
    assert reason in capsys.readouterr().err.splitlines()[-2]


def test_generate_reads_standard_input_and_takes_a_system_message(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*arguments: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
        assert generate(tiny_model, *arguments, "--method", "none", "--max-new-tokens", "4") == 0
        return capsys.readouterr().out

    assert answer("-") == answer("abc")
    assert len({answer("abc"), answer("abc", "--system", "be brief"), answer("abc", "--no-chat")}) == 3


BAD_GENERATE = [
    (("",), "the prompt is empty"),
    (("x" * 600,), "context limit"),
    (("abc", "--max-new-tokens", "0"), "max_new_tokens=0"),
    (("abc", "--temperature", "-2"), "temperature=-2.0"),
    (("abc", "--top-p", "0"), "top_p=0.0"),
    (("abc", "--stop", ""), "stop string is empty"),
    (("abc", "--method", "sufix"), "did you mean 'suffix'?"),
    (("abc", "--no-chat", "--system", "x"), "--system needs the chat template"),
    (("abc", "--dtype", "bfloat61"), "did you mean 'bfloat16'?"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_GENERATE, ids=[said for _, said in BAD_GENERATE])
def test_generate_refuses_bad_input_in_one_sentence(
    arguments: tuple[str, ...], said: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = () if "--method" in arguments else ("--method", "none")
    assert generate(tiny_model, *method, *arguments) == 2
    assert said in sentence(capsys)


def test_generate_refuses_weights_that_are_missing_or_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert generate(model, "abc", "--method", "none") == 2
    assert str(tmp_path) in sentence(capsys)
    weights.unlink()
    assert generate(model, "abc", "--method", "none") == 2
    assert str(tmp_path) in sentence(capsys)


def test_a_huge_limit_ends_at_the_context(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("abc", "--method", "none", "--no-chat", "--max-new-tokens", "1000000000")
    assert generate(tiny_model, *arguments) == 0
    num_tokens = int(capsys.readouterr().err.splitlines()[-1].split()[0])
    assert 0 < num_tokens <= 512 - 3


@pytest.mark.parametrize("arguments", [["benhc"], ["bench", "--repeats", "x"], []])
def test_unknown_commands_and_values_end_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_help_does_not_wait_for_pytorch() -> None:
    script = (
        "import sys; from outrider.cli import main\n"
        "for words in ['--help'], ['train', '--help'], ['bench', '--help']:\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules and 'numba' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    assert "medusa" in done.stdout
    assert "--num-prompts" in done.stdout
