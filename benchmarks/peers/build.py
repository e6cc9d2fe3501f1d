"""Builds the environments of the peers: one folder each under `.peers/`, none of them the package's own.

    python benchmarks/peers/build.py [--root .peers] [--jobs 2] [PEER ...]

    transformers, economize, flashspec   a virtual environment with PyTorch and the package
    vllm                                 the environment of `make vllm`, with Arctic's suffix cache for its `suffix`
    llama.cpp                            `llama-server`, compiled for this machine from the sources that the package
                                         llama-cpp-python carries, and an environment for their converter; needs cmake
                                         and a C++ compiler

What is there is kept, so a second call is quick; what fails is written to `NAME/failed.txt` and shown in the table of
`run.py` as the reason why that peer did not run. The other peers are still built.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from roster import FAILED, READY, executable

from outrider.errors import OutriderError
from outrider.vllm import environment as vllm_environment

TORCH = "torch==2.13.0"
"""The CPU build of vLLM wants exactly this one, and all peers get the same."""
SERVER_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


class BuildError(Exception):
    """A step of a build failed; the message is its last line."""


def call(*command: str | Path, log: Path) -> None:
    """Run one step of a build; its output goes to the log."""
    with log.open("a") as stream:
        stream.write(f"\n$ {' '.join(map(str, command))}\n")
        stream.flush()
        done = subprocess.run([str(part) for part in command], stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise BuildError(f"{Path(command[0]).name} ended with {done.returncode}: {lines[-1][:200]}")


def environment(home: Path, *packages: str) -> Path:
    """Build a virtual environment with some packages; return its interpreter."""
    python, log = executable(home), home / "build.log"
    if not python.exists():
        call(sys.executable, "-m", "venv", home / "env", log=log)
    call(*pip(python, "install"), TORCH, *packages, log=log)
    return python


def pip(python: Path, verb: str) -> list[str | Path]:
    return [python, "-m", "pip", verb, "--quiet", "--disable-pip-version-check"]


def build_vllm(home: Path, jobs: int) -> None:
    """Build the environment of `make vllm`, which both share."""
    shared = vllm_environment.chosen_home().absolute()
    try:
        vllm_environment.build(shared)
    except OutriderError as error:
        raise BuildError(str(error)) from error
    (home / "env").unlink(missing_ok=True)
    (home / "env").symlink_to(shared)


def build_llama(home: Path, jobs: int) -> None:
    """Build `llama-server`, the converter that writes GGUF files, and an environment for it."""
    log, source = home / "build.log", home / "source"
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not installed; install cmake and a C++ compiler")
    if not source.exists():
        sdist = ("--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(home), "llama-cpp-python")
        call(*pip(Path(sys.executable), "download"), *sdist, log=log)
        unpack(next(home.glob("llama_cpp_python-*.tar.gz")), source)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    environment(home, "transformers", "sentencepiece")
    tree = source / "vendor" / "llama.cpp"
    call("cmake", "-S", tree, "-B", home / "build", *generator, *SERVER_OPTIONS, log=log)
    call("cmake", "--build", home / "build", "--parallel", str(jobs), "--target", "llama-server", log=log)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the one folder of an archive under another name."""
    scratch = target.with_name("unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(scratch, filter="data")
    next(scratch.iterdir()).rename(target)
    scratch.rmdir()


def packages(*names: str) -> Callable[[Path, int], None]:
    def build(home: Path, jobs: int) -> None:
        environment(home, *names)

    return build


BUILDS: dict[str, Callable[[Path, int], None]] = {
    "transformers": packages("transformers"),
    "economize": packages("economize"),
    "flashspec": packages("flashspec"),
    "vllm": build_vllm,
    "llama.cpp": build_llama,
}


def build(name: str, root: Path, jobs: int) -> str | None:
    """Build one peer unless it is there; None, or why it failed."""
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    (home / FAILED).unlink(missing_ok=True)
    if (home / READY).exists():
        return None
    try:
        BUILDS[name](home, jobs)
    except (BuildError, OSError, StopIteration) as error:
        reason = f"the build failed: {error or 'a file is missing'}"
        (home / FAILED).write_text(reason + "\n")
        return reason
    (home / READY).touch()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"any of {', '.join(BUILDS)}; all by default")
    parser.add_argument("--root", type=Path, default=Path(".peers"))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if unknown := [name for name in options.peers if name not in BUILDS]:
        parser.error(f"unknown peer '{unknown[0]}'; there are {', '.join(BUILDS)}")
    for name in options.peers or BUILDS:
        print(f"{name}: building (log: {options.root / name / 'build.log'})", file=sys.stderr, flush=True)
        reason = build(name, options.root.resolve(), options.jobs)
        print(f"{name}: {reason or 'ready'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
