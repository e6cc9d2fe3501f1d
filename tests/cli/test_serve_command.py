"""`outrider serve` as a process: one line with the address, signals, curl, and the benchmark as its client."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outrider.cli import main


@pytest.fixture
def process(tiny_model: Path) -> Iterator[subprocess.Popen[str]]:
    command = ["serve", str(tiny_model), "--port", "0", "--dtype", "float64", "--served-model-name", "tiny"]
    running = subprocess.Popen(
        [sys.executable, "-m", "outrider", *command, "--method", "ngram", "--max-len", "512"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield running
    running.kill()
    running.communicate()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Outrider serves tiny at http://127.0.0.1:")
    return line.split()[4]


def test_the_benchmark_reads_what_the_library_writes(
    process: subprocess.Popen[str], preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = address(process)
    engines = ("--engine", "outrider", "--methods", "none", "--endpoint", f"none={url}/v1", f"served={url}/v1")
    assert main(["bench", "--preset", str(preset), "--run-dir", str(tmp_path / "run"), *engines]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    taus = [row["tau"] for row in rows if row["engine"] == "endpoint"]
    assert taus
    assert all(tau is not None and tau >= 1 for tau in taus), "the server's counters are believed"
    units = [json.loads(line) for line in (tmp_path / "run" / "units.jsonl").read_text().splitlines()]
    texts: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for unit in units:
        for answer in unit["answers"]:
            texts.setdefault((answer["conversation"], answer["turn"]), set()).add(tuple(answer["tokens"]))
    assert {unit["engine"] for unit in units} == {"outrider", "endpoint"}
    assert len(texts) == 4
    assert all(len(found) == 1 for found in texts.values()), "token for token"
    curl = shutil.which("curl")
    if curl is not None:
        body = '{"prompt": "abc", "max_tokens": 4}'
        command = [curl, "-s", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert json.loads(said)["usage"]["completion_tokens"] == 4
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "Traceback" not in error


def test_ctrl_c_while_an_answer_runs_lets_it_finish(process: subprocess.Popen[str]) -> None:
    url = address(process)
    body = {"prompt": "abc", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_port_that_is_taken_is_one_sentence(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--port", str(port), "--method", "none", "--dtype", "float64", "--max-len", "128")
        assert main(["serve", str(tiny_model), *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"127.0.0.1:{port} cannot be listened on" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--port", "70000"), "port=70000"),
        (("--max-batch", "0"), "max_batch=0"),
        (("--method", "telepathy"), "unknown method 'telepathy'"),
        (("--api-key", ""), "api_key is empty"),
    ],
)
def test_bad_options_are_one_sentence(options: tuple[str, str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no-such-target", *options]) == 2
    assert word in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("outrider.serve.requirements.PACKAGES", ("fastapi", "no_such_package"))
    assert main(["serve", "no-such-target"]) == 2
    assert "needs no_such_package; run pip install 'outrider[serve]'" in capsys.readouterr().err
