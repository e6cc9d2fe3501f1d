"""The documentation says what the code says, and names nothing that does not exist."""

import re
import tomllib
from pathlib import Path

import pytest
from pages import filled, main, pages

from outrider.errors import ConfigError
from outrider.proposers import REGISTRY

ROOT = Path(__file__).parents[3]
PAGES = pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: str(page.relative_to(ROOT)))
STALE = "before\n<!-- generated:results:quick -->\nan old table\n<!-- /generated -->\nafter\n"


def test_the_generated_blocks_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--check", str(ROOT)])
    assert status == 0, f"run python tools/docs: {capsys.readouterr()}"


@PAGES
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = page if not place else (page.parent / place).resolve()
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


@PAGES
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    for path, test in re.findall(
        r"`((?:src|tests|docs|dev|tools|benchmarks|examples|recipes)/[\w./-]+?)(?:::(\w+))?`", prose(page)
    ):
        if page.parent.name == "results" or path == "docs/results/quick.json":
            continue
        assert (ROOT / path).exists(), f"{path} does not exist"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {test}"


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_dependency_is_explained_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {(named(text), "") for text in project["dependencies"]}
    wanted |= {(named(text), extra) for extra, texts in project["optional-dependencies"].items() for text in texts}
    page = (ROOT / "docs" / "reference" / "dependencies.md").read_text(encoding="utf-8")
    always = {(name, "") for name in re.findall(r"^\| `([\w-]+)` \| (?!`)", page, flags=re.MULTILINE)}
    extras = set(re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", page, flags=re.MULTILINE))
    assert always | extras == wanted


def named(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement)[0]


def test_a_block_is_replaced_and_nothing_else() -> None:
    blocks = {"results": lambda name: f"a new table of {name}"}
    page = filled(STALE, blocks)
    assert page == ("before\n<!-- generated:results:quick -->\n\na new table of quick\n\n<!-- /generated -->\nafter\n")
    assert filled(page, blocks) == page
    for untouched in ("", "no blocks\x0cat all", "a `<!-- generated:results:quick -->` in a sentence\n"):
        assert filled(untouched, blocks) == untouched


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<!-- generated:result -->\n<!-- /generated -->\n", "'result'; did you mean 'results'"),
        ("<!-- generated:results:quick -->\nno end\n", "'results' has no end"),
    ],
)
def test_a_block_that_cannot_be_written_is_named(page: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        filled(page, {"results": lambda name: ""})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with a page for every method and one block that is out of date."""
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    for name in REGISTRY:
        (tmp_path / "docs" / "methods" / f"{name}.md").write_text(name)
    (tmp_path / "README.md").write_text(STALE)
    return tmp_path


def test_checking_changes_nothing_and_writing_mends(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(checkout)]) == 1
    assert capsys.readouterr().out == "out of date: README.md\n"
    assert (checkout / "README.md").read_text() == STALE
    assert main([str(checkout)]) == 0
    assert capsys.readouterr().out == "written: README.md\n"
    assert main(["--check", str(checkout)]) == 0


def test_a_method_without_a_page_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(REGISTRY))
    (checkout / "docs" / "methods" / f"{name}.md").unlink()
    assert main(["--check", str(checkout)]) == 2
    assert f"the method '{name}' has no page" in capsys.readouterr().err


def test_a_place_without_docs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no docs/" in capsys.readouterr().err
