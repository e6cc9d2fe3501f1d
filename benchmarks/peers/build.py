"""Builds the environments of the peers: one folder each under `.peers/`, none of them the package's own.

    python benchmarks/peers/build.py [--root .peers] [--jobs 2] [PEER ...]

    economize, flashspec   a virtual environment with PyTorch and the package
    llama.cpp              the programs of `make llama`
    llama.cpp-no-amx       the same without AMX, with the processor's other instruction sets; built where the processor
                           has AMX

What is there is kept, so a second call is quick; what fails is written to `NAME/failed.txt` and shown in the table of
`run.py` as the reason why that peer did not run. The other peers are still built.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from roster import FAILED, NO_AMX, READY, executable

from outrider.errors import OutriderError
from outrider.llama_cpp import environment as llama_environment
from outrider.records.provenance import CPU_DESCRIPTION

TORCH = "torch==2.13.0"
"""The CPU build of vLLM wants exactly this one, and the libraries get the same."""
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


def build_llama(home: Path, jobs: int) -> None:
    """Build the programs of `make llama`, which both share."""
    shared = llama_environment.chosen_home().absolute()
    llama_environment.build(shared, jobs)
    if home.resolve() != shared.resolve():
        home.rmdir()
        home.symlink_to(shared)


def build_llama_no_amx(home: Path, jobs: int) -> None:
    """Build llama.cpp with every instruction set of this processor but AMX."""
    source = llama_environment.fetch_sources(llama_environment.chosen_home().absolute())
    if not (home / "source").exists():
        (home / "source").symlink_to(source)
    llama_environment.compile_programs(home, source, jobs, *no_amx_options(hardware_flags()))


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


def packages(*names: str) -> Callable[[Path, int], None]:
    def build(home: Path, jobs: int) -> None:
        environment(home, *names)

    return build


BUILDS: dict[str, Callable[[Path, int], None]] = {
    "economize": packages("economize"),
    "flashspec": packages("flashspec"),
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
    except (BuildError, OutriderError, OSError) as error:
        reason = f"the build failed: {error}"
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
