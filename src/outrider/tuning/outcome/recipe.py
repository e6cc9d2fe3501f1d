"""The result as a file: a preset for `outrider bench`, with the other ways to run it as comments.

    outrider bench --preset recipe.toml      measures the choice again, on the same prompts

Example: `write_recipe(report, config, directory, ("ngram:num_nodes=3",))` writes `directory/recipe.toml`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outrider.records.files import write_text
from outrider.results.rows import PLAIN
from outrider.tuning.config import TuneConfig
from outrider.tuning.outcome.deploy import python_lines
from outrider.tuning.outcome.report import TuneReport
from outrider.tuning.prices.predict import Pick
from outrider.tuning.prompts import MOST_NEW_TOKENS
from outrider.tuning.replays.kept import PROMPTS

__all__ = ["write_recipe"]

RECIPE = "recipe.toml"


def write_recipe(report: TuneReport, config: TuneConfig, directory: Path, verified: Sequence[str]) -> Path:
    """Write the recipe, and return its path.

    Args:
        verified: methods that were measured; they are named in a comment.

    Raises:
        RunError: if it cannot be written.
    """
    path = (config.output or directory / RECIPE).absolute()
    choice = Pick(report.method, report.budget)
    settings: dict[str, Any] = {
        "title": report.sentence,
        "target": config.target,
        "dtype": config.dtype,
        "weights": config.weights,
        "kv_dtype": config.kv_dtype,
        "methods": [PLAIN] if choice.text == PLAIN else [PLAIN, choice.text],
        "budgets": [choice.budget],
        "categories": [],
        "prompts": [str(directory / PROMPTS)],
        "all_prompts": True,
        "pooled": len(report.concurrency) > 1 or max(report.concurrency) > 1,
        "max_new_tokens": MOST_NEW_TOKENS if config.max_new_tokens is None else config.max_new_tokens,
        "batches": list(report.concurrency),
        "temperatures": [config.temperature],
        "seed": config.seed,
    }
    if config.endpoints:
        settings |= {"methods": [PLAIN], "engines": [], "endpoints": list(config.endpoints)}
    lines_of_python = (
        [] if config.endpoints else ["As Python:", *(f"    {line}" for line in python_lines(config, choice))]
    )
    comments = [
        "Written by `outrider tune`. Measure it again: outrider bench --preset " + str(path),
        *report.deploy,
        *lines_of_python,
        *([f"Measured: {', '.join(dict.fromkeys(verified))}"] if verified else []),
    ]
    lines = [f"# {line}".rstrip() for line in comments]
    lines += [f"{name} = {_toml(value)}" for name, value in settings.items()]
    write_text(path, "\n".join(lines) + "\n", "free space or give another --output")
    return path


def _toml(value: Any) -> str:
    """Return a value in TOML, whose texts, numbers and lists are those of JSON."""
    return json.dumps(value, ensure_ascii=True)
