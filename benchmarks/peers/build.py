"""Builds the environments of the peers: one folder each under `.peers/`, none of them the package's own.

    python benchmarks/peers/build.py [--root .peers] [--jobs 2] [PEER ...]

    transformers, economize, flashspec   a virtual environment with PyTorch and the package
    vllm                                 the environment of `make vllm`, with Arctic's suffix cache for its `suffix`
    llama.cpp                            its server, `llama-bench` and `llama-quantize`, compiled for this machine from
                                         the sources that the package llama-cpp-python carries, and an environment for
                                         their converter; needs cmake and a C++ compiler
    llama.cpp-no-amx                     the same without AMX, with the processor's other instruction sets; built where
                                         the processor has AMX

What is there is kept, so a second call is quick; what fails is written to `NAME/failed.txt` and shown in the table of
`run.py` as the reason why that peer did not run. The other peers are still built.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path

from roster import FAILED, NO_AMX, READY, executable

from outrider.errors import OutriderError
from outrider.records.provenance import CPU_DESCRIPTION
from outrider.vllm import environment as vllm_environment

TORCH = "torch==2.13.0"
"""The CPU build of vLLM wants exactly this one, and all peers get the same."""
LLAMA_TARGETS = ("llama-quantize", "llama-bench", "llama-server")
LLAMA_FLAGS = {
    "sse4_2": "SSE42",
    "avx": "AVX",
    "avx2": "AVX2",
    "bmi2": "BMI2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vbmi": "AVX512_VBMI",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
"""Flags of /proc/cpuinfo, and the option of llama.cpp's build that uses them; AMX is left out."""
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
    """Build llama.cpp for this machine, the converter that writes GGUF files, and an environment for it."""
    source = llama_source(home)
    environment(home, "transformers", "sentencepiece")
    compile_llama(home, source, jobs)


def build_llama_no_amx(home: Path, jobs: int) -> None:
    """Build llama.cpp with every instruction set of this processor but AMX."""
    source = llama_source(home.with_name("llama.cpp"))
    if not (home / "source").exists():
        (home / "source").symlink_to(source)
    compile_llama(home, source, jobs, *no_amx_options(hardware_flags()))


def llama_source(home: Path) -> Path:
    """Return the sources of llama.cpp, fetched once."""
    log, source = home / "build.log", home / "source"
    home.mkdir(parents=True, exist_ok=True)
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not installed; install cmake and a C++ compiler")
    if not source.exists():
        sdist = ("--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(home), "llama-cpp-python")
        call(*pip(Path(sys.executable), "download"), *sdist, log=log)
        unpack(next(home.glob("llama_cpp_python-*.tar.gz")), source)
    return source


def compile_llama(home: Path, source: Path, jobs: int, *options: str) -> None:
    log, tree = home / "build.log", source / "vendor" / "llama.cpp"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    call("cmake", "-S", tree, "-B", home / "build", *generator, *SERVER_OPTIONS, *options, log=log)
    call("cmake", "--build", home / "build", "--parallel", str(jobs), "--target", *LLAMA_TARGETS, log=log)


def no_amx_options(flags: Collection[str]) -> list[str]:
    """Return the options of a build without AMX for a processor with these flags."""
    wanted = {option for flag, option in LLAMA_FLAGS.items() if flag in flags}
    every = dict.fromkeys(LLAMA_FLAGS.values())
    return ["-DGGML_NATIVE=OFF", *(f"-DGGML_{option}={'ON' if option in wanted else 'OFF'}" for option in every)]


def hardware_flags(description: Path = CPU_DESCRIPTION) -> frozenset[str]:
    """Return the flags of the first processor of /proc/cpuinfo; none on another system."""
    lines = description.read_text().splitlines() if description.exists() else []
    found = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(found.partition(":")[2].split())


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
    NO_AMX: build_llama_no_amx,
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
    has_amx = "amx_int8" in hardware_flags()
    for name in options.peers or [name for name in BUILDS if name != NO_AMX or has_amx]:
        print(f"{name}: building (log: {options.root / name / 'build.log'})", file=sys.stderr, flush=True)
        reason = build(name, options.root.resolve(), options.jobs)
        print(f"{name}: {reason or 'ready'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
