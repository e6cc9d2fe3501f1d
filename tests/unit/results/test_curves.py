"""The picture and the table of the shipped heads say what their training recorded."""

import json
from pathlib import Path

import pytest

from drawings import parsed, paths, scale
from outrider.results.pages.curves import Head, curve_chart, heads_table, read_heads


@pytest.fixture
def heads(tmp_path: Path) -> list[Head]:
    for name, last in (("slow", 1.5), ("fast", 2.25)):
        place = tmp_path / name
        place.mkdir()
        (place / "model.safetensors").write_bytes(bytes(1_500_000))
        curve = [{"tokens": 1_000_000, "tau": 1.2}, {"tokens": 4_000_000, "tau": last}]
        told = {"curve": curve, "budget": {"tokens": 4_000_000}, "held_out": {"tau": last, "conditional": [0.5, 0.25]}}
        (place / "training.json").write_text(json.dumps(told))
    return read_heads(tmp_path)


def test_the_best_comes_first(heads: list[Head]) -> None:
    assert [head.name for head in heads] == ["fast", "slow"]
    assert heads[0].curve == [(1.0, 1.2), (4.0, 2.25)]


def test_the_table_has_a_line_for_each(heads: list[Head]) -> None:
    assert heads_table(heads).splitlines()[2:] == [
        "| `fast` | 1.5 MB | 4.0 million | 2.25 | 0.50 0.25 |",
        "| `slow` | 1.5 MB | 4.0 million | 1.50 | 0.50 0.25 |",
    ]


def test_curves_rise_from_left_to_right_and_say_so_in_words(heads: list[Head]) -> None:
    drawn = curve_chart(heads, "tiny")
    assert "fast: 1.20 after 1.0 and 2.25 after 4.0 million tokens." in drawn
    drawing = parsed(drawn)
    (zero_x, unit_x), (zero_y, unit_y) = scale(drawing, "x"), scale(drawing, "y")
    found = [
        [(round((x - zero_x) / unit_x, 1), round((y - zero_y) / unit_y, 2)) for x, y in path]
        for path in paths(drawing, "curve")
    ]
    assert found == [[(1.0, 1.2), (4.0, 2.25)], [(1.0, 1.2), (4.0, 1.5)]]
    assert unit_y < 0, "up is down in SVG"
