"""What the README shows of the race between engines."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from readme import engine_table, footnote_of, laps_of, method_table, race_chart, same_file_table

from outrider.errors import ConfigError
from outrider.proposers import REGISTRY

PAGE = """# The same file

Greedy decoding, two threads.

| requests | file |
|---|---|
| 1 | published |

| requests | engine | method | chat, tok/s | editing, tok/s | all, tok/s | ended |
| ---: | --- | --- | ---: | ---: | ---: | ---: |
| 1 | outrider | plain | 50.0 | 40.0 | 45.0 | 1/2 |
| 1 | outrider | eagle3 | 75.0 | 50.0 | 60.0 | 1/2 |
| 1 | outrider | suffix | 55.0 | 120.0* | 70.0 | 1/2 |
| 1 | llama.cpp | plain | 30.0 | 20.0 | 25.0 | 1/2 |
| 1 | vllm | plain | 20.0 | 20.0 | 20.0 | 1/2 |
| 1 | vllm | ngram | 10.0 | 25.0 | 15.0 | 1/2 |
| 1 | transformers | plain | 10.0 | 10.0 | 10.0 | 1/2 |
| 4 | outrider | plain | 1.0 | 1.0 | 1.0 | 1/2 |

| engine | notes |
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "peers.md"
    path.write_text(PAGE)
    return path


def test_methods_are_shown_over_plain_decoding(page: Path) -> None:
    lines = method_table(laps_of(page), "there", dict.fromkeys(REGISTRY, "Why."))
    by_name = {line.split("`")[1]: line for line in lines.splitlines()[2:]}
    assert list(by_name) == [name for name in REGISTRY if name != "oracle"]  # an instrument, and no method
    assert by_name["none"] == "| [`none`](there/none.md) | Why. | no | 1 | 1 |"
    assert by_name["eagle3"] == "| [`eagle3`](there/eagle3.md) | Why. | yes | 1.50 | 1.25 |"
    assert by_name["suffix"] == "| [`suffix`](there/suffix.md) | Why. | no | 1.10 | 3.00 |"
    assert by_name["mtp"].endswith("| yes | - | - |")


def test_each_engine_is_shown_with_its_fastest_methods(page: Path) -> None:
    assert engine_table(laps_of(page)).splitlines()[2:] == [
        "| Outrider | 45 | 75 (eagle3) | 120 (suffix) |",
        "| llama.cpp | 25 | 30 (plain) | 20 (plain) |",
        "| vLLM | 20 | 20 (plain) | 25 (ngram) |",
        "| transformers | 10 | 10 (plain) | 10 (plain) |",
    ]


def test_bars_are_to_scale_and_said_in_words(page: Path) -> None:
    drawing = ElementTree.fromstring(race_chart(laps_of(page), "of this <machine>, " * 20))
    bars = re.findall(r'<g class="bar">\s*<path d="M ([\d.]+) [\d.]+ L ([\d.]+) ', race_chart(laps_of(page), ""))
    lengths = [float(end) - float(start) for start, end in bars]
    assert len(lengths) == 2 * 7  # three of ours, llama.cpp's plain, vLLM's two, transformers' plain
    assert lengths[5] / lengths[0] == pytest.approx(120 / 50, rel=1e-3)
    said = drawing.findtext("{http://www.w3.org/2000/svg}desc") or ""
    assert "vLLM ngram, chat: 10 tokens per second. vLLM ngram, editing: 25 tokens per second." in said


def test_the_chart_says_what_ran(page: Path) -> None:
    assert footnote_of(page) == "Greedy decoding, two threads. Source: docs/results/peers.md."


def test_a_page_without_the_table_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "peers.md"
    empty.write_text("| engine | notes |\n")
    for path in (empty, tmp_path / "none.md"):
        with pytest.raises(ConfigError, match="has no table of engines"):
            laps_of(path)


def test_files_are_shown_at_one_request(tmp_path: Path) -> None:
    path = tmp_path / "same-file.md"
    path.write_text(
        "# The same file\n\n## Decoding\n\n| requests | file | llama.cpp plain | llama.cpp tg64 | Outrider plain | "
        "Outrider best | plain / plain | best / plain |\n|---|---|---|---|---|---|---|---|\n"
        "| 1 | q8_0 | 40.0 | 41.0 | 60.0 | 90.0 (eagle3) | 1.50 (1.40 to 1.60) | 2.25 (2.00 to 2.50) |\n"
        "| 4 | q8_0 | 80.0 |  | 90.0 | 95.0 (eagle3) | 1.12 | 1.19 |\n\n## Prompts\n\n| file |\n"
    )
    assert same_file_table(path).splitlines() == [
        "| One request, tok/s | llama.cpp plain | Outrider plain | Outrider best | plain / plain | best / plain |",
        "| --- | --- | --- | --- | --- | --- |",
        "| q8_0 | 40.0 | 60.0 | 90.0 (eagle3) | 1.50 (1.40 to 1.60) | 2.25 (2.00 to 2.50) |",
    ]
    path.write_text("# The same file\n")
    with pytest.raises(ConfigError, match="has no table of files"):
        same_file_table(path)
