"""A command that does not outlive the process that wanted it; run as a script, with the standard library alone.

    python guard.py GRACE_S COMMAND ...

The guard leads a process group of its own, in which the command and its workers run. It ends the group when its
standard input closes, which also happens when the process at the other end is killed without a chance to clean up: the
command is asked with SIGTERM, and after GRACE_S seconds the group is killed. When the command ends by itself its status
is written to standard output, and what it left behind is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the command until it ends, or until nobody wants it any more."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    status = os.dup(1)  # the command writes to the log, which is standard error
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_as_usual)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os.write(status, b"127\n")
        return
    threading.Thread(target=_watch, args=(child, grace_s), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # nobody may be left to be told
        os.write(status, f"{child.wait()}\n".encode())
    os.killpg(0, signal.SIGKILL)


def _as_usual() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _watch(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    while sys.stdin.buffer.read(1):
        continue
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
