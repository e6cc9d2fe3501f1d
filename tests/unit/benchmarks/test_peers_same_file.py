"""Builds without AMX, rates of `llama-bench`, crashes, runs as the page reads them, and the page of hand-made ones."""

from dataclasses import replace
from pathlib import Path

import pytest
from build import hardware_flags, no_amx_options
from figures import decoding, rows
from gguf_files import StoredFile, check_names
from ledger import Answer, Cell, Key, Ledger, Measurement
from measured import ledger_of
from rates import PROMPT, TOKENS, bench
from roster import LLAMA, NO_AMX
from same_file import config_of, parse
from same_file_page import Compared, decoding_sheet, document, lost_text, prompt_sheet, same_file_page, text_sheet

from outrider.errors import ConfigError, RunError
from outrider.results.rows import Report, to_json
from outrider.results.unit import Answer as Reply
from outrider.results.unit import UnitResult

OURS, EAGLE, THEIRS, DRAFT = (
    Key("outrider", "plain"),
    Key("outrider", "eagle3"),
    Key(LLAMA, "plain"),
    Key(LLAMA, "draft"),
)
SETTINGS = {"max_new_tokens": 96, "threads": 2, "draft": "none", "machine": "a machine"}
REPORT = Report(
    run=None, target="t", dtype="bfloat16", device="cpu", commit="abc12345", notes=("llama.cpp 1, in turns",)
)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def compared(folder: Path, name: str, speeds: dict[Key, float], *, same: bool = True) -> Compared:
    """Return a file on which every row decodes eleven tokens at its speed, on two prompts, at one request."""
    path = folder / f"{name}.gguf"
    path.write_bytes(bytes(2_000_000))
    ledger = Ledger(None, SETTINGS)
    for key, speed in speeds.items():
        for prompt in ("chat-1", "chat-2"):
            at = Cell(num_requests=1, category="chat", prompts=(prompt,), repeat=0)
            tokens = tuple(range(11)) if same or key.engine == "outrider" else (*range(5), *range(90, 96))
            answer = Answer(tokens=tokens, arrivals=((0.5, 1), (0.5 + 10 / speed, 11)))
            ledger.add(Measurement(key=key, cell=at, answers=(answer,), wall_s=0.5 + 10 / speed))
    file = StoredFile(name=name, path=path, origin="as published")
    return Compared(file=file, report=REPORT, ledger=ledger, rows=rows(ledger, "plain", [99]), rates={})


def test_ratios_are_over_the_fastest_build_and_the_fastest_rows(tmp_path: Path) -> None:
    slower = Key(NO_AMX, "plain")
    one = compared(tmp_path, "q8_0", {OURS: 60.0, EAGLE: 90.0, THEIRS: 40.0, DRAFT: 45.0, slower: 20.0})
    [line] = decoding_sheet([one]).lines
    cells = dict(zip(decoding_sheet([one]).head, line, strict=True))
    assert cells["llama.cpp plain"] == "40.0"
    assert cells["llama.cpp-no-amx plain"] == "20.0"
    assert cells["llama.cpp best"] == "45.0 (draft)"
    assert cells["Outrider best"] == "90.0 (eagle3)"
    assert cells["plain / plain"].startswith("1.50 (")
    assert cells["best / plain"].startswith("2.25 (")
    assert cells["best / best"].startswith("2.00 (")
    assert lost_text([one]) == "In no cell that was measured."


def test_cells_that_outrider_loses_are_said(tmp_path: Path) -> None:
    one = compared(tmp_path, "q4_0", {OURS: 30.0, EAGLE: 45.0, THEIRS: 40.0, DRAFT: 50.0})
    one.rates.update({LLAMA: {PROMPT: [800.0, 900.0, 1000.0]}, "outrider": {PROMPT: [450.0]}})
    text = lost_text([one])
    assert "- q4_0, 1 request: plain decoding is 0.75 (" in text
    assert "- q4_0: prompts of 512 tokens run at 0.50 " in text
    assert "| 1 | chat | llama.cpp draft | 50.0 | eagle3 | 45.0 | 0.90 |" in text
    assert prompt_sheet([one]).lines == (("q4_0", "900.0", "450.0", "0.50"),)


def test_a_crash_is_said_with_the_token_by_token_figure_beside_it(tmp_path: Path) -> None:
    one = compared(tmp_path, "published", {OURS: 60.0})
    one.ledger.fail(THEIRS, "RuntimeError: crashed: llama-server ended with -4 while it answered")
    one.rates.update({LLAMA: {PROMPT: "crashed: llama-bench ended with -4", TOKENS: [240.0, 260.0, 250.0]}})
    cells = dict(zip(decoding_sheet([one]).head, decoding_sheet([one]).lines[0], strict=True))
    assert (cells["llama.cpp plain"], cells[f"llama.cpp {TOKENS}"]) == ("crashed", "250.0")
    assert (cells["llama.cpp best"], cells["plain / plain"]) == ("", "")
    assert prompt_sheet([one]).lines == (("published", "crashed", "", ""),)


def test_texts_are_compared_token_by_token(tmp_path: Path) -> None:
    one = compared(tmp_path, "bf16", {OURS: 60.0, EAGLE: 90.0, THEIRS: 40.0}, same=False)
    assert text_sheet([one]).lines == (("1", "bf16", "100%", "0%", "5.0"),)


def test_the_page_names_machine_threads_commit_and_files(tmp_path: Path) -> None:
    one = compared(tmp_path, "q8_0", {OURS: 60.0, THEIRS: 40.0})
    one.ledger.fail(DRAFT, "crashed: it ended")
    text = same_file_page([one], SETTINGS)
    assert "2 threads, draft model: none. a machine. Outrider " in text
    assert ", commit abc1234, integer kernels " in text
    assert "| q8_0 | `q8_0.gguf` | 2 | as published |" in text
    assert "|  | llama.cpp | draft | did not run: crashed: it ended |" in text
    assert text.endswith("## What ran\n\n- llama.cpp 1, in turns")
    assert document([one], SETTINGS)["files"][0]["file"] == "q8_0"


def test_a_run_of_the_benchmark_is_read_under_the_pages_names(tmp_path: Path) -> None:
    def unit(engine: str, method: str, starts: tuple[float, ...]) -> str:
        answers = [
            Reply(
                conversation=f"chat-{at}", turn=0, request=at, seed=0, num_prompt_tokens=3, tokens=tuple(range(11)),
                ttft_s=0.5, latency_s=1.5, start_s=start,
            )
            for at, start in enumerate(starts)
        ]  # fmt: skip
        return UnitResult(
            unit=f"{engine}:{method}", engine=engine, method=method, category="chat", batch=len(starts),
            temperature=0.0, repeat=0, conversations=tuple(one.conversation for one in answers), answers=tuple(answers),
            wall_s=2.0,
        ).to_json()  # fmt: skip

    lines = [unit("outrider", "none", (0.0,)), unit(LLAMA, "none", (0.0,)), unit(LLAMA, "ngram", (0.0, 0.5))]
    (tmp_path / "units.jsonl").write_text("".join(f"{line}\n" for line in lines))
    died = "left out: llama.cpp eagle3, for llama.cpp eagle3: the server ended by SIGILL"
    report = replace(REPORT, notes=("memory", died))
    (tmp_path / "report.json").write_text(to_json(report))
    ledger = ledger_of(tmp_path)
    assert [key for key, _ in ledger.measurements] == [OURS, THEIRS, Key(LLAMA, "ngram")]
    assert ledger.failures == {Key(LLAMA, "eagle3"): "crashed: llama.cpp eagle3: the server ended by SIGILL"}
    alone, _, together = ledger.measurements.values()
    assert decoding(alone) == 10.0  # ten tokens in the second behind the first
    # from 1.0 s, when the second has its first token, to 2.0 s: 5 of the first, 10 of the second
    assert decoding(together) == 15.0


def test_a_file_is_a_run_of_the_recipe(tmp_path: Path) -> None:
    file = StoredFile(name="q8_0", path=tmp_path / "a.gguf", origin="made")
    config = config_of(parse(["--requests", "2", "--prompts", "1"]), file)
    assert (config.target, config.batches, config.num_prompts) == (str(file.path), (2,), 1)
    assert (config.engines, config.together, config.repeats) == (("outrider", "llama.cpp"), True, 3)
    assert "llama.cpp" in config.optional


def test_an_unknown_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown file 'q8'.*q8_0"):
        check_names(["q8"])


def test_a_build_without_amx_keeps_the_other_instruction_sets(tmp_path: Path) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text("processor\t: 0\nflags\t\t: sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_tile\n")
    options = no_amx_options(hardware_flags(description))
    assert options[0] == "-DGGML_NATIVE=OFF"
    assert {"-DGGML_AVX2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=OFF"} <= set(options)
    assert not any("AMX" in option for option in options)
    assert hardware_flags(tmp_path / "none") == frozenset()


def test_rates_of_llama_bench(tmp_path: Path) -> None:
    found = script(tmp_path / "bench", 'test "$6" = 512 && echo \'[{"avg_ts": 612.5}]\' || echo \'[{"avg_ts": 97.5}]\'')
    assert bench(found, tmp_path, PROMPT, 2) == 612.5
    assert bench(found, tmp_path, TOKENS, 2) == 97.5
    with pytest.raises(RunError, match="crashed: llama-bench ended with 4"):
        bench(script(tmp_path / "dies", "exit 4"), tmp_path, PROMPT, 2)
    with pytest.raises(RunError, match="did not run"):
        bench(tmp_path / "none", tmp_path, PROMPT, 2)
