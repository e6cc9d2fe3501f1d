"""README and pages keep their limits: length, size of tables, and a place in the site's navigation."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pages import pages

ROOT = Path(__file__).parents[3]
MOST_LINES, FIRST_PYTHON, MOST_ROWS = 110, 30, 12
PAGES = pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: str(page.relative_to(ROOT)))


def test_the_readme_is_short_and_begins_with_python() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert lines.index("```python") < FIRST_PYTHON


def test_the_architecture_is_read_in_one_sitting() -> None:
    assert len((ROOT / "docs" / "concepts" / "architecture.md").read_text(encoding="utf-8").splitlines()) <= 120


@PAGES
def test_tables_are_small_outside_the_results(page: Path) -> None:
    if page.parent.name != "results":
        tables = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert max((len(table.splitlines()) - 2 for table in tables), default=0) <= MOST_ROWS


@PAGES
def test_a_page_says_first_what_it_is_for(page: Path) -> None:
    if page.name != "README.md" or page.parent != ROOT:
        heading, _, first = page.read_text(encoding="utf-8").split("\n", 3)[:3]
        assert heading.startswith("# ")
        assert re.match("(This|These) (page|guide)s? ", first)


def test_the_site_leads_to_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(leaves(site["nav"])) == found


def leaves(nav: str | list[object] | dict[str, object]) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(part)  # type: ignore[arg-type]
