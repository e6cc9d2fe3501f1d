"""Finding llama.cpp, the steps of building it, and the files that its programs write; nothing is compiled."""

import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider.errors import CheckpointError, ConfigError, RunError
from outrider.llama_cpp import environment
from outrider.llama_cpp.environment import Llama, build, find_llama
from outrider.llama_cpp.files import converted, quantised, target_file
from outrider.testing.directory import write_tiny_model
from outrider.testing.fake_llama import write_programs


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Llama:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return find_llama(write_programs(tmp_path / "llama"))


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_directory_or_a_program_can_be_named(llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama.version == "version: 0 (fake)"
    assert find_llama(llama.server) == llama
    (tmp_path / "llama" / "source" / "PKG-INFO").write_text("Name: llama_cpp_python\nVersion: 9.8.7\n")
    assert find_llama(tmp_path / "llama").version == "of llama-cpp-python 9.8.7"
    alone = script(tmp_path / "llama-server", "exit 0")
    monkeypatch.setenv("OUTRIDER_LLAMA", str(alone))
    assert find_llama().home is None
    with pytest.raises(ConfigError, match="has no converter for GGUF files beside it; run make llama"):
        converted(find_llama(), write_tiny_model(tmp_path / "model"), "bf16")


def test_a_file_is_converted_once_and_never_half(llama: Llama, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    file = converted(llama, model, "bf16", target=tmp_path)
    assert f"{model} --outtype bf16 --target-model-dir {tmp_path} --outfile" in file.read_text()
    llama.converter.write_text("import sys; sys.exit('NotImplementedError: such a model')")
    assert converted(llama, model, "bf16") == file
    with pytest.raises(CheckpointError, match=r"cannot convert .*model \(NotImplementedError: such a model\)"):
        converted(llama, model, "f16")
    assert [path.name for path in file.parent.glob("*gguf*")] == [file.name]


def test_a_quantised_file_is_made_once_and_never_half(llama: Llama, tmp_path: Path) -> None:
    source = tmp_path / "ab-bf16.gguf"
    source.write_text("weights")
    with pytest.raises(ConfigError, match="llama-quantize does not exist; run make llama"):
        quantised(llama, source, "Q8_0")
    program = script(llama.server.with_name("llama-quantize"), 'echo half > "$2"; echo no room >&2; exit 3')
    with pytest.raises(CheckpointError, match=r"llama-quantize failed on .*ab-bf16\.gguf \(no room\)"):
        quantised(llama, source, "Q8_0")
    assert [path.name for path in tmp_path.glob("*.gguf*")] == ["ab-bf16.gguf"]
    script(program, 'cat "$1" > "$2"; echo "$3" >> "$2"')
    file = quantised(llama, source, "Q8_0")
    assert (file.name, file.read_text()) == ("ab-q8_0.gguf", "weightsQ8_0\n")
    program.unlink()
    assert quantised(llama, source, "Q8_0") == file


def test_the_file_of_a_target_has_the_weights_that_we_compute_with(llama: Llama, tmp_path: Path) -> None:
    script(llama.server.with_name("llama-quantize"), 'echo "$3" > "$2"')
    model = str(write_tiny_model(tmp_path / "model"))
    names = [target_file(llama, model, weights, "float32").name for weights in ("stored", "bf16", "int8", "int4")]
    assert [name.rpartition("-")[2] for name in names] == ["f32.gguf", "bf16.gguf", "q8_0.gguf", "q4_0.gguf"]
    published = tmp_path / "own.gguf"
    published.write_bytes(b"GGUF")
    assert target_file(llama, str(published), "stored", "bfloat16") == published


class Steps:
    """Stands for `subprocess.run`: notes the commands, makes what they would make, and fails where told."""

    def __init__(self, home: Path, failing: str = "nothing") -> None:
        self.home, self.failing = home, failing
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], **given: Any) -> Any:
        self.commands.append(command)
        if "download" in command:
            inside = self.home / "inside" / "llama_cpp_python-1"
            inside.mkdir(parents=True)
            (inside / "PKG-INFO").write_text("Version: 1\n")
            with tarfile.open(self.home / "llama_cpp_python-1.tar.gz", "w:gz") as archive:
                archive.add(inside, "llama_cpp_python-1")
        if "--target" in command and "install" in command:
            (self.home / "packages").mkdir()
        fails = any(self.failing in part for part in command)
        if fails and "stdout" in given and given.get("stderr") is subprocess.STDOUT:
            given["stdout"].write("error: no such header\n")
            given["stdout"].flush()
        return subprocess.CompletedProcess(command, int(fails), "", "no space left\n")


def test_building_goes_on_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "llama"
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    failing = Steps(home, "--build")
    monkeypatch.setattr(environment.subprocess, "run", failing)
    with pytest.raises(RunError, match=r"cmake --build .* failed \(error: no such header, log: .*build\.log\)"):
        build(home, 2)
    assert (home / "source" / "PKG-INFO").is_file()
    assert [command[0] for command in failing.commands[-2:]] == ["cmake", "cmake"]
    steps = Steps(home)
    monkeypatch.setattr(environment.subprocess, "run", steps)
    build(home, 2)
    assert not any("download" in command or "install" in command for command in steps.commands)
    assert list(steps.commands[-1][-3:]) == ["llama-quantize", "llama-bench", "llama-server"]
    steps.commands.clear()
    build(home, 2)
    assert steps.commands == []


def test_a_missing_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(RunError, match="cmake is not installed; install cmake and a C"):
        build(tmp_path / "llama", 1)
