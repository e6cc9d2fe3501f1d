"""The traces of a run are the answers that were measured; they are kept, mended and refused as all of a run is."""

import json
from pathlib import Path

import pytest

from outrider.bench import benchmark as bench
from outrider.bench.config import BenchConfig
from outrider.errors import RunError
from outrider.results.kept import read_traces, read_units
from outrider.results.store import TRACES
from outrider.testing.directory import write_tiny_model
from outrider.traces.trace import Trace, TraceKey


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    scratch = tmp_path_factory.mktemp("tiny")
    lines = [
        {"id": "a", "category": "alpha", "turns": ["ab ab ab", "go on"]},
        {"id": "b", "category": "alpha", "turns": ["xy xy"]},
        {"id": "c", "category": "beta", "turns": ["</script>"]},
        {"id": "d", "category": "beta", "turns": ["pq pq"]},
    ]
    (scratch / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return BenchConfig(
        target=str(write_tiny_model(scratch / "model")),
        dtype="float64",
        methods=("suffix", "draft_model:layers=0,num_nodes=2"),
        categories=(),
        prompts=(str(scratch / "prompts.jsonl"),),
        batches=(2, 1),
        max_new_tokens=8,
        ignore_eos=True,
        repeats=1,
    )


@pytest.fixture(scope="module")
def finished(config: BenchConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "memory_bytes_per_s", lambda device: 1e10)
        bench.benchmark(config, directory)
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run."""
    monkeypatch.setattr(bench, "memory_bytes_per_s", lambda device: 1e10)
    copy = tmp_path / "run"
    copy.mkdir()
    for file in finished.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def traces_of(directory: Path) -> dict[TraceKey, Trace]:
    return read_traces(directory / TRACES)


def test_a_trace_is_the_answer_that_was_measured(finished: Path) -> None:
    traces = traces_of(finished)
    methods = ("none", "suffix", "draft_model")
    assert [key[:3] for key in traces] == [
        (method, category, id) for method in methods for category, id in (("alpha", "a"), ("beta", "c"))
    ]
    units = [kept.unit for kept in read_units(finished / "units.jsonl").values()]
    for trace in traces.values():
        [unit] = [
            one for one in units if (one.method, one.batch, one.conversations) == (trace.method, 1, (trace.prompt_id,))
        ]
        [answer] = [one for one in unit.answers if one.turn == 0]
        assert trace.tokens == answer.tokens
        assert trace.num_prompt_tokens == answer.num_prompt_tokens
        slots = [slot for step in unit.steps for slot in step.slots if slot.request == answer.request]
        assert [len(step.draft.ids) for step in trace.steps] == [slot.num_nodes for slot in slots]
        assert [len(step.draft.accepted) for step in trace.steps] == [slot.num_accepted for slot in slots]
    assert {trace.prompt for trace in traces.values()} == {"ab ab ab", "</script>"}


def test_what_is_missing_is_recorded_again_and_nothing_else(run: Path, config: BenchConfig) -> None:
    before = {name: (run / name).read_bytes() for name in ("units.jsonl", "verdicts.jsonl")}
    lines = (run / TRACES).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / TRACES).write_text("".join([*lines[:2], *lines[3:-1], lines[-1][:100]]), encoding="utf-8")  # a torn end
    bench.benchmark(config, run)
    again = (run / TRACES).read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:4] == [*lines[:2], *lines[3:-1]]
    for old, new in zip((lines[2], lines[-1]), again[4:], strict=True):
        assert Trace.from_json(new).tokens == Trace.from_json(old).tokens
    assert before == {name: (run / name).read_bytes() for name in before}


def test_a_damaged_line_is_named_and_the_advice_works(run: Path, config: BenchConfig) -> None:
    lines = (run / TRACES).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / TRACES).write_text("".join([lines[0], lines[1].replace('"steps":[', '"steps":[7,', 1), *lines[2:]]))
    with pytest.raises(
        RunError, match=r"traces\.jsonl, line 2: .* must be an object.*delete the line and run"
    ) as caught:
        bench.benchmark(config, run)
    assert "\n" not in str(caught.value)
    (run / TRACES).write_text("".join([lines[0], *lines[2:]]))
    bench.benchmark(config, run)
    assert len(traces_of(run)) == len(lines)


def test_none_are_recorded_where_none_are_wanted(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "memory_bytes_per_s", lambda device: 1e10)
    none = BenchConfig(**{**vars(config), "traces": 0, "methods": (), "batches": (1,)})
    bench.benchmark(none, tmp_path / "run")
    assert not (tmp_path / "run" / TRACES).exists()
    assert traces_of(tmp_path / "run") == {}
