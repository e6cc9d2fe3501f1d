"""Files made once, builds without AMX, rates of `llama-bench`, crashes, and the page of hand-made measurements."""

import subprocess
from pathlib import Path

import gguf_files
import pytest
from build import hardware_flags, no_amx_options
from figures import rows
from gguf_files import StoredFile, stored_files
from ledger import Answer, Cell, Identity, Key, Ledger, Measurement
from llama_worker import LlamaWorker
from rates import PROMPT, TOKENS, bench
from roster import LLAMA, NO_AMX
from same_file_page import Compared, decoding_sheet, document, lost_text, prompt_sheet, same_file_page, text_sheet
from talk import PeerError

from outrider.errors import ConfigError

OURS, EAGLE, THEIRS, DRAFT = (
    Key("outrider", "plain"),
    Key("outrider", "eagle3"),
    Key(LLAMA, "plain"),
    Key(LLAMA, "draft"),
)
SETTINGS = {"max_new_tokens": 96, "threads": 2, "draft": "none", "machine": "a machine"}


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def compared(folder: Path, name: str, speeds: dict[Key, float], *, same: bool = True) -> Compared:
    """Return a file on which every row decodes eleven tokens at its speed, on two prompts, at one request."""
    path = folder / f"{name}.gguf"
    path.write_bytes(bytes(2_000_000))
    ledger = Ledger(folder / name / "m.jsonl", SETTINGS)
    for key, speed in speeds.items():
        for prompt in ("chat-1", "chat-2"):
            at = Cell(num_requests=1, category="chat", prompts=(prompt,), repeat=0)
            tokens = tuple(range(11)) if same or key.engine == "outrider" else (*range(5), *range(90, 96))
            answer = Answer(tokens=tokens, arrivals=((0.5, 1), (0.5 + 10 / speed, 11)))
            ledger.add(Measurement(key=key, cell=at, answers=(answer,), wall_s=0.5 + 10 / speed))
        ledger.identify(
            key, Identity(version="1", dtype=name, notes="commit abc1234, integer kernels avx2", settings="")
        )
    file = StoredFile(name=name, path=path, draft=path, origin="as published")
    return Compared(file=file, ledger=ledger, rows=rows(ledger, "plain", [99]), rates={})


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
    gone = Key(NO_AMX, "plain")
    text = same_file_page([one], SETTINGS, [OURS, THEIRS, gone])
    assert "2 threads, draft model: none. a machine. Outrider 1, commit abc1234, integer kernels avx2." in text
    assert "| q8_0 | `q8_0.gguf` | 2 | as published |" in text
    assert "|  | llama.cpp-no-amx | plain | did not run: not measured yet |" in text
    assert document([one], SETTINGS)["files"][0]["file"] == "q8_0"


def test_an_unknown_file_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "prepare", lambda *arguments: pytest.fail("weights were made"))
    with pytest.raises(ConfigError, match=r"unknown file 'q8'.*q8_0"):
        stored_files(tmp_path, "smollm2-135m", None, ["q8"])


def test_a_build_without_amx_keeps_the_other_instruction_sets(tmp_path: Path) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text("processor\t: 0\nflags\t\t: sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_tile\n")
    options = no_amx_options(hardware_flags(description))
    assert options[0] == "-DGGML_NATIVE=OFF"
    assert {"-DGGML_AVX2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=OFF"} <= set(options)
    assert not any("AMX" in option for option in options)
    assert hardware_flags(tmp_path / "none") == frozenset()


def test_a_server_that_ends_while_it_answers_is_reported_as_crashed() -> None:
    worker = LlamaWorker()
    worker.server = subprocess.Popen(["sh", "-c", "kill -ILL $$"])
    worker.address = "http://127.0.0.1:9"
    with pytest.raises(RuntimeError, match="crashed: llama-server ended with -4 while it answered"):
        worker.measure("plain", [[1, 2]], 8)


def test_rates_of_llama_bench(tmp_path: Path) -> None:
    found = script(tmp_path / "bench", 'test "$6" = 512 && echo \'[{"avg_ts": 612.5}]\' || echo \'[{"avg_ts": 97.5}]\'')
    assert bench(found, tmp_path, PROMPT, 2) == 612.5
    assert bench(found, tmp_path, TOKENS, 2) == 97.5
    with pytest.raises(PeerError, match="crashed: llama-bench ended with 4"):
        bench(script(tmp_path / "dies", "exit 4"), tmp_path, PROMPT, 2)
    with pytest.raises(PeerError, match="did not run"):
        bench(tmp_path / "none", tmp_path, PROMPT, 2)
