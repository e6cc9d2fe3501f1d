"""The directory of a run: the one that is named, an unfinished one with the same settings, or a new one in `runs/`.

Example: `open_files(config, target, sample)` twice with the same settings is the same directory until the run is
finished.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from outrider.data.workloads import workload_hash
from outrider.records.provenance import collect_manifest, template_hash
from outrider.results.store import choose_directory
from outrider.target import Target
from outrider.tuning.config import TuneConfig
from outrider.tuning.prompts import Sample
from outrider.tuning.replays.kept import RunFiles

__all__ = ["open_files"]

RUNS: Final = Path("runs")
LEFT_OUT: Final = ("time", "output", "run_dir", "engine")
"""Settings that a run may be continued with other values of."""


def open_files(
    config: TuneConfig, target: Target, sample: Sample, started: Callable[[Path], None] = lambda directory: None
) -> RunFiles:
    """Return the files of a run.

    Args:
        started: called with the run's directory when it exists.

    Raises:
        RunError: if it cannot be written, or is another run's.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in LEFT_OUT}
    manifest = collect_manifest(
        seed=config.seed,
        settings=settings,
        workload_hash=workload_hash(sample.conversations),
        template_hash=template_hash(target.tokenizer),
    )
    files = RunFiles(config.run_dir or choose_directory(RUNS, "tune", manifest, resume=True), manifest)
    started(files.directory)
    return files
