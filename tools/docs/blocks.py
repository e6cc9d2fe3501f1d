"""Generated blocks: Markdown that the docs take from the code and from filed runs.

    methods:FOLDER     table of the registered methods, linked to their pages in FOLDER
    settings:NAME      table of a method's settings
    cli                help of every command
    output:A|B|..    output of `outrider A B ..` in the checkout, without its line of JSON
    source:FILE#NAME   a function, class or method of a Python file
    results:NAME       tables of the run committed as docs/results/NAME.json
    short:NAME         the same without memory and notes
    details:NAME       acceptance, costs and prediction of each cell
    batches:NAME       its speedups by batch size, and the largest batch where each method pays off
    grid:NAME          speedups, categories by methods, at the first setting; grids:NAME at every one
    served:NAME        tables with servers
    loads:NAME         its speedups at the lowest temperature, methods by batch sizes
    loop:FILE#NAME|A|B..   the statements of a function that call these names, in order
    quality:NAME       figures of quantised weights
    race-methods:FOLDER    the methods with their speedups in the race of docs/results/engines.md
    race-engines:FILE      the engines of the race docs/results/FILE.md
    same-file:FILE         its table of GGUF files

Settings are the fields of a method's `Config`, with a line each in its docstring. Whether a method learns, and drafts
chains or trees, is observed on a tiny target.
"""

import ast
import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import cleandoc, getdoc
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from unittest.mock import patch

from grids import grid, grids, loads, served
from loop import loop
from readme import engine_table, footnote_of, laps_of, method_table, race_chart, same_file_table

from outrider.cli import COMMANDS
from outrider.cli import main as command_line
from outrider.engine import Engine
from outrider.errors import ConfigError, nearest
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import REGISTRY, proposer_class
from outrider.quality.report import read_report
from outrider.quality.table import sheet_of
from outrider.records.provenance import manifest_from_json
from outrider.results.pages.batches import batch_chart, batch_table, has_batches
from outrider.results.pages.chart import chart, described
from outrider.results.pages.curves import curve_chart, heads_table, read_heads
from outrider.results.pages.details import detail_table
from outrider.results.pages.results import short_tables, tables
from outrider.results.rows import Report, from_json
from outrider.sampling import SamplingParams
from outrider.testing import tiny_target

__all__ = ["blocks_of", "method_pages", "pictures"]

COLUMNS = 100
NUM_EXAMPLES, NUM_TOKENS = 6, 8
PROMPT = [1, 2, 3, 1, 2, 4, 1, 2]
RUN, MANIFEST = ".json", ".manifest.json"
RACE = Path("docs", "results", "engines.md")


def blocks_of(root: Path) -> Mapping[str, Callable[[str], str]]:
    """Return every block of a checkout by name."""
    return {
        "methods": methods,
        "settings": settings,
        "cli": lambda _: commands(),
        "output": lambda words: output(root, words.split("|")),
        "source": lambda place: source(root, place),
        "results": lambda name: results(root, name),
        "short": lambda name: results(root, name, short_tables),
        "details": lambda name: results(root, name, lambda report, _: detail_table(report)),
        "batches": lambda name: batches(root, name),
        "grid": lambda name: results(root, name, lambda report, _: grid(report)),
        "grids": lambda name: results(root, name, lambda report, _: grids(report)),
        "served": lambda name: results(root, name, served),
        "loads": lambda name: results(root, name, lambda report, _: loads(report)),
        "quality": lambda name: quality(root / "docs" / "results" / f"{name}.jsonl"),
        "loop": lambda place: _loop(root, *place.split("|")),
        "race-methods": lambda folder: method_table(
            laps_of(root / RACE), folder, {name: _summary(name) for name in REGISTRY}
        ),
        "race-engines": lambda name: engine_table(laps_of(root / "docs" / "results" / f"{name}.md")),
        "same-file": lambda name: same_file_table(root / "docs" / "results" / f"{name}.md"),
        "heads": lambda target: heads_table(read_heads(root / "checkpoints" / target)),
    }


def method_pages(root: Path) -> list[Path]:
    """Return the page of every registered method."""
    return [root / "docs" / "methods" / f"{name}.md" for name in REGISTRY]


def pictures(root: Path) -> dict[Path, str]:
    """Return the SVG of every committed run, of its batch sizes, of training curves and of the race of engines."""
    runs = {path: _report(path) for path in _committed_runs(root)}
    bars = {path.with_suffix(".svg"): chart(report, hardware=_hardware(path)) for path, report in runs.items()}
    lines = {
        path.with_suffix(".batches.svg"): batch_chart(report, hardware=_hardware(path))
        for path, report in runs.items()
        if has_batches(report)
    }
    targets = sorted(path for path in (root / "checkpoints").glob("*") if path.is_dir())
    curves = {
        root / "docs" / "results" / f"training.{target.name}.svg": curve_chart(read_heads(target), target.name)
        for target in targets
    }
    race = root / RACE
    engines = {race.with_name("engines.svg"): race_chart(laps_of(race), footnote_of(race))} if race.exists() else {}
    return bars | lines | curves | engines


def methods(folder: str) -> str:
    """Return one row per registered method; `folder` leads from the page to the methods' pages."""
    lines = ["| Method | What it does | Drafts | Learns across requests | Settings |", "|---|---|---|---|---|"]
    for name in REGISTRY:
        seen = _observed(name)
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(proposer_class(name).Config)) or "none"
        lines.append(
            f"| [`{name}`]({folder}/{name}.md) | {_summary(name)} | {seen.drafts} | {seen.learns} | {fields} |"
        )
    return "\n".join(lines)


def settings(name: str) -> str:
    """Return a table of one method's settings: name, type, default, meaning."""
    config = proposer_class(name).Config
    fields = dataclasses.fields(config)
    if not fields:
        return "This method has no settings."
    hints, meanings = get_type_hints(config), documented_fields(getdoc(config) or "")
    lines = ["| Setting | Type | Default | Meaning |", "|---|---|---|---|"]
    for field in fields:
        assert field.name in meanings, f"the docstring of {config.__name__} does not explain {field.name}"
        kind = _cell(_annotation(hints[field.name]))
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        lines.append(f"| `{field.name}` | `{kind}` | {default} | {_cell(meanings[field.name])} |")
    return "\n".join(lines)


def documented_fields(docstring: str) -> dict[str, str]:
    """Return the meaning of each field from lines such as `min_n, max_n   lengths`; indented lines continue."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in cleandoc(docstring).splitlines()[1:]:
        if found := re.fullmatch(r"(\w+(?:, \w+)*) {2,}(\S.*)", line):
            names = found[1].split(", ")
            meanings |= dict.fromkeys(names, found[2])
        elif line.startswith("  "):
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
        else:
            names = []
    return meanings


def commands() -> str:
    """Return the help of every command, as the parser prints it."""
    return "\n\n".join(f"## `outrider {name}`\n\n```text\n{_help(name)}\n```" for name in COMMANDS)


def output(root: Path, words: list[str]) -> str:
    """Return a command line and its output, which must depend on the checkout alone.

    Raises:
        ConfigError: if the command fails.
    """
    printed = io.StringIO()
    plain = patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"})
    with contextlib.chdir(root), plain, contextlib.redirect_stdout(printed):
        if command_line(words):
            raise ConfigError(f"a page shows the output of outrider {' '.join(words)}, which fails; mend the page")
    lines = [line.rstrip() for line in printed.getvalue().splitlines() if not line.startswith("{")]
    return "\n".join(["```text", f"$ outrider {' '.join(words)}", *lines, "```"])


def source(root: Path, place: str) -> str:
    """Return the source of a definition: `file.py#function`, `file.py#Class.method`, or `file.py#` for the imports.

    Raises:
        ConfigError: if it is not there.
    """
    file, _, name = place.partition("#")
    path = root / file
    if not path.is_file():
        raise ConfigError(f"a page shows the source of {file}, which does not exist")
    text = path.read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    found: list[ast.stmt] = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    for part in name.split(".") if name else []:
        known = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        if part not in known:
            raise ConfigError(f"a page shows {name} of {file}, which has no '{part}'{nearest(part, known)}")
        found, body = [known[part]], known[part].body
    return f"```python\n{_lines(text, found)}\n```"


def _loop(root: Path, place: str, *called: str) -> str:
    file, _, name = place.partition("#")
    return loop((root / file).read_text(encoding="utf-8"), name, called)


def results(root: Path, name: str, write: Callable[[Report, str | None], str] = tables) -> str:
    """Return the tables of a committed run, or a sentence that there is none."""
    path = root / "docs" / "results" / f"{name}.json"
    if not path.exists():
        return f"No run has been committed as `docs/results/{name}.json` yet."
    return write(_report(path), _hardware(path))


def batches(root: Path, name: str) -> str:
    """Return the table of batch sizes of a committed run, or a sentence that there is none."""
    return results(root, name, lambda report, _: batch_table(report))


def quality(path: Path) -> str:
    """Return the table of a measurement of quality, the command that made it, and the machine."""
    report = read_report(path.read_text(encoding="utf-8"))
    made, sheet = report.manifest, sheet_of(report)
    words = " ".join(Path(word).name if "/" in word else word for word in made.command[1:])
    facts = f"{sheet.title}. {described(made.hardware)}, commit {(made.commit or 'unknown')[:7]}."
    return f"```sh\noutrider {words}\n```\n\n{facts}\n\n{sheet.markdown}"


class _Seen(NamedTuple):
    drafts: str
    learns: str


@cache
def _observed(name: str) -> _Seen:
    """Run example instances of a method, and return what they draft and whether they learn."""
    target = tiny_target()
    records: list[StepRecord | PrefillRecord] = []
    learns: set[bool] = set()
    for seed in range(NUM_EXAMPLES):
        proposer = proposer_class(name).example(target, seed)
        learns.add(proposer.spec.learns)
        engine = Engine(target, proposer, record=records.append)
        engine.generate([PROMPT], SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True))
    drafted = [record for record in records if isinstance(record, StepRecord) and record.num_rows > 1]
    shapes = dict.fromkeys("chains" if step.is_chain else "trees" for step in drafted)
    answer = "by setting" if len(learns) > 1 else "yes" if True in learns else "no"
    return _Seen(" or ".join(sorted(shapes)) or "nothing", answer)


def _summary(name: str) -> str:
    """Return the first sentence of the docstring of the method's module, without sources in parentheses."""
    module = import_module(REGISTRY[name].partition(":")[0])
    first = " ".join((getdoc(module) or "").partition("\n\n")[0].split())
    return _cell(re.sub(r" \([^()]*\)(?=[.:]|$)", "", first))


def _annotation(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _help(name: str) -> str:
    printed = io.StringIO()
    plain = patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"})
    with plain, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command_line([name, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def _lines(text: str, nodes: list[ast.stmt]) -> str:
    lines = text.splitlines()
    first = min([node.lineno for node in nodes] + [one.lineno for node in nodes for one in _decorators(node)])
    last = max(node.end_lineno or node.lineno for node in nodes)
    return dedent("\n".join(lines[first - 1 : last]))


def _decorators(node: ast.stmt) -> list[ast.expr]:
    return node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []


def _committed_runs(root: Path) -> list[Path]:
    return [path for path in sorted((root / "docs" / "results").glob(f"*{RUN}")) if not path.name.endswith(MANIFEST)]


def _report(path: Path) -> Report:
    return from_json(path.read_text(encoding="utf-8"))


def _hardware(path: Path) -> str | None:
    manifest = path.with_suffix(MANIFEST)
    return described(manifest_from_json(manifest.read_text(encoding="utf-8")).hardware) if manifest.exists() else None


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
