"""Runs on disk, as a report takes them: directories of benchmarks and of tuning, filed results, records of quality.

A directory is known by the schema of its `report.json`. A file is a report by itself, with its manifest beside it as
`manifest.json` or `NAME.manifest.json`; one of `outrider quality` is a line of JSON. Everything is untrusted: damage is
one sentence with a remedy.

Example: `read_source(Path("docs/results/full.json")).bench.target` is "smollm2-135m".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrider.errors import RunError, on_one_line
from outrider.planning.run import read_run
from outrider.quality.report import SCHEMA as QUALITY_SCHEMA
from outrider.quality.report import Report as QualityReport
from outrider.quality.report import read_report
from outrider.records.codec import loads, parsed
from outrider.records.provenance import Manifest, manifest_from_json
from outrider.results.kept import read_traces
from outrider.results.rows import SCHEMA as BENCH_SCHEMA
from outrider.results.rows import Report
from outrider.results.store import MANIFEST, REPORT, TRACES
from outrider.results.unit import UnitResult
from outrider.traces.trace import Trace
from outrider.tuning.outcome.report import TUNE_SCHEMA, TuneReport

__all__ = ["Source", "read_source"]

REMEDY: Final = "give the directory of a finished run of outrider bench or outrider tune, or its report.json"
MOST_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One run; exactly one of `bench`, `tune` and `quality` is there.

    name    last part of its path
    units   units of a benchmark, where they were kept
    traces  answers of a benchmark that were recorded step by step
    """

    name: str
    path: Path
    bench: Report | None = None
    tune: TuneReport | None = None
    quality: QualityReport | None = None
    manifest: Manifest | None = None
    units: tuple[UnitResult, ...] = ()
    traces: tuple[Trace, ...] = ()


def read_source(path: Path) -> Source:
    """Read a run.

    Raises:
        RunError: if there is no finished run, or a file is damaged.
    """
    is_directory = path.is_dir()
    file = path / REPORT if is_directory else path
    if is_directory and not file.exists() and (path / MANIFEST).exists():
        raise RunError(f"{path} holds a run that is not finished; run the same command again, then report it")
    text = _read(file)
    plain = parsed(text, str(file))
    schema = plain.get("schema") if isinstance(plain, dict) else None
    schema = schema if isinstance(schema, str) else ""
    name = path.resolve().name or str(path)
    if schema == BENCH_SCHEMA or schema.startswith(f"{BENCH_SCHEMA}."):
        evidence = read_run(path)
        return Source(
            name=name,
            path=path,
            bench=evidence.report,
            units=evidence.units,
            traces=tuple(read_traces(path / TRACES).values()) if is_directory else (),
            manifest=_manifest_beside(file),
        )
    try:
        if schema == TUNE_SCHEMA:
            return Source(name=name, path=path, tune=loads(TuneReport, text), manifest=_manifest_beside(file))
        if schema == QUALITY_SCHEMA:
            found = read_report(text)
            return Source(name=name, path=path, quality=found, manifest=found.manifest)
    except RunError as error:
        raise RunError(f"{file} cannot be read ({on_one_line(str(error))}); {REMEDY}") from error
    known = f"its schema is '{on_one_line(schema, 60)}'" if schema else "it names no schema"
    raise RunError(f"{file} is no result of Outrider: {known}; {REMEDY}")


def _manifest_beside(report: Path) -> Manifest | None:
    """Return the manifest of a report; None if there is none."""
    places = (report.with_suffix(f".{MANIFEST}"), report.with_name(MANIFEST))
    for path in places:
        if path.exists():
            try:
                return manifest_from_json(_read(path))
            except RunError as error:
                raise RunError(
                    f"{path} cannot be read ({on_one_line(str(error))}); move it away to report the run without it"
                ) from error
    return None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path} has more than {MOST_BYTES} bytes; {REMEDY}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({on_one_line(str(error))}); {REMEDY}") from error
