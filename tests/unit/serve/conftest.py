"""A tiny target, and servers of it."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from server_calls import Served, Serving, served

from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model


@pytest.fixture(autouse=True)
def _seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed get the same ones in every run."""
    monkeypatch.setattr("outrider.serve.params.secrets", SimpleNamespace(randbits=random.Random(0).getrandbits))


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("served") / "tiny", max_positions=256)


@pytest.fixture(scope="session")
def target(tiny_dir: Path) -> Target:
    return load_target(str(tiny_dir), dtype="float64")


@pytest.fixture(scope="session")
def server(target: Target) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    with served(target) as running:
        yield running


@pytest.fixture
def serving(target: Target) -> Iterator[Serving]:
    """Start servers with settings of their own."""
    running = []

    def start(key: str | None = None, **settings: object) -> Served:
        running.append(served(target, key, **settings))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__(None, None, None)
