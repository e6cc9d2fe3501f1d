"""Check a finished tuning run against an exhaustive benchmark of its candidates on its own prompts.

    python benchmarks/tune_check.py runs/X-tune [--most 12] [--repeats 1] [--run-dir runs/check]

Measured are the `--most` settings with the best predictions (0: all of them), those that tuning verified, and its
choice, each under both budgets, at every number of requests. Printed are

    score      geometric mean of the speedups over the numbers of requests
    predicted  what tuning predicted, and its error
    choice     score of tuning's choice over the best score: 0.97 or more is a good choice
    worst      the lowest speedup of the choice's setting with the adaptive budget: 0.97 or more loses nowhere

Give the same command again to resume. The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from outrider.bench.benchmark import benchmark
from outrider.bench.config import BenchConfig
from outrider.bench.preset import read_preset
from outrider.records.presets import read_record
from outrider.results.rows import PLAIN, Row
from outrider.tuning.outcome.decide import overall
from outrider.tuning.prices.predict import Pick, score_of


def config_of(found: Mapping[str, Any], most: int, repeats: int) -> BenchConfig:
    """Return the settings of the exhaustive run."""
    ranked = list(dict.fromkeys(one["method"] for one in found["forecasts"]))
    verified = [one["method"] for one in found["checks"]]
    chosen = [] if found["method"] == PLAIN else [found["method"]]
    methods = dict.fromkeys((*chosen, *verified, *ranked[: most or len(ranked)]))
    preset = read_preset(found["recipe"]) | {
        "title": "every candidate of a tuning run",
        "methods": list(methods),
        "budgets": ["fixed", "auto"],
        "pooled": True,
        "repeats": repeats,
    }
    return read_record(BenchConfig, preset, found["recipe"])


def measured(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return the speedups by label and number of requests."""
    speedups: dict[str, dict[int, float]] = {}
    for row in overall(rows):
        if row.method != PLAIN and row.speedup is not None:
            speedups.setdefault(row.method, {})[row.batch] = row.speedup.point
    return speedups


def compared(found: Mapping[str, Any], speedups: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return the comparison."""
    scores = {label: score_of(points) for label, points in speedups.items()} | {PLAIN: 1.0}
    errors = {}
    for one in found["forecasts"]:
        label = Pick(one["method"], one["budget"]).label
        for batch, predicted in zip(found["concurrency"], one["speedups"], strict=True):
            if batch in speedups.get(label, {}):
                errors[label, batch] = predicted / speedups[label][batch] - 1
    choice = Pick(found["method"], found["budget"]).label
    best = max(scores, key=scores.__getitem__)
    absolute = {key: abs(error) for key, error in errors.items()}
    fixed = [error for (label, _), error in absolute.items() if not label.endswith(" auto")]
    adaptive = [error for (label, _), error in absolute.items() if label.endswith(" auto")]
    return {
        "schema": "outrider.tune-check/1",
        "choice": choice,
        "choice_score": scores[choice],
        "best": best,
        "best_score": scores[best],
        "share_of_best": scores[choice] / scores[best],
        "worst_with_budget": min(speedups.get(f"{found['method']} auto", {0: 1.0}).values()),
        "median_error_fixed": median(fixed) if fixed else None,
        "median_error_auto": median(adaptive) if adaptive else None,
        "median_error_verified": found["median_error"],
        "scores": dict(sorted(scores.items(), key=lambda item: -item[1])),
        "speedups": {label: dict(points) for label, points in speedups.items()},
        "errors": {f"{label} at {batch}": error for (label, batch), error in errors.items()},
    }


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished tuning run")
    parser.add_argument("--most", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--run-dir", type=Path)
    given = parser.parse_args()
    found = json.loads((given.run / "report.json").read_text(encoding="utf-8"))
    config = config_of(found, given.most, given.repeats)
    report = benchmark(
        config,
        given.run_dir,
        name="tune-check",
        listen=lambda at: print(f"\r{at.done:.0f}/{at.total or 0:.0f} {at.words:.90}\x1b[K", end="", flush=True),
    )
    result = compared(found, measured(report.rows))
    print(f"\r\x1b[K{'score':>7}  {'speedups':<28} candidate")
    for label, score in result["scores"].items():
        points = ", ".join(f"{point:.2f} at {batch}" for batch, point in result["speedups"].get(label, {}).items())
        print(f"{score:7.3f}  {points:<28} {label}{' <- tuned' if label == result['choice'] else ''}")
    print(
        f"the choice reaches {100 * result['share_of_best']:.1f} % of the best score; "
        f"with the adaptive budget its lowest speedup is {result['worst_with_budget']:.2f}"
    )
    if result["median_error_fixed"] is not None:
        print(f"predictions of fixed budgets were off by {100 * result['median_error_fixed']:.1f} % (median)")
    if result["median_error_auto"] is not None:
        print(f"predictions of the adaptive budget were off by {100 * result['median_error_auto']:.1f} % (median)")
    print(json.dumps({**result, "run": report.run}, allow_nan=False))


if __name__ == "__main__":
    main()
