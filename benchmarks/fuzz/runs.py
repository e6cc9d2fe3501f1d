"""Damaged run directories, reports and profiles: what a run left is edited, then resumed, checked or planned with.

A refusal that names a line is followed as it says, some times; the run must then go on to its end.
"""

import json
import random
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.fuzz.checkpoints import intact
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_text

from outrider.bench import benchmark as bench
from outrider.bench.config import BenchConfig
from outrider.costs.grid import Grid
from outrider.costs.identity import Identity
from outrider.costs.tables import CostFile, MeasuredCosts, MeasuredDraftCosts
from outrider.errors import RunError
from outrider.planning.config import PlanRequest
from outrider.planning.planner import checked, planned
from outrider.report.page import write_page
from outrider.report.sources import read_source
from outrider.results.rows import Report

FILES = ("units.jsonl",) * 4 + ("verdicts.jsonl",) * 3 + ("manifest.json", "report.json")
LINE = re.compile(r"^(\S+), line (\d+)\b.*; delete the line and run the same command again$")
MOST_FOLLOWED = 60


class Finished(NamedTuple):
    """A finished run, what it was asked for, and a profile to plan with."""

    config: BenchConfig
    directory: Path
    costs: Path
    report: Report


@cache
def finished() -> Finished:
    """Return a run of a tiny model; made once in a process."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-run-"))
    lines = [{"id": "a", "turns": ["ab ab ab", "go on"]}, {"id": "b", "turns": ["xy xy"]}]
    (scratch / "alpha.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = BenchConfig(
        target=str(intact()),
        dtype="float32",
        methods=("draft_model:layers=0,num_nodes=2",),
        categories=(),
        prompts=(str(scratch / "alpha.jsonl"),),
        max_new_tokens=4,
        repeats=1,
        batches=(1, 2),
    )
    report = _resumed(config, scratch / "run")
    _costs(scratch / "costs.json")
    return Finished(config, scratch / "run", scratch / "costs.json", report)


def _resumed(config: BenchConfig, directory: Path) -> Report:
    with patch.object(bench, "memory_bytes_per_s", lambda device: 1e9):
        return bench.benchmark(config, directory)


def _costs(path: Path) -> None:
    slots, rows = (1.0, 4.0), (1.0, 8.0)
    judged = {"slots": slots, "rows_per_slot": rows}
    target = MeasuredCosts(
        forward=Grid({**judged, "contexts": (1.0, 100.0)}, [[[9e-3 + b * r * 1e-3] * 2 for r in rows] for b in slots]),
        accept_greedy=Grid(judged, [[0.0, 0.0], [0.0, 0.0]]),
        accept_sampled=Grid(judged, [[1e-3, 1e-3], [1e-3, 1e-3]]),
        rest=Grid({"slots": slots}, [0.0, 0.0]),
    )
    drafts = Grid({"slots": slots, "nodes_per_slot": (0.0, 8.0)}, [[0.0, b * 4e-3] for b in slots])
    facts: dict[str, Any] = {
        name: 1 if kind in (int, "int") else "x" for name, kind in Identity.__annotations__.items()
    }
    file = CostFile(
        identity=Identity(**facts),
        target=target,
        drafts={"draft_model": MeasuredDraftCosts(propose=drafts)},
        facts={"spread": 0.02, "repeats": 3},
    )
    file.write(path)


def bench_run(rng: random.Random, directory: Path) -> None:
    """Damage a run's directory, then resume it."""
    run = finished()
    copy = directory / "run"
    shutil.copytree(run.directory, copy)
    if rng.random() < 0.7:
        (copy / "report.json").unlink()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage(copy, rng)
    for _ in range(MOST_FOLLOWED):
        try:
            report = _resumed(run.config, copy)
        except RunError as error:
            found = LINE.match(str(error))
            if found is None:
                raise
            delete_line(Path(found[1]), int(found[2]))
        else:
            break
    else:
        raise AssertionError("a remedy that was followed did not help")
    assert _figures(report) == _figures(run.report)
    assert all(row.lossless.verdict == "exact" for row in report.rows)
    assert _figures(_resumed(run.config, copy)) == _figures(report), "a second look at the same files"


def _figures(report: Report) -> list[tuple[object, ...]]:
    """Return the figures that do not depend on time."""
    return sorted((row.method, row.batch, row.num_tokens, row.num_prompts, row.tau) for row in report.rows)


def profile(rng: random.Random, directory: Path) -> None:
    """Damage a profile, or a run that is planned with or checked."""
    run = finished()
    copy, costs = directory / "run", directory / "costs.json"
    shutil.copytree(run.directory, copy)
    shutil.copy(run.costs, costs)
    damaged = costs if rng.random() < 0.6 else copy / rng.choice(("report.json", "units.jsonl"))
    if damaged.suffix == ".jsonl":
        damage_lines(damaged, rng)
    else:
        damaged.write_bytes(json_text(mutate_json(json.loads(damaged.read_bytes()), rng), rng))
    if rng.random() < 0.5:
        outlook = checked(
            PlanRequest(costs=costs, batches=(1, 8)), copy if rng.random() < 0.8 else copy / "report.json"
        )
    else:
        outlook = planned(
            PlanRequest(costs=costs, run=copy, category="alpha", methods=("draft_model",), nodes=("0..4",))
        )
    assert outlook.target


def report(rng: random.Random, directory: Path) -> None:
    """Damage a run's directory, then write the page about it, beside a whole run or alone."""
    run = finished()
    copy = directory / "run"
    shutil.copytree(run.directory, copy)
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice([one for one in sorted(copy.iterdir()) if one.is_file() and not one.name.startswith(".")])
        if path.suffix == ".jsonl" and rng.random() < 0.8:
            damage_lines(path, rng)
        elif path.suffix == ".json" and rng.random() < 0.7:
            path.write_bytes(json_text(mutate_json(_parsed(path.read_bytes()), rng), rng))
        else:
            path.write_bytes(rng.choice((mutate_text, mutate_bytes))(path.read_bytes(), rng))
    sources = [read_source(copy), *([read_source(run.directory)] if rng.random() < 0.3 else [])]
    page = directory / "page.html"
    write_page(sources, page)
    shown = page.read_text(encoding="utf-8")
    assert len(shown) < 5_000_000
    assert "\x1b" not in shown


def _damage(run: Path, rng: random.Random) -> None:
    path = run / rng.choice(FILES)
    if rng.random() < 0.08:
        path.unlink(missing_ok=True)
        if rng.random() < 0.4:
            path.mkdir()
        return
    if not path.is_file():
        return
    if path.suffix == ".jsonl" and rng.random() < 0.8:
        damage_lines(path, rng)
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(json_text(mutate_json(_parsed(path.read_bytes()), rng), rng))
    else:
        path.write_bytes(rng.choice((mutate_text, mutate_bytes))(path.read_bytes(), rng))


def damage_lines(path: Path, rng: random.Random) -> None:
    """Delete, repeat, cut, split, shuffle or change lines."""
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        return
    at = rng.randrange(len(lines))
    match rng.randrange(10):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        case 2:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        case 3:
            lines[at] = mutate_bytes(lines[at], rng).replace(b"\n", b" ")
        case 4:
            rng.shuffle(lines)
        case 5:
            cut = rng.randrange(len(lines[at]) + 1)
            lines[at : at + 1] = [lines[at][:cut], lines[at][cut:]]
        case _:
            lines[at] = json.dumps(mutate_json(_parsed(lines[at]), rng)).encode()
    end = rng.choice((b"\n", b"\n", b"\n", b"\r\n"))
    path.write_bytes(end.join(lines) + rng.choice((end, end, b"")))


def _parsed(data: bytes) -> Any:
    """Return a JSON value, or the text itself where an earlier damage has left none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")[:200]


def delete_line(path: Path, number: int) -> None:
    lines = path.read_bytes().split(b"\n")
    del lines[number - 1]
    path.write_bytes(b"\n".join(lines))
