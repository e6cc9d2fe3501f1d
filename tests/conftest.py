"""Fixtures shared by every test."""

from pathlib import Path

import pytest

from outrider.models.locate import locate


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The embedded target's directory; fetched and converted by the first test that ever asks for it."""
    return locate("smollm2-135m")
