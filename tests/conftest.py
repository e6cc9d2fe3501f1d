"""Fixtures shared by every test."""

from pathlib import Path

import pytest
import torch

from outrider.models.locate import locate


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from a thread pool, and a spinning pool slows everything beside it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The embedded target's directory; fetched and converted by the first test that ever asks for it."""
    return locate("smollm2-135m")
