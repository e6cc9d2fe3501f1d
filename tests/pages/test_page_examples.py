"""Every example of every page does what the page says, or the page says why it is not tried."""

import inspect
import pkgutil
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from page_blocks import ROOT, blocks_of, example_pages
from page_commands import CommandError, commands_of, read
from page_runner import Ending, Page, dotted_names, inline_commands, planned
from page_world import World

import outrider
from outrider.formats.locate import cache_directory
from outrider.records.progress import Listener, unheard
from outrider.target import Target
from outrider.targets import load_target

PAGES = example_pages()
DEFAULTS = {name: one.default for name, one in inspect.signature(load_target).parameters.items()}
LEAST_RUN = 0.45
"""Share of the examples that must run; the rest is parsed, or compared with its source."""


def endings(page: Path) -> list[Ending]:
    return [ending for block in blocks_of(page) for ending in planned(block)]


WITH_BLOCKS = [page for page in PAGES if any(not (block.is_inline or block.is_generated) for block in blocks_of(page))]


@cache
def embedded_target(**options: object) -> Target:
    """The embedded target is loaded once for all pages."""
    return load_target("smollm2-135m", **options)


def loaded_target(name: str, *, listen: Listener = unheard, **options: object) -> Target:
    """In place of `load_target`."""
    if name == "smollm2-135m":
        return embedded_target(**{key: value for key, value in options.items() if value != DEFAULTS[key]})
    return load_target(name, listen=listen, **options)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_cache(smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds the embedded target, and takes what examples write."""
    real, own = cache_directory(), tmp_path / "cache"
    own.mkdir()
    for name in ("gguf", "models", "kernels"):
        if (real / name).exists():
            (own / name).symlink_to(real / name)
    monkeypatch.setenv("OUTRIDER_CACHE", str(own))


@pytest.mark.model
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run(
    page: Path,
    world: World,
    own_cache: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setattr(outrider, "load_target", loaded_target)
    monkeypatch.setattr("outrider.targets.load_target", loaded_target)
    monkeypatch.setattr("outrider.bench.benchmark.memory_bytes_per_s", lambda device: 1e10)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    Page(page, world, directory, capsys).run()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_sentences_exist(page: Path) -> None:
    for block, text in inline_commands(page):
        for words in commands_of(text):
            try:
                read(words, is_inline=True)
            except CommandError as error:
                pytest.fail(f"{block.place}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_in_sentences_exist(page: Path) -> None:
    for block, name in dotted_names(page):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{block.place}: {name} does not exist ({error})")


def test_the_commands_of_the_makefile_exist() -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    text = re.sub(r"\$\$\(test -f \S+ && echo --resume \|\| echo(.*?)\)", r"\1", text)
    found = re.findall(r"\$\(BIN\)/((?:outrider|python) (?!\|\|).*)$", text, flags=re.MULTILINE)
    assert len(found) >= 10
    for command in found:
        read(shlex.split(command))


def test_most_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = [ending for page in PAGES for ending in endings(page)]
    counts = Counter(ending.how for ending in found)
    with capsys.disabled():
        print("\nexamples on pages: " + ", ".join(f"{number} {how}" for how, number in counts.most_common()), end=" ")
    for ending in found:
        if ending.reason:
            print(f"{ending.how:<7} {ending.place}: {ending.what}  ({ending.reason})")
    assert counts["run"] >= LEAST_RUN * (counts["run"] + counts["parsed"])
    assert counts["run"] >= 40, "fewer examples run than did; see the list"
