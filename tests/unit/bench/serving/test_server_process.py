"""A server process: started, watched, and gone when we are, with everything that it started."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from outrider.bench.serving.process import ServerProcess, last_words
from outrider.errors import RunError

FAMILY = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path(sys.argv[1]).write_text(f"{child.pid}")
time.sleep(600)
"""


def eventually(holds: object, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def family(tmp_path: Path) -> tuple[list[str], Path]:
    """A command that starts a child, and the file to which it writes the child's id."""
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    return [sys.executable, str(script), str(tmp_path / "pid")], tmp_path / "pid"


def test_stopping_ends_the_whole_family(tmp_path: Path) -> None:
    command, file = family(tmp_path)
    with ServerProcess(command, log=tmp_path / "log") as server:
        eventually(lambda: file.exists() and file.read_text())
        assert server.failure() is None
    assert is_gone(int(file.read_text()))
    assert server.failure() is not None


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    with ServerProcess([sys.executable, "-c", deaf], log=tmp_path / "log", grace_s=0.1) as server:
        eventually(lambda: "up\n" in (tmp_path / "log").read_text())
    failure = server.failure()
    assert failure is not None
    assert "SIGKILL" in failure


def test_a_death_is_told_with_its_last_words(tmp_path: Path) -> None:
    dying = "import sys; print('ValueError: no such model', file=sys.stderr); print('bye'); sys.exit(7)"
    with ServerProcess([sys.executable, "-c", dying], log=tmp_path / "deep" / "log") as server:
        eventually(lambda: server.failure() is not None)
        assert server.failure() == f"ended with status 7: ValueError: no such model (log: {tmp_path}/deep/log)"


def test_a_death_by_a_signal_is_named(tmp_path: Path) -> None:
    with ServerProcess([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log=tmp_path / "log") as server:
        eventually(lambda: server.failure() is not None)
        assert "by SIGKILL" in str(server.failure())


def test_children_of_a_dead_server_are_ended_too(tmp_path: Path) -> None:
    orphan = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.exit(1)"
    with ServerProcess([sys.executable, "-c", orphan], log=tmp_path / "log") as server:
        eventually(lambda: server.failure() is not None)
    pid = int((tmp_path / "log").read_text().splitlines()[-1])
    eventually(lambda: is_gone(pid))


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with ServerProcess(["/nowhere/python"], log=tmp_path / "log") as server:
        eventually(lambda: server.failure() is not None)
        assert "/nowhere/python: No such file" in str(server.failure())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_its_owner(number: signal.Signals, tmp_path: Path) -> None:
    command, file = family(tmp_path)
    owner = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from outrider.bench.serving.process import ServerProcess
        with ServerProcess({command!r}, log=Path({str(tmp_path / "log")!r})):
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", owner], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: file.exists() and file.read_text(), 60)
        process.send_signal(number)
        process.wait(20)
        eventually(lambda: is_gone(int(file.read_text())))
    finally:
        process.kill()
        process.wait()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be started with its log"):
        ServerProcess(["true"], log=tmp_path / "file" / "log")


def test_an_error_is_found_behind_what_a_logger_puts_before_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(Worker pid=1) ERROR 11-24 [x.py:3] AttributeError: no such\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\nbye\n"
    )
    assert last_words(log) == "AttributeError: no such"
    assert last_words(log, begin=log.stat().st_size - 4) == "bye"


def test_last_words_of_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert last_words(tmp_path / "log") == ""
    assert os.path.getsize(tmp_path / "log") == 0
