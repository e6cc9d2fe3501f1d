"""A whole benchmark of a serving engine, with a fake server in vLLM's place."""

import json
from pathlib import Path

import pytest
from serving_runs import Run, commands, running

from outrider.errors import ConfigError, RunError
from outrider.results.rows import Row
from outrider.results.unit import UnitResult


def rows_of(report: object, method: str, category: str = "alpha") -> list[Row]:
    return [row for row in report.rows if (row.method, row.category) == (method, category)]  # type: ignore[attr-defined]


def test_counts_and_times_of_a_method_beside_its_plain_decoding(run: Run, fake: Path, pids: Path) -> None:
    report = run()
    [plain], [row] = rows_of(report, "none"), rows_of(report, "ngram")
    assert {row.engine for row in report.rows} == {"vllm"}
    assert plain.tau == 1
    assert plain.draft_coverage == 0
    assert row.tau is not None
    assert 1.5 < row.tau < 4
    assert row.draft_coverage == 1
    assert row.acceptance_per_pos is not None
    assert len(row.acceptance_per_pos) == 3
    assert row.mean_acceptance_length == pytest.approx(1 + 3 * row.acceptance_per_pos[0])
    assert row.speedup is not None
    assert row.equality is not None
    assert (row.equality.num_answers, row.equality.num_equal) == (3, 3)
    assert row.lossless.verdict == "exact"
    assert row.ttft_s is not None
    assert row.tpot_s is not None
    assert row.num_tokens == plain.num_tokens
    assert report.device == "server"
    assert not running(pids)


def test_every_method_has_a_server_of_its_own(run: Run, fake: Path, pids: Path) -> None:
    run(batches=(1, 2), serve=("tensor-parallel-size=2", "enable-prefix-caching"))
    plain, drafting = commands(pids)
    assert "--speculative-config" not in plain
    wanted = json.loads(drafting[drafting.index("--speculative-config") + 1])
    assert wanted == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    for flags in (plain, drafting):
        assert flags[flags.index("--tensor-parallel-size") + 1] == "2"
        assert flags[flags.index("--max-num-seqs") + 1] == "2"
        assert "--enable-prefix-caching" in flags
        assert "--no-enable-prefix-caching" not in flags


@pytest.mark.parametrize(("temperature", "is_whole"), [(0.0, False), (1.0, True)])
def test_the_cpu_build_reads_prompts_whole_when_it_samples(
    run: Run, fake: Path, pids: Path, temperature: float, is_whole: bool
) -> None:
    """For a part of a prompt, vLLM 0.32 asks a seed's generator for its offset, which only CUDA's has."""
    run(methods=(), temperatures=(temperature,), max_new_tokens=4)
    [plain] = commands(pids)
    assert ("--no-enable-chunked-prefill" in plain) is is_whole


def test_servers_together_take_turns(run: Run, fake: Path, tmp_path: Path) -> None:
    run(together=True, repeats=2)
    units = [json.loads(line)["method"] for line in (tmp_path / "run/units.jsonl").read_text().splitlines()]
    assert units == ["none", "ngram", "ngram", "none", "ngram", "none", "none", "ngram"]


def test_a_batch_is_answered_at_the_same_time(run: Run, fake: Path, tmp_path: Path) -> None:
    report = run(batches=(2,), methods=(), max_new_tokens=8)
    [line] = (tmp_path / "run/units.jsonl").read_text().splitlines()
    first, second = [answer for answer in UnitResult.from_json(line).answers if answer.turn == 0]
    assert first.start_s is not None
    assert first.latency_s is not None
    assert second.start_s is not None
    assert second.start_s < first.start_s + first.latency_s
    assert rows_of(report, "none")[0].tokens_per_s is not None


def test_our_engine_and_the_server_share_one_report(run: Run, fake: Path, tmp_path: Path) -> None:
    report = run(engines=("outrider", "vllm"), max_new_tokens=6)
    assert {(row.engine, row.method) for row in report.rows} == {
        (engine, method) for engine in ("outrider", "vllm") for method in ("none", "ngram")
    }
    table = (tmp_path / "run/report.md").read_text()
    assert "engines side by side" in table
    assert "| category | method | outrider | vllm |" in table


def test_our_code_drafts_in_a_server_of_its_own(run: Run, fake: Path, pids: Path, tmp_path: Path) -> None:
    methods = ("ngram:num_nodes=3", "draft_model:layers=0")
    report = run(engines=("vllm-custom",), methods=methods)
    assert {row.method for row in report.rows} == {"none", "ngram by outrider"}
    assert rows_of(report, "ngram by outrider")[0].speedup is not None
    plain, drafting = commands(pids)
    assert "--speculative-config" not in plain
    wanted = json.loads(drafting[drafting.index("--speculative-config") + 1])
    assert wanted == {
        "method": "custom_class",
        "model": "outrider.vllm.custom_class.OutriderDrafter",
        "num_speculative_tokens": 3,
    }
    order = json.loads(drafting[drafting.index("--additional-config") + 1])
    assert order == {"outrider": {"method": "ngram", "settings": {"num_nodes": 3}}}
    assert [path.name for path in (tmp_path / "run/imports").iterdir()] == ["outrider"]
    assert any("left out: draft_model by outrider, for" in note for note in report.notes)


def test_texts_that_differ_are_counted(run: Run, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAULT", "other")
    [row] = rows_of(run(), "ngram")
    assert row.equality is not None
    assert row.equality.num_equal == 0
    assert row.equality.num_answers == 2  # the turn behind a difference had another prompt
    assert row.lossless.verdict == "unverified"


FAULTS = {
    "start": "ended with status 1: ValueError: no such model",
    "unhealthy": "not ready after 0.5 s",
    "die": "ended with status 3: RuntimeError: the fake engine died",
    "hang": "sent nothing new for 0.5 s",
    "cut": "cut its answer off before the end",
    "stop": "cut its answer off before the end",
    "refuse": "refuses with status 500 \\(the engine is dead\\)",
    "error": "an error: out of memory",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_and_leaves_nothing_behind(
    fault: str, run: Run, fake: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAULT", fault)
    monkeypatch.setenv("FAKE_VLLM_AFTER", "3")  # the warm-up, and both turns of the first conversation
    impatient = {"unhealthy": {"start_timeout": 0.5}, "hang": {"stall_timeout": 0.5}}.get(fault, {})
    with pytest.raises(RunError, match=FAULTS[fault]) as caught:
        run(**impatient)
    assert "\n" not in str(caught.value)
    assert not running(pids)
    units = tmp_path / "run/units.jsonl"
    kept = units.read_text().splitlines() if units.exists() else []
    assert len(kept) == (fault not in ("start", "unhealthy"))


def test_what_was_finished_before_a_fault_is_kept_and_the_run_goes_on(
    run: Run, fake: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAULT", "die")
    monkeypatch.setenv("FAKE_VLLM_AFTER", "3")
    with pytest.raises(RunError, match="what is finished is kept, and the same command goes on there"):
        run()
    units = tmp_path / "run/units.jsonl"
    kept = units.read_text().splitlines()
    monkeypatch.delenv("FAKE_VLLM_FAULT")
    run()
    assert len(kept) == 1
    assert units.read_text().splitlines()[:1] == kept
    assert len(units.read_text().splitlines()) == 4
    assert not running(pids)


def test_an_interruption_leaves_nothing_behind(
    run: Run, fake: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outrider.bench.serving.contender.ServedContender.measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(commands(pids)) == 1
    assert not running(pids)


def test_a_finished_run_starts_no_server(run: Run, fake: Path, pids: Path) -> None:
    first = run()
    pids.unlink()
    assert run().rows == first.rows
    assert not pids.exists()


def test_no_environment_is_said_before_anything_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_VLLM", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="run make vllm, or set OUTRIDER_VLLM"):
        run()
    assert not (tmp_path / "run").exists()


def test_a_method_that_vllm_does_not_have_is_left_out_and_named(run: Run, fake: Path, pids: Path) -> None:
    report = run(methods=("oracle",))
    assert "left out: oracle, for vLLM has no such method" in report.notes
    assert len(commands(pids)) == 1


def test_layers_of_the_target_become_a_draft_model_in_the_run(run: Run, fake: Path, pids: Path, tmp_path: Path) -> None:
    run(methods=("draft_model:layers=1,num_nodes=2",), max_new_tokens=4)
    flags = commands(pids)[1]
    wanted = json.loads(flags[flags.index("--speculative-config") + 1])
    assert wanted["model"] == str(tmp_path / "run/exports/draft_model")
    assert json.loads((tmp_path / "run/exports/draft_model/config.json").read_text())["num_hidden_layers"] == 1
