"""Devices and dtypes by name, and what a machine without a GPU, or with two, says of those that it has not got."""

from typing import Any

import pytest
import torch

from outrider import load_target
from outrider.cli import main
from outrider.errors import ConfigError
from outrider.targets.deferred import DeferredTarget
from outrider.targets.placing import device_named, dtype_named


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu"), None])
def test_the_cpu(name: Any, no_gpu: None) -> None:
    assert device_named(name) == torch.device("cpu")


@pytest.mark.parametrize(("name", "device"), [(None, "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_gpu(name: Any, device: str, two_gpus: None) -> None:
    assert device_named(name) == torch.device(device)


NOWHERE = [
    ("cuda", "device 'cuda' needs a GPU"),
    ("cuda:7", "device 'cuda:7' needs a GPU"),
    ("cpu:3", "device 'cpu:3' does not exist"),
    ("mps", "unknown device 'mps'"),
    ("meta", "unknown device 'meta'"),
    ("gpu", "unknown device 'gpu'"),
    ("", "unknown device ''"),
    ("cpu:", "unknown device 'cpu:'"),
    ("cpu:x", "unknown device 'cpu:x'"),
    ("cuda:-1", "unknown device 'cuda:-1'"),
    ("cuda:²", "unknown device"),
    ("CPU", "unknown device 'CPU'"),
    ("a\nb", "unknown device 'a"),
    ("x" * 9000, "unknown device 'xxx"),
    (0, "device=0 must be a name"),
    (b"cpu", "device=b'cpu' must be a name"),
]


@pytest.mark.parametrize(("name", "said"), NOWHERE)
def test_what_is_no_device_here_is_refused(name: Any, said: str, no_gpu: None) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_target("smollm2-135m", device=name)
    assert len(str(caught.value)) < 250


def test_a_gpu_too_many_names_those_that_are_there(two_gpus: None) -> None:
    with pytest.raises(ConfigError, match="device 'cuda:7' does not exist; use cuda:0, cuda:1"):
        device_named("cuda:7")


def test_dtypes() -> None:
    assert dtype_named("bfloat16") is torch.bfloat16
    assert dtype_named(torch.float32) is torch.float32
    with pytest.raises(ConfigError, match="unknown dtype 'bf16'"):
        DeferredTarget("smollm2-135m", dtype="bf16")
    bad: Any
    for bad in (torch.int8, "", "float", "BFLOAT16", None, 16, ["float32"]):
        with pytest.raises(ConfigError, match="dtype"):
            load_target("smollm2-135m", dtype=bad)


@pytest.mark.parametrize(
    "option", [("--device", "cuda"), ("--device", "cpu:3"), ("--device", "mps"), ("--dtype", "fp16")]
)
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a"),
        ("bench", "--prompts", "{prompts}", "--methods", "ngram"),
        ("profile",),
        ("synthesize", "--source", "{prompts}", "--output", "{prompts}.d"),
        ("train", "medusa", "--data", "{prompts}"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_so_in_one_sentence(
    command: tuple[str, ...], option: tuple[str, str], no_gpu: None, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n', "utf-8")
    words = [word.format(prompts=prompts) for word in command]
    try:
        status = main([*words, "--target", "smollm2-135m", *option])
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert status == 2
    assert option[1] in said
    assert said.strip().count("\n") == 0
