"""A tiny target, two prompts, and an environment whose vLLM is a fake."""

import json
from pathlib import Path

import pytest
from serving_runs import Run

from outrider.bench.benchmark import benchmark
from outrider.bench.config import BenchConfig
from outrider.results.rows import Report
from outrider.testing.directory import write_tiny_model
from outrider.testing.fake_vllm import write_environment

PROMPTS = (
    {"id": "a1", "category": "alpha", "turns": ["abc abc abc", "go on"]},
    {"id": "a2", "category": "alpha", "turns": ["xyz xyz"]},
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fake servers write their process ids, and their command lines."""
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: Path) -> Path:
    """An environment with a fake vLLM, where Outrider looks for it."""
    home = write_environment(tmp_path / "fake-vllm")
    monkeypatch.setenv("OUTRIDER_VLLM", str(home))
    return home


@pytest.fixture
def run(tiny_model: Path, prompts: Path, tmp_path: Path) -> Run:
    """A benchmark of the fake: plain decoding and prompt lookup, unless said otherwise."""

    def start(**given: object) -> Report:
        settings: dict[str, object] = {
            "target": str(tiny_model),
            "dtype": "float32",
            "methods": ("ngram:num_nodes=3",),
            "engines": ("vllm",),
            "categories": (),
            "prompts": (str(prompts),),
            "num_prompts": 2,
            "repeats": 1,
            "stall_timeout": 5.0,
            "start_timeout": 20.0,
        }
        return benchmark(BenchConfig(**(settings | given)), tmp_path / "run")  # type: ignore[arg-type]

    return start
