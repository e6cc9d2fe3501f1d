"""A tiny model on disk and a file of prompts, for commands that run end to end."""

import json
from pathlib import Path

import pytest

from outrider.testing.directory import write_tiny_model

PROMPTS = (
    {"id": "a1", "category": "alpha", "turns": ["abc abc abc", "go on"]},
    {"id": "a2", "category": "alpha", "turns": ["xyz xyz"]},
    {"id": "b1", "category": "beta", "turns": ["one two one two"]},
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def preset(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds: plain decoding and a draft model of one layer."""
    directory = tmp_path_factory.mktemp("preset")
    prompts = directory / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")
    path = directory / "tiny.toml"
    path.write_text(
        f'title = "a test"\ntarget = "{tiny_model}"\ndtype = "float64"\ncategories = []\nprompts = ["{prompts}"]\n'
        'methods = ["draft_model:layers=0,num_nodes=2"]\nmax_new_tokens = 6\nrepeats = 1\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(autouse=True)
def _no_bandwidth_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads half a gigabyte several times, and has tests of its own."""
    monkeypatch.setattr("outrider.bench.benchmark.memory_bytes_per_s", lambda device: 1e10)
