"""The picture of a command shows what it printed, in its colours."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import terminal


def test_colours_become_classes_and_no_font_is_fetched() -> None:
    svg = terminal.drawn("outrider generate", "plain \x1b[32mdrafted\x1b[0m end\n")
    texts = {
        "".join(text.itertext()): text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    }
    assert texts["drafted"].attrib["class"] != texts["plain\xa0"].attrib["class"]
    assert "@font-face" not in svg


def test_a_command_that_fails_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "picture.svg"
    assert terminal.main([str(out), "generate", "--no-such-option"]) != 0
    assert not out.exists()
    assert terminal.main([str(out), "--version"]) == 0
    assert "outrider --version" in out.read_text().replace("&#160;", " ")
    assert sys.executable not in out.read_text()
