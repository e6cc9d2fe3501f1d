"""A whole benchmark run: from settings to a report.

    plan     loads the target and everything that is to be measured, and refuses what cannot be run
    store    the run's directory, new or resumed
    runner   measures the units that are missing
    tracing  records a few answers step by step, behind the measurements
    report   derived from what is on disk

Example: `benchmark(BenchConfig(methods=("none",), categories=("chat",)), Path("runs/try"))`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from outrider.bench.closing import closing_lines
from outrider.bench.config import BenchConfig
from outrider.bench.plan import RunPlan
from outrider.bench.runner import BASELINE, Runner
from outrider.bench.tracing import record_traces
from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.records.progress import Listener, unheard
from outrider.results.derive import Machine, derive_rows
from outrider.results.equality.summary import equal_share
from outrider.results.rows import Report, to_json
from outrider.results.store import RunStore, choose_directory
from outrider.results.tables.table import markdown
from outrider.results.unit import UnitResult

__all__ = ["benchmark"]

RUNS = Path("runs")


def benchmark(
    config: BenchConfig,
    run_dir: Path | None = None,
    *,
    name: str = "bench",
    resume: bool = True,
    started: Callable[[Path], None] = lambda directory: None,
    listen: Listener = unheard,
) -> Report:
    """Measure, or finish measuring, and write the report.

    Args:
        run_dir: the run's directory; None takes the unfinished run with these settings under `runs/`, or a new one.
        name: part of a new directory's name.
        resume: True to take an unfinished run.
        started: called with the directory when the run begins.
        listen: called before each unit, and where loading the target takes long.

    Raises:
        OutriderError: for settings that cannot be run, and if the directory cannot be written or is another run's.
    """
    plan = RunPlan.of(config, listen)
    with RunStore(run_dir or choose_directory(RUNS, name, plan.manifest, resume), plan.manifest) as store:
        started(store.directory)
        runner = plan.runner(store, listen)
        runner.run()
        record_traces(plan, store, listen)
        report = _report(plan, runner)
        store.finish(to_json(report), markdown(report))
    return report


def _report(plan: RunPlan, runner: Runner) -> Report:
    store, spec = runner.store, plan.target.spec
    units, is_ours = list(store.units.values()), "outrider" in plan.config.engines
    machine = Machine(spec.weight_bytes, memory_bytes_per_s(spec.device), spec.bytes_read) if is_ours else None
    bandwidth = (
        "" if machine is None else f"memory reads at {machine.bytes_per_s / 1e9:.1f} GB/s here (a streaming sum)"
    )
    lost = (f"left out: {name.engine} {name.method}, for {reason}" for name, reason in runner.lost.items())
    report = Report(
        run=str(store.directory),
        target=spec.name,
        dtype=str(spec.dtype).removeprefix("torch."),
        weights=spec.weights if is_ours else "server",
        kv_dtype=spec.kv_dtype,
        device=str(spec.device) if is_ours else "server",
        commit=store.manifest.commit,
        dirty=store.manifest.dirty,
        startup_s=runner.start_up_s,
        notes=tuple(note for note in (*plan.notes.texts, *lost, bandwidth, *_equality_notes(units)) if note),
        overlap={label: float(found["share"]) for label, found in plan.contamination.items()} or None,
        rows=tuple(derive_rows(units, machine)),
    )
    return replace(report, closing=closing_lines(report, plan.methods))


def _equality_notes(units: Sequence[UnitResult]) -> list[str]:
    """Return how far the texts of external baselines agree with plain decoding's."""
    plain = {unit.pair_key: unit for unit in units if unit.engine == BASELINE.engine and unit.method == BASELINE.method}
    shares: dict[str, list[float]] = {}
    for unit in units:
        if unit.engine != BASELINE.engine and unit.pair_key in plain:
            pairs = zip(unit.answers, plain[unit.pair_key].answers, strict=False)
            shares.setdefault(f"{unit.engine} {unit.method}", []).extend(
                equal_share(theirs.tokens, ours.tokens) for theirs, ours in pairs
            )
    return [
        f"{name}: {sum(share == 1 for share in found)} of {len(found)} answers equal our plain decoding's; "
        f"on average the first {mean(found):.0%} of an answer are equal"
        for name, found in shares.items()
    ]
