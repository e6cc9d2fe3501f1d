"""The section on provenance: everything that could change the numbers, and the run's own notes.

Example: its table has lines such as "Processor: AMD EPYC, 2 cores" and "Commit: 5a8549a73d, with local changes".
"""

from collections.abc import Iterator, Mapping
from typing import Any

from outrider.records.display import shown_json
from outrider.records.files import size
from outrider.records.provenance import Manifest
from outrider.report.parts import Cell, Head, Section, Table
from outrider.report.sources import Source

__all__ = ["origin"]

Facts = Iterator[tuple[str, str]]


def origin(source: Source) -> Section:
    """Return where the numbers come from."""
    heads = (Head("Fact", False), Head("Value", False))
    facts = (*_run(source), *(_machine(source.manifest) if source.manifest else ()))
    tables = [Table("This run", heads, tuple((Cell(name), Cell(value)) for name, value in facts))]
    says = []
    if source.manifest is None:
        says.append("No manifest lies beside this report, so the machine and the versions are not known.")
    else:
        settings = tuple((Cell(name), Cell(value)) for name, value in _settings(source.manifest.settings))
        tables.append(Table("Settings", heads, settings, is_folded=True))
    notes = source.bench.notes if source.bench else source.tune.notes if source.tune else ()
    closing = source.bench.closing if source.bench else source.tune.deploy if source.tune else ()
    return Section(
        "origin", "Provenance", says=tuple(says), notes=tuple(notes), tables=tuple(tables), items=tuple(closing)
    )


def _run(source: Source) -> Facts:
    yield "Run", str(source.path)
    bench = source.bench
    if bench is not None:
        yield "Target", bench.model
        yield "Device", bench.device
        yield "Commit", _commit(bench.commit, bench.dirty)
        if bench.startup_s is not None:
            yield "Start-up", f"{bench.startup_s:.1f} s, in no figure"
        for name, share in (bench.overlap or {}).items():
            yield f"Prompts seen in training, {name}", f"{share:.1%}".replace("%", " %")
    elif source.tune is not None:
        yield "Target", source.tune.target
        yield "Machine", source.tune.machine
    elif source.quality is not None:
        yield "Target", source.quality.reference.name


def _machine(made: Manifest) -> Facts:
    hardware = made.hardware
    yield "Started", made.started
    yield "Commit of the code", _commit(made.commit, made.dirty)
    yield "Processor", f"{hardware.cpu}, {hardware.num_usable_cores} cores; {', '.join(hardware.flags) or 'no flags'}"
    yield "Memory", size(hardware.memory_bytes)
    if hardware.gpus:
        memory = ", ".join(map(size, hardware.gpu_memory_bytes))
        yield "GPUs", f"{', '.join(hardware.gpus)} ({memory}), CUDA {hardware.cuda}"
    yield "System", hardware.system
    yield "Versions", _pairs(made.versions)
    yield "Threads", _pairs(made.threads)
    yield "Seed", str(made.seed)
    yield "SHA-256 of the prompts", made.workload_hash or "unknown"
    yield "SHA-256 of the chat template", made.template_hash or "none"
    yield "Command", " ".join(made.command)


def _settings(settings: Mapping[str, Any]) -> Facts:
    for name, value in settings.items():
        yield name, value if isinstance(value, str) else shown_json(value, 400)


def _commit(commit: str | None, dirty: bool | None) -> str:
    return "unknown" if commit is None else f"{commit}{', with local changes' if dirty else ''}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
