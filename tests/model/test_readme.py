"""The quick start of the README prints what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.model
@pytest.mark.parametrize("page", ["README.md", "docs/start/quick-start.md"])
def test_the_first_python_block_runs(page: str, smollm2_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)[0]
    exec(compile(block, page, "exec"), {})
    said = re.findall(r"print\(.*\)  # (.+)", block)
    printed = capsys.readouterr().out
    assert printed.strip()
    assert not said or printed.splitlines() == said
