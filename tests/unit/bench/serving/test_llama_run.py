"""A whole benchmark of llama.cpp, with a fake server in its place."""

import json
from pathlib import Path

import pytest
from serving_runs import Run, commands, running

from outrider.errors import ConfigError, RunError
from outrider.results.rows import Row
from outrider.testing.fake_llama import write_programs


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake llama.cpp where Outrider looks for it; gives the file of its processes."""
    monkeypatch.setenv("OUTRIDER_LLAMA", str(write_programs(tmp_path / "llama")))
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_LLAMA_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


def row_of(report: object, method: str) -> Row:
    [row] = [row for row in report.rows if row.method == method]  # type: ignore[attr-defined]
    return row  # type: ignore[no-any-return]


def flag(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_counts_and_times_of_a_method_beside_its_plain_decoding(run: Run, llama: Path) -> None:
    report = run(engines=("llama.cpp",))
    plain, row = row_of(report, "none"), row_of(report, "ngram")
    assert {found.engine for found in report.rows} == {"llama.cpp"}
    assert (plain.tau, plain.draft_coverage) == (1, 0)
    assert row.mean_acceptance_length == 3  # the fake accepts two of four drafted tokens
    assert row.draft_acceptance_rate == 0.5
    assert row.tau is not None
    assert row.tau > 1.5
    assert row.equality is not None
    assert row.equality.num_equal == row.equality.num_answers == 3
    assert row.tpot_s is not None
    assert not running(llama)


def test_every_method_has_a_server_with_its_kind_of_speculation(run: Run, llama: Path) -> None:
    report = run(engines=("llama.cpp",), batches=(1, 2), methods=("ngram:num_nodes=3", "suffix"), serve=("threads=7",))
    plain, drafting = commands(llama)
    assert "--spec-type" not in plain
    assert (flag(drafting, "spec-type"), flag(drafting, "spec-ngram-simple-size-m")) == ("ngram-simple", "3")
    for command in (plain, drafting):
        assert (flag(command, "parallel"), flag(command, "threads"), flag(command, "cache-ram")) == ("2", "7", "0")
        assert flag(command, "model").endswith("-f32.gguf")
    assert any("llama.cpp suffix" in note and "ngram-map-k4v" in note for note in report.notes)


def test_a_draft_model_is_exported_and_converted(run: Run, llama: Path) -> None:
    run(engines=("llama.cpp",), methods=("draft_model:layers=0,num_nodes=3",))
    _, drafting = commands(llama)
    assert (flag(drafting, "spec-type"), flag(drafting, "spec-draft-n-max")) == ("draft-simple", "3")
    assert "--outtype f32" in Path(flag(drafting, "model-draft")).read_text()


def test_engines_take_turns_with_ours(run: Run, fake: Path, llama: Path, tmp_path: Path) -> None:
    run(engines=("outrider", "vllm", "llama.cpp"), together=True, max_new_tokens=4)
    units = [json.loads(line) for line in (tmp_path / "run/units.jsonl").read_text().splitlines()]
    order = [(engine, method) for engine in ("outrider", "vllm", "llama.cpp") for method in ("none", "ngram")]
    # both conversations are a group at batch 1: forwards, then backwards
    assert [(unit["engine"], unit["method"]) for unit in units] == [*order, *reversed(order)]


FAULTS = {
    "start": "ended with status 1: error: unknown model architecture",
    "refuse": r"refuses with status 500 \(the context is full\)",
    "short": "wrote 16 tokens and sent 15",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LLAMA_FAULT", fault)
    with pytest.raises(RunError, match=FAULTS[fault]):
        run(engines=("llama.cpp",))
    assert not running(llama)


def test_kinds_of_its_own_run_beside_our_methods(run: Run, llama: Path) -> None:
    kinds = ("ngram-cache", "ngram-mod:spec-ngram-mod-n-min=8")
    report = run(engines=("llama.cpp",), methods=(), llama_kinds=kinds)
    assert {row.method for row in report.rows} == {"none", *kinds}
    _, cache, mod = commands(llama)
    assert flag(cache, "spec-type") == "ngram-cache"
    assert (flag(mod, "spec-type"), flag(mod, "spec-ngram-mod-n-min")) == ("ngram-mod", "8")


@pytest.mark.parametrize("fault", ["start", "refuse"])
def test_an_optional_engine_that_fails_is_left_out(
    fault: str, run: Run, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LLAMA_FAULT", fault)
    monkeypatch.setenv("OUTRIDER_VLLM", str(tmp_path / "nowhere"))
    report = run(engines=("outrider", "vllm", "llama.cpp"), optional=("vllm", "llama.cpp"), max_new_tokens=2)
    assert {row.engine for row in report.rows} == {"outrider"}
    left_out = [note for note in report.notes if note.startswith("left out: ")]
    assert [note.split(", for ")[0] for note in left_out] == [
        "left out: vllm",
        "left out: llama.cpp none",
        "left out: llama.cpp ngram",
    ]
    assert not running(llama)


def test_where_the_program_is(run: Run, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_LLAMA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"no llama-server at .*nowhere; run make llama, or set OUTRIDER_LLAMA"):
        run(engines=("llama.cpp",))
    (tmp_path / "broken").write_text("#!/bin/sh\necho 'a library is missing' >&2; exit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("OUTRIDER_LLAMA", str(tmp_path / "broken"))
    with pytest.raises(ConfigError, match=r"does not run \(a library is missing\)"):
        run(engines=("llama.cpp",))
