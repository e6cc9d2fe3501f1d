"""`outrider bench` with servers, from the command line: what may be said, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from outrider.cli import main
from outrider.cli.commands.bench import with_settings
from outrider.testing.fake_vllm import write_environment


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake vLLM where Outrider looks for it; gives the file of its processes."""
    monkeypatch.setenv("OUTRIDER_VLLM", str(write_environment(tmp_path / "fake")))
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


def test_endpoints_alone_leave_our_engine_out() -> None:
    command = with_settings()
    assert command(endpoints=("http://a/v1",)).config().engines == ()
    assert command(endpoints=("http://a/v1",), engines=("outrider",)).config().engines == ("outrider",)
    assert command().config().engines == ("outrider",)


def test_both_engines_end_with_one_json_line(
    preset: Path, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--engine", "outrider", "vllm", "--methods", "none", "--max-new-tokens", "3", "--serve", "enforce-eager")
    assert main(["bench", "--preset", str(preset), "--run-dir", str(tmp_path / "run"), *more]) == 0
    output = capsys.readouterr().out
    assert {row["engine"] for row in json.loads(output.splitlines()[-1])["rows"]} == {"outrider", "vllm"}
    assert "engines side by side" in output
    assert "--enforce-eager" in fake.read_text()


def test_a_server_that_does_not_start_is_one_sentence(
    preset: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAULT", "start")
    assert main(["bench", "--preset", str(preset), "--engine", "vllm", "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("outrider: the server of vllm none ended with status 1: ValueError: no such model (log: ")


def test_ctrl_c_leaves_no_server(preset: Path, fake: Path, tmp_path: Path) -> None:
    environment = os.environ | {"FAKE_VLLM_FAULT": "hang"}
    command = ["bench", "--preset", str(preset), "--engine", "vllm", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "outrider", *command], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while not fake.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "the same command goes on there" in error
    pids = [int(pid) for line in fake.read_text().splitlines() for pid in line.split()[:2]]
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
