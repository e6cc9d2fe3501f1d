"""What damage to a run's directory leads to: one sentence with file and line, and a remedy that works when followed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outrider.bench import benchmark as bench
from outrider.bench.config import BenchConfig
from outrider.errors import RunError
from outrider.planning.run import read_run
from outrider.results.rows import Report
from outrider.testing.directory import write_tiny_model

ADVICE = re.compile(r"^(\S+), line (\d+)\b.*; delete the line and run the same command again$")


class Run:
    """A finished run of a tiny model, in a directory of its own."""

    def __init__(self, config: BenchConfig, directory: Path) -> None:
        self.config, self.directory = config, directory

    def resume(self, **changes: Any) -> Report:
        config = BenchConfig(**{**vars(self.config), **changes})
        return bench.benchmark(config, self.directory)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text(encoding="utf-8").split("\n")[:-1]]

    def write(self, name: str, lines: list[Any]) -> None:
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        (self.directory / name).write_text(text, encoding="utf-8")

    def delete(self, path: str, number: str) -> None:
        lines = Path(path).read_bytes().split(b"\n")
        del lines[int(number) - 1]
        Path(path).write_bytes(b"\n".join(lines))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    scratch = tmp_path_factory.mktemp("tiny")
    lines = [{"id": "a", "turns": ["ab ab ab", "go on"]}, {"id": "b", "turns": ["xy xy"]}]
    prompts = scratch / "alpha.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return BenchConfig(
        target=str(write_tiny_model(scratch / "model")),
        dtype="float64",
        methods=("draft_model:layers=0,num_nodes=2",),
        categories=(),
        prompts=(str(prompts),),
        max_new_tokens=4,
        repeats=1,
    )


@pytest.fixture(scope="module")
def finished(config: BenchConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "memory_bytes_per_s", lambda device: 1e10)
        Run(config, directory).resume()
    return directory


@pytest.fixture
def run(config: BenchConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(bench, "memory_bytes_per_s", lambda device: 1e10)
    return Run(config, Path(shutil.copytree(finished, tmp_path / "run")))


def refused(run: Run, said: str) -> re.Match[str]:
    """Resume the run, which must be refused with these words; its advice names the file and the line."""
    with pytest.raises(RunError, match=said) as caught:
        run.resume()
    advice = ADVICE.match(str(caught.value))
    assert advice, str(caught.value)
    return advice


def figures(report: Report) -> list[tuple[object, ...]]:
    return sorted((row.method, row.num_tokens, row.num_prompts, row.tau, row.lossless.verdict) for row in report.rows)


def edited(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda lines: [*lines[:-1], lines[-1] | changes]


def answer(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    def edit(lines: list[Any]) -> list[Any]:
        first, *others = lines[-1]["answers"]
        return [*lines[:-1], lines[-1] | {"answers": [first | changes, *others]}]

    return edit


UNITS: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "no JSON": (lambda lines: [*lines[:-1], json.dumps(lines[-1])[:50]], "not JSON"),
    "a list": (lambda lines: [*lines, "[]"], "not a JSON object"),
    "deep": (lambda lines: [*lines, "[" * 100_000], "not JSON"),
    "no steps": (lambda lines: [*lines[:-1], {k: v for k, v in lines[-1].items() if k != "steps"}], "'steps'"),
    "a field of another type": (edited(batch="1"), "batch is '1'"),
    "no field": (lambda lines: [*lines[:-1], {k: v for k, v in lines[-1].items() if k != "wall_s"}], "'wall_s'"),
    "NaN": (edited(wall_s=float("nan")), "wall_s is nan"),
    "half a character": (edited(method="\ud800"), "must be a string"),
    "no time": (edited(wall_s=0.0), "a size or a time that cannot be"),
    "another name": (edited(repeat=7), "another name than its fields give"),
    "the same once more": (lambda lines: [*lines, lines[-1] | {"wall_s": 3.0}], "stands in .*, line 4 too"),
    "other conversations": (edited(conversations=["a", "x", "b"]), "another name|other conversations"),
    "an unknown conversation": (answer(conversation="x"), "a conversation that it does not have"),
    "a turn too many": (answer(turn=5), "a turn that its conversation does not have"),
    "a token less": (answer(tokens=[1]), "tokens are not those of its steps"),
    "a token id that is none": (answer(tokens=[1, 2, 3, 99_999]), "a token id that the target does not have"),
    "a negative token id": (answer(tokens=[1, 2, 3, -1]), "a count or a time that cannot be"),
}


@pytest.mark.parametrize("name", UNITS)
def test_a_damaged_unit_is_named_and_measured_again_without_its_line(run: Run, name: str) -> None:
    edit, said = UNITS[name]
    before = figures(run.resume())
    run.write("units.jsonl", edit(run.lines("units.jsonl")))
    advice = refused(run, said)
    assert advice[1] == str(run.directory / "units.jsonl")
    run.delete(*advice.groups())
    assert figures(run.resume()) == before
    assert figures(run.resume()) == before


VERDICTS: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "no JSON": (lambda lines: [*lines, "{"], "not JSON"),
    "no unit": (lambda lines: [*lines, {"verdicts": []}], "names no unit"),
    "no list": (lambda lines: [*lines, {"unit": "x", "verdicts": 3}], "no list"),
    "one too few": (lambda lines: [*lines, lines[0] | {"verdicts": []}], "0 verdicts on 2 answers"),
    "unknown": (lambda lines: [*lines, lines[0] | {"verdicts": [{"kind": "?"}] * 2}], r"kind is '\?'"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_damaged_verdict_is_named_and_judged_again_without_its_line(run: Run, name: str) -> None:
    edit, said = VERDICTS[name]
    before = figures(run.resume())
    run.write("verdicts.jsonl", edit(run.lines("verdicts.jsonl")))
    advice = refused(run, said)
    run.delete(*advice.groups())
    assert figures(run.resume()) == before


def test_verdicts_on_a_unit_that_was_deleted_do_not_count_for_the_next_one(run: Run) -> None:
    before = figures(run.resume())
    violated = [line | {"verdicts": [{"kind": "violation", "position": 0}] * len(line["verdicts"])} for line in
                run.lines("verdicts.jsonl")]  # fmt: skip
    run.write("verdicts.jsonl", violated)
    run.write("units.jsonl", [line for line in run.lines("units.jsonl") if line["method"] == "none"])
    assert figures(run.resume()) == before
    assert len(run.lines("verdicts.jsonl")) == len(violated)


def test_a_last_line_without_its_newline_is_kept(run: Run) -> None:
    path = run.directory / "units.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.removesuffix(b"\n").replace(b"\n", b"\r\n"))
    run.resume()
    assert path.read_bytes().replace(b"\r\n", b"\n") == data


def test_a_line_separator_in_an_id_ends_no_line(run: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "strange.jsonl"
    prompts.write_text(json.dumps({"id": "a\u2028b\x85\n", "turns": ["ab ab"]}), encoding="utf-8")
    other = Run(run.config, tmp_path / "strange")
    other.resume(prompts=(str(prompts),))
    assert len(read_run(other.directory).units) == 2


@pytest.mark.parametrize("begun", [None, b"", b"\0\0\0", b'{"schema": "outrider.run/1", "star'])
def test_a_run_that_was_killed_at_its_manifest_begins_anew(run: Run, tmp_path: Path, begun: bytes | None) -> None:
    other = Run(run.config, tmp_path / "begun")
    other.directory.mkdir()
    (other.directory / ".lock").touch()
    (other.directory / ".manifest.json.part").write_bytes(b'{"schema"')
    if begun is not None:
        (other.directory / "manifest.json").write_bytes(begun)
    assert figures(other.resume()) == figures(run.resume())


@pytest.mark.parametrize("text", ["", '{"schema": "outrider.run/1", "star', "[]", '{"schema": "other/1"}', "\x00"])
def test_a_damaged_manifest_beside_units_is_refused_and_loses_nothing(run: Run, text: str) -> None:
    units = (run.directory / "units.jsonl").read_bytes()
    (run.directory / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json cannot be read .*give a new --run-dir"):
        run.resume()
    assert (run.directory / "units.jsonl").read_bytes() == units


def test_the_manifest_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    other = Run(run.config, tmp_path / "data")
    other.directory.mkdir()
    (other.directory / "manifest.json").write_text('{"schema": "outrider.data/1", "num": ')
    with pytest.raises(RunError, match="cannot be read"):
        other.resume()
    assert (other.directory / "manifest.json").read_text().startswith('{"schema": "outrider.data/1"')


def test_every_setting_that_differs_is_named(run: Run) -> None:
    with pytest.raises(RunError, match=r"repeats=1, not repeats=2; seed=0, not seed=5; resume with the same"):
        run.resume(repeats=2, seed=5)


@pytest.mark.parametrize("damage", ["{", '{"schema": "outrider.run/1"}', "[]"])
def test_a_damaged_run_stands_in_nobody_elses_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    old = tmp_path / "runs" / "20200101-000000-bench"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text(damage)
    monkeypatch.chdir(tmp_path)
    report = bench.benchmark(run.config, name="a/../b\n")
    assert Path(str(report.run)).parent == Path("runs")
    assert Path(str(report.run)).name.endswith("-a-..-b-")


REPORTS = {
    "no JSON": ("{", "not JSON"),
    "another schema": ('{"schema": "x", "rows": []}', "the schema is 'x'"),
    "no rows": ('{"schema": "outrider.bench/1"}', "lacks the field 'rows'"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_damaged_report_is_named(run: Run, name: str) -> None:
    text, said = REPORTS[name]
    (run.directory / "report.json").write_text(text)
    with pytest.raises(RunError, match=rf"report\.json cannot be read \(.*{said}"):
        read_run(run.directory)


@pytest.mark.parametrize("change", [{"batch": 0}, {"tau": -1.0}, {"acceptance_per_pos": [7.0]}])
def test_a_row_that_cannot_be_is_named(run: Run, change: dict[str, Any]) -> None:
    report = json.loads((run.directory / "report.json").read_text())
    report["rows"][-1] |= change
    (run.directory / "report.json").write_text(json.dumps(report))
    with pytest.raises(RunError, match=r"report\.json: rows\[1\] has a \w+ that cannot be"):
        read_run(run.directory)
