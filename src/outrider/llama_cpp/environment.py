"""llama.cpp's programs: their location and their installation.

They stand in `.llama.cpp` in the working directory, or in the directory in `OUTRIDER_LLAMA`, which may also name a
`llama-server` program. `make llama` builds them; without the Makefile:

    python -m outrider.llama_cpp.environment [DIRECTORY]

The sources are those that the package llama-cpp-python carries, compiled for this machine with cmake and a C++
compiler. Their converter, which writes GGUF files, runs in our own interpreter with one package beside it. Building is
idempotent: finished parts are kept, and a marker is written at the end.

    DIRECTORY/source/           the sources; PKG-INFO names the version
    DIRECTORY/build/bin/        llama-server, llama-bench, llama-quantize
    DIRECTORY/packages/         sentencepiece, for the converter

Example: `find_llama().server` is `.llama.cpp/build/bin/llama-server`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrider.errors import ConfigError, OutriderError, RunError

__all__ = ["VARIABLE", "Llama", "build", "chosen_home", "compile_programs", "fetch_sources", "find_llama"]

VARIABLE: Final = "OUTRIDER_LLAMA"
DEFAULT: Final = Path(".llama.cpp")
MARKER: Final = ".outrider-ready"
PROGRAMS: Final = ("llama-quantize", "llama-bench", "llama-server")
OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
TREE: Final = Path("source/vendor/llama.cpp")
REMEDY: Final = f"run make llama, or set {VARIABLE} to its directory or to a llama-server program"


@dataclass(frozen=True, kw_only=True)
class Llama:
    """llama.cpp on this machine.

    server   the program `llama-server`
    home     the directory of the build; None where only the program is known
    version  the version of the package that carried the sources, else what the program says; None if unknown
    """

    server: Path
    home: Path | None
    version: str | None

    def program(self, name: str) -> Path:
        """Return another program beside the server.

        Raises:
            ConfigError: if it is not there.
        """
        path = self.server.with_name(name)
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; {REMEDY}")
        return path

    @property
    def converter(self) -> Path:
        """The script that writes GGUF files.

        Raises:
            ConfigError: if it is not there.
        """
        script = None if self.home is None else self.home / TREE / "convert_hf_to_gguf.py"
        if script is None or not script.is_file():
            raise ConfigError(f"{self.server} has no converter for GGUF files beside it; run make llama")
        return script

    @property
    def packages(self) -> Path | None:
        """The directory of the converter's package."""
        return None if self.home is None else self.home / "packages"


def chosen_home() -> Path:
    """Return the path in `OUTRIDER_LLAMA`, else `.llama.cpp`."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def find_llama(place: Path | None = None) -> Llama:
    """Return the programs in a directory, or the one at a path; by default at `chosen_home()`.

    Raises:
        ConfigError: if there are none, or the server does not run.
    """
    place = (place or chosen_home()).expanduser().absolute()
    server = place if place.is_file() else place / "build" / "bin" / "llama-server"
    if not server.is_file():
        raise ConfigError(f"there is no llama-server at {place}; {REMEDY}")
    home = next((one for one in server.parents if (one / TREE).is_dir()), None)
    try:
        done = subprocess.run([server, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{server} does not run ({error}); {REMEDY}") from error
    if done.returncode:
        raise ConfigError(f"{server} does not run ({_last_line(done.stderr)}); {REMEDY}")
    said = next((line for line in (done.stderr + done.stdout).splitlines() if line.startswith("version:")), None)
    return Llama(server=server, home=home, version=_package_version(home) or said)


def _package_version(home: Path | None) -> str | None:
    facts = None if home is None else home / "source" / "PKG-INFO"
    if facts is None or not facts.is_file():
        return None
    lines = (line for line in facts.read_text(encoding="utf-8").splitlines() if line.startswith("Version: "))
    return next((f"of llama-cpp-python {line.removeprefix('Version: ')}" for line in lines), None)


def build(home: Path, jobs: int) -> None:
    """Build the programs unless they are there.

    Raises:
        RunError: naming the step that failed; finished steps are kept.
    """
    home = home.absolute()
    if (home / MARKER).exists():
        return
    source = fetch_sources(home)
    if not (home / "packages").exists():
        _pip("install", "--no-deps", "--target", str(home / "packages"), "sentencepiece")
    compile_programs(home, source, jobs)
    (home / MARKER).touch()


def fetch_sources(home: Path) -> Path:
    """Return the directory of the sources, fetched once.

    Raises:
        RunError: if a compiler is missing, or they cannot be fetched.
    """
    source = home / "source"
    home.mkdir(parents=True, exist_ok=True)
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise RunError(f"{tool} is not installed; install cmake and a C++ compiler")
    if not source.exists():
        _pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(home), "llama-cpp-python")
        archive = next(home.glob("llama_cpp_python-*.tar.gz"))
        _unpack(archive, source)
        archive.unlink()
    return source


def compile_programs(home: Path, source: Path, jobs: int, *options: str) -> None:
    """Compile the programs into `home/build`.

    Raises:
        RunError: if cmake fails; its output is in `home/build.log`.
    """
    tree, log = source / "vendor" / "llama.cpp", home / "build.log"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _call("cmake", "-S", str(tree), "-B", str(home / "build"), *generator, *OPTIONS, *options, log=log)
    _call("cmake", "--build", str(home / "build"), "--parallel", str(jobs), "--target", *PROGRAMS, log=log)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the one folder of an archive under another name."""
    scratch = target.with_name("unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(scratch, filter="data")
    next(scratch.iterdir()).rename(target)
    scratch.rmdir()


def _pip(verb: str, *arguments: str) -> None:
    _call(sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *arguments)


def _call(*command: str, log: Path | None = None) -> None:
    """Run a step; what it says goes to a log, or its errors into the message where it fails."""
    print(f"$ {' '.join(command[:8])}{' ...' if len(command) > 8 else ''}", file=sys.stderr, flush=True)
    if log is None:
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        said = done.stderr
    else:
        with log.open("a") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, text=True, check=False)
        said = log.read_text(errors="replace")
    if done.returncode:
        place = "" if log is None else f", log: {log}"
        raise RunError(f"{' '.join(command[:3])} failed ({_last_line(said)}{place}); fix the cause and run it again")


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def main(arguments: Sequence[str] = ()) -> None:
    """Build the programs in the directory named on the command line."""
    home = Path(arguments[0]) if arguments else chosen_home()
    try:
        build(home, os.cpu_count() or 1)
        found = find_llama(home)
    except OutriderError as error:
        sys.exit(f"outrider: {error}")
    print(f"llama-server ({found.version}) is ready in {home}")


if __name__ == "__main__":
    main(sys.argv[1:])
