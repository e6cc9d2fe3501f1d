"""A run whose every name tries to become markup, and the directory that holds it."""

from dataclasses import replace
from pathlib import Path

from outrider.records.provenance import Manifest, collect_manifest, manifest_to_json
from outrider.results.rows import Report, to_json
from outrider.traces.trace import DraftTrace, StepTrace, TokenTrace, Trace

ATTACK = (
    "</script></style></title><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
)
ATTACKS = (ATTACK, "' onmouseover='document.title=1' x='", "{{ 7 * 7 }}", "\x1b[2J\u202eabc\x00", "]]>&lt;b&gt;<!--")


def hostile(report: Report) -> Report:
    """The same run with attacks as names of target, methods, categories, engines and in notes."""
    rows = tuple(
        replace(
            row,
            category=row.category if row.category == "all" else f"{row.category} {ATTACKS[place % len(ATTACKS)]}",
            method=row.method if row.method == "none" else f"{row.method} {ATTACKS[(place + 1) % len(ATTACKS)]}",
            engine=row.engine if row.engine == "outrider" else f"{row.engine} {ATTACK}",
        )
        for place, row in enumerate(report.rows)
    )
    return replace(report, target=ATTACK, device=ATTACK, rows=rows, notes=ATTACKS, closing=(ATTACK, f"  {ATTACK}"))


def hostile_manifest() -> Manifest:
    manifest = collect_manifest(seed=0, settings={ATTACK: ATTACK, "list": [ATTACK]}, workload_hash=ATTACK)
    return replace(
        manifest, hardware=replace(manifest.hardware, cpu=ATTACK), command=ATTACKS, versions={ATTACK: ATTACK}
    )


def write_run(directory: Path, report: Report, manifest: Manifest | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "report.json").write_text(to_json(report), encoding="utf-8")
    if manifest is not None:
        (directory / "manifest.json").write_text(manifest_to_json(manifest), encoding="utf-8")
    return directory


def trace() -> Trace:
    """One step with two tokens, both of which attack."""
    tokens = tuple(
        TokenTrace(id=place, text=ATTACK, by=by, prob=0.5, top=()) for place, by in enumerate(("draft", "bonus"))
    )
    draft = DraftTrace(ids=(0, 7), texts=(ATTACK, ATTACK), parents=(-1, -1), accepted=(0,), probs=(0.5, None))
    spent = {"propose": 1.0, "verify": 2.0, "accept": 0.1, "commit": 0.1, "host": 0.1, "total": 3.3}
    step = StepTrace(step=0, tokens=tokens, draft=draft, ms=spent)
    return Trace(target=ATTACK, method=ATTACK, category=ATTACK, prompt=ATTACK, steps=(step,))
