"""`outrider bench`: measure methods against plain decoding.

Its options are the fields of `BenchConfig`, each None unless given, so that a preset's value stays. The class is built
when the command is asked for.
"""

import ast
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

if TYPE_CHECKING:
    from outrider.bench.config import BenchConfig

__all__ = ["Bench", "with_settings"]

HIDDEN = ("title", "all_prompts", "queue", "pooled", "optional")
"""Settings of presets alone."""
SINGULAR = {"budgets": "budget", "engines": "engine", "endpoints": "endpoint"}
FLAGS = ("trust_remote_code",)
"""Options without a value."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure methods against plain decoding, side by side on the same prompts.

    Options that are not given come from the preset; a list option without a value is empty. Give the same command again
    to resume an interrupted run; nothing is measured twice. Tables go to standard output, followed by the best method
    for each batch, the command that runs it and the report's place, and by one line of JSON unless that is a terminal.
    All records are kept in the run's directory.
    """

    preset: str = "quick"
    """A TOML file, or one of ours in recipes/: quick is a slice of a few minutes, full is everything."""
    run_dir: Path | None = None
    """Directory for records and results; by default the unfinished run with these settings, or a new one, in runs/."""
    resume: bool = True
    """Without --run-dir: continue an unfinished run with the same settings."""

    def run(self) -> None:
        from outrider.bench.benchmark import benchmark
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.results.rows import to_json
        from outrider.results.tables.table import print_report

        config = self.config()
        directory: list[Path] = []

        def place() -> str:
            return f"; finished units are in {directory[0]}, and the same command goes on there" if directory else ""

        with resumable(place), progress() as bar:
            report = benchmark(
                config,
                self.run_dir,
                name=Path(self.preset).stem,
                resume=self.resume,
                started=directory.append,
                listen=lambda at: bar.show(*at),
            )
        print_report(report, console(sys.stdout))
        end_with(to_json(report), "")

    def config(self) -> "BenchConfig":
        """Return the settings of the run."""
        from outrider.bench.preset import chosen

        own = {field.name for field in fields(Bench)}
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}
        given |= {name: given[name] or None for name in FLAGS}
        if given["endpoints"] and given["engines"] is None:
            given["engines"] = ()
        return chosen(self.preset, given)


def with_settings(_words: Sequence[str] = ()) -> Any:
    """Return `Bench` with the settings of a run as options; imports them."""
    from outrider.bench.config import BenchConfig

    kinds, help = get_type_hints(BenchConfig), _attribute_docs(BenchConfig)
    options: list[tuple[str, Any, Any]] = []
    for name in (field.name for field in fields(BenchConfig) if field.name not in HIDDEN):
        said = tyro.conf.arg(name=SINGULAR.get(name), help=help[name])
        is_flag = name in FLAGS
        options.append((name, Annotated[bool if is_flag else kinds[name] | None, said], False if is_flag else None))
    command = make_dataclass("Bench", options, bases=(Bench,), frozen=True, kw_only=True)
    command.__doc__ = Bench.__doc__
    return command


def _attribute_docs(config: type) -> Mapping[str, str]:
    """Return the docstring below each field of a class, on one line."""
    [body] = ast.parse(inspect.getsource(config)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
