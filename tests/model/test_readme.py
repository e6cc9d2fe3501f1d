"""The picture of the README is what the command prints."""

import html
import re
from pathlib import Path

import pytest
import terminal

ROOT = Path(__file__).parents[2]


@pytest.mark.model
def test_the_picture_is_the_output_of_its_command(smollm2_dir: Path, tmp_path: Path) -> None:
    kept = ROOT / "docs" / "start" / "drafts.svg"
    page = (ROOT / "docs" / "start" / "quick-start.md").read_text("utf-8")
    words = re.search(r'terminal.py docs/start/drafts.svg (\w+) "(.+)" (.+)`', page)
    assert words
    assert terminal.main([str(tmp_path / "new.svg"), words[1], words[2], *words[3].split()]) == 0
    assert html.unescape((tmp_path / "new.svg").read_text("utf-8")) == html.unescape(kept.read_text("utf-8"))
