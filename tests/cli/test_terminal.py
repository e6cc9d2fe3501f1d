"""Real processes on terminals, pipes and poor consoles: no escape where none belongs, no traceback, work kept."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "outrider"]
ESCAPE = "\x1b"


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | {"TERM": "xterm", "OUTRIDER_NUM_THREADS": "1"} | more


def piped(*words: str, **more: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*COMMAND, *words], capture_output=True, env=environment(**more), check=False, timeout=240)


def on_terminal(*words: str, columns: int = 80, **more: str) -> tuple[int, str]:
    """Status, and everything that a terminal of this width is sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *words], stdin=follower, stdout=follower, stderr=follower, env=environment(**more)
    )
    os.close(follower)
    text = b""
    with contextlib.suppress(OSError):  # of the read that finds the other end closed
        while chunk := os.read(leader, 65536):
            text += chunk
    os.close(leader)
    return process.wait(240), text.decode()


@pytest.fixture(scope="module")
def hostile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset whose categories, ids and prompts try everything."""
    directory = tmp_path_factory.mktemp("hostile")
    names = ["a[/b]", "x|`y`\n<script>alert(1)</script>", "\x1b[31m\u202ered", "[bold]" * 9]
    prompts = [
        {"id": f"{ESCAPE}[2J{index}", "category": name, "turns": [f"{name} {ESCAPE}]0;title\x07"]}
        for index, name in enumerate(names)
    ]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts), encoding="utf-8")
    preset = directory / "hostile.toml"
    preset.write_text(
        f'title = "[/x] a|b <b>"\ntarget = "{tiny_model}"\ndtype = "float64"\ncategories = []\n'
        f'prompts = ["{directory / "prompts.jsonl"}"]\nmethods = ["draft_model:layers=0,num_nodes=2"]\n'
        "max_new_tokens = 3\nrepeats = 1\n",
        encoding="utf-8",
    )
    return preset


def test_a_hostile_run_in_a_pipe(hostile: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ("bench", "--preset", str(hostile), "--run-dir", str(tmp_path / "run"))
    done = piped(*words)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, err
    assert ESCAPE not in out + err
    assert "\r" not in out + err
    assert "\u202e" not in "\n".join(out.splitlines()[:-1]) + err  # the last line is data
    assert "a[/b]" in out
    assert json.loads(out.splitlines()[-1])["rows"]
    assert re.search(r"^\d+/8 ", err, re.MULTILINE)
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert ESCAPE not in page
    heads = [line.count("|") - line.count("\\|") for line in page.splitlines() if line.startswith("|")]
    assert len(set(heads)) == 1

    status, text = on_terminal(*words)  # the same run, finished: only its tables
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert status == 0
    assert ESCAPE not in plain
    assert "a[/b]" in plain
    assert '{"schema"' not in plain
    assert "…" not in plain
    paths = (str(tmp_path), str(tiny_model))  # a path is as long as it is
    lines = [line for line in plain.splitlines() if not any(path in line for path in paths)]
    assert max(map(len, lines)) <= 80
    assert "report.json" in plain

    done = piped(*words, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii()


def test_generate_shows_control_characters_on_a_terminal_alone(tiny_model: Path) -> None:
    words = ("generate", "abc", "--target", str(tiny_model), "--dtype", "float64", "--method", "none", "--no-chat")
    words += ("--temperature", "1", "--seed", "3", "--max-new-tokens", "200")
    raw = piped(*words).stdout.decode()
    controls = [one for one in raw[:-1] if ord(one) < 32 and one not in "\n\t"]
    assert controls, "the model wrote none; choose another seed"
    status, text = on_terminal(*words, NO_COLOR="1")
    assert status == 0
    shown = text.replace("\r\n", "\n")
    assert not [one for one in shown if ord(one) < 32 and one not in "\n\t"]
    assert f"\\x{ord(controls[0]):02x}" in shown
    assert "ended at --max-new-tokens (length)" in shown


@pytest.mark.parametrize("words", [("--help",), ("bench", "--help"), ("bench", "--nonsense")])
def test_poor_consoles_and_pipes_get_plain_text(words: tuple[str, ...]) -> None:
    for more in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        done = piped(*words, **more)
        assert done.returncode in (0, 2)
        assert b"Traceback" not in done.stderr
        assert ESCAPE.encode() not in done.stdout + done.stderr
    status, text = on_terminal(*words, NO_COLOR="1")
    assert status in (0, 2)
    assert ESCAPE not in text


def test_a_reader_that_leaves_is_no_error() -> None:
    for words in (("bench", "--help"), ("--version",)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*COMMAND, *words], stdout=writer, stderr=subprocess.PIPE, env=environment(), check=False, timeout=60
        )
        os.close(writer)
        assert done.returncode == 0
        assert done.stderr == b""


def test_streams_that_were_closed_before_do_not_end_a_command() -> None:
    for words, status in (("--version", 0), ("bench --help", 0), ("benhc", 2)):
        command = f"exec {sys.executable} -m outrider {words} <&- >&- 2>&-"
        assert subprocess.run(["sh", "-c", command], env=environment(), check=False).returncode == status


def test_a_full_disk_is_a_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "bench", "--help"], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
        )
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert "No space left on device" in line


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_run_keeps_its_work(
    number: signal.Signals, status: int, word: str, preset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("bench", "--preset", str(preset), "--run-dir", str(run), "--repeats", "200", "--max-new-tokens", "40")
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    units = run / "units.jsonl"
    while process.poll() is None and not (units.exists() and units.read_bytes().count(b"\n") > 2):
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err.decode()
    assert b"Traceback" not in err
    assert f"outrider: {word}; finished units are in {run}" in err.decode()


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0, 1.6, 2.2])
def test_ctrl_c_while_a_command_starts(delay: float, tiny_model: Path) -> None:
    # The words are read within `main`, so the signal never comes before the command line is there to take it.
    script = (
        "import os, signal, threading, time\n"
        "from outrider.cli import main\n"
        "def stop():\n"
        f"    time.sleep({delay})\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "def words():\n"
        "    threading.Thread(target=stop, daemon=True).start()\n"
        f"    yield from ['generate', 'abc', '--target', {str(tiny_model)!r}, '--method', 'none', '--no-chat',\n"
        "    '--max-new-tokens', '480']\n"
        "status = main(words())\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)  # the signal may come when all is done\n"
        "raise SystemExit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment(), check=False, timeout=120
    )
    assert done.returncode in (130, 0), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
