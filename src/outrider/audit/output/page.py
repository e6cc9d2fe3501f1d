"""A page for people: an audit's report as one HTML file without scripts, that needs no network.

The verdict stands first, in a sentence; then every finding of every layer, the planted faults and whether each was
caught, what could have been missed, settings and provenance. Names and sentences may hold anything: they are escaped,
and characters that act on a line are shown as escapes. The page's own policy forbids whatever could still get through.

Example: `write_text(Path("audit.html"), audit_page(report))`.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from string import Template
from typing import Any, Final

from outrider.audit.report import AuditReport, Finding, Layer, Verdict
from outrider.records.display import visible_line

__all__ = ["audit_page"]

MEANINGS: Final[dict[Verdict, str]] = {
    "PASS": "No fault was found, and every planted fault that had an occasion was caught.",
    "FAIL": "Something is wrong that neither rounding nor chance explains.",
    "INCONCLUSIVE": "No fault was found, but it could have been missed.",
}
CAPTIONS: Final[dict[str, str]] = {
    "rule": "Acceptance rules, enumerated exactly on toy vocabularies",
    "contract": "The contract of each method, and of every draft on this target",
    "text": "Answers against plain decoding, token by token",
    "law": "Sampled answers against the target's law",
    "controls": "Faults that were planted on purpose, and whether each was caught",
    "server": "Answers of the server against plain decoding, character by character",
}
STYLE: Final = """
:root { color-scheme: light dark; background: light-dark(#fbfaf7, #15171a); color: light-dark(#1b1d20, #e8e6e1); }
body { max-width: 72rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
p, dd { overflow-wrap: anywhere; max-width: 60rem; }
.answer { font-size: 1.2rem; }
td, th { overflow-wrap: break-word; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
th { font-weight: 600; }
td:last-child { font-size: .85em; }
tr { border-bottom: 1px solid light-dark(#d8d4ca, #3a3d42); break-inside: avoid; }
.verdict { font-weight: 700; white-space: nowrap; }
.pass { color: light-dark(#1a6b34, #7ed491); }
.fail { color: light-dark(#a31621, #ff9a97); }
.inconclusive { color: light-dark(#7a5200, #f0c060); }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
@media screen and (max-width: 45rem) {
  thead { position: absolute; clip-path: inset(50%); }
  table, caption, tbody, tr, th, td { display: block; overflow-wrap: anywhere; }
  tr { padding: .4rem 0; }
  th, td { padding: 0; }
  tbody th, th + td { display: inline; margin-right: .5rem; }
  dl { display: block; }
  dd { margin-bottom: .4rem; }
}
@media print {
  :root { color-scheme: only light; background: none; }
  body { max-width: none; padding: 0; font-size: 9pt; }
  h1 { font-size: 14pt; }
  .answer { font-size: 11pt; }
  h2 { font-size: 11pt; margin-top: 1rem; break-after: avoid; }
}
"""
PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="answer">$verdict: $sentence.</p>
<p>$meaning</p>
<h2>What could have been missed</h2>
<p>$missed</p>
$layers
<h2>Settings</h2>
$settings
<h2>Provenance</h2>
$provenance
</main>
</body>
</html>
""")


def audit_page(report: AuditReport) -> str:
    """Return the report as a whole HTML file."""
    manifest, hardware = report.manifest, report.manifest.hardware
    provenance = {
        "started": manifest.started,
        "seconds": f"{report.seconds:.1f}",
        "command": " ".join(manifest.command),
        "commit": f"{manifest.commit or 'unknown'}{' (changed)' if manifest.dirty else ''}",
        "machine": f"{hardware.cpu}, {hardware.num_usable_cores} cores, {hardware.system}",
        "GPUs": ", ".join(hardware.gpus) or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "prompts (SHA-256)": manifest.workload_hash,
        "chat template (SHA-256)": manifest.template_hash or "none",
    }
    return PAGE.substitute(
        policy=f"default-src 'none'; style-src {_hash(STYLE)}; base-uri 'none'; form-action 'none'",
        style=STYLE,
        title=_text(f"Audit of {report.target}: {', '.join(report.methods)}"),
        verdict=_verdict(report.verdict),
        sentence=_text(report.sentence),
        meaning=_text(MEANINGS[report.verdict]),
        missed=_text(_missed(report)),
        layers="\n".join(map(_layer, report.layers)),
        settings=_list({name: _words(value) for name, value in manifest.settings.items()}),
        provenance=_list(provenance),
    )


def _missed(report: AuditReport) -> str:
    """Return which share of wrong tokens and which distance of laws would have been seen."""
    said = []
    if report.rate is not None:
        said.append(
            f"{report.num_compared} {report.unit} were compared ({report.num_ties} numerical ties, "
            f"{report.num_violations} violations). A fault that changes {report.rate:.2%} of the {report.unit} "
            f"(1 of {1 / report.rate:.0f}) or more would have been seen with a probability of 95 %; a rarer one may be "
            "there."
        )
    if report.distance is not None:
        said.append(
            "Laws were tested by samples. A fault that moves a share of "
            f"{report.distance:.2g} or more of the probability, from less to more probable tokens or back, or in the "
            "same way in a shuffled order, would have been seen with a probability of 95 %; a smaller one may be there."
        )
    return " ".join(said) or "No answers were compared as texts, so nothing can be said about rare faults."


def _layer(layer: Layer) -> str:
    caught = layer.name == "controls"
    head = ("Setting", "Caught" if caught else "Verdict", "Result", "Counts")
    rows = (
        (_text(one.name), _caught(one) if caught else _verdict(one.verdict), _text(one.detail), _text(_counts(one)))
        for one in layer.findings
    )
    caption = CAPTIONS[layer.name]
    table = f'<div class="wide" role="region" aria-label="{_text(caption)}" tabindex="0">{_table(caption, head, rows)}'
    return f"<h2>{_text(layer.name)}: {_verdict(layer.verdict)}</h2>\n<p>{_text(layer.sentence)}.</p>\n{table}</div>"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells of the rows are markup, the first of each is the row's header."""
    first = "".join(f'<th scope="col" role="columnheader">{_text(word)}</th>' for word in head)
    body = "\n".join(
        f'<tr role="row"><th scope="row" role="rowheader">{name}</th>'
        f"""{"".join(f'<td role="cell">{cell}</td>' for cell in cells)}</tr>"""
        for name, *cells in rows
    )
    return (  # roles: a narrow screen stacks the cells, and a table stays one for readers
        f'<table role="table">\n<caption>{_text(caption)}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{first}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody>\n</table>'
    )


def _list(pairs: dict[str, str]) -> str:
    return f"<dl>\n{''.join(f'<dt>{_text(name)}</dt><dd>{_text(said)}</dd>' for name, said in pairs.items())}\n</dl>"


def _verdict(verdict: Verdict) -> str:
    return f'<span class="verdict {verdict.lower()}">{verdict}</span>'


def _caught(finding: Finding) -> str:
    """Return whether a planted fault was caught, in words."""
    if finding.verdict != "PASS":
        return f'<span class="verdict {finding.verdict.lower()}">no</span>'
    return "no occasion" if finding.detail.startswith("no occasion") else '<span class="verdict pass">yes</span>'


def _counts(finding: Finding) -> str:
    """Return the counts that are not zero."""
    return ", ".join(
        f"{name.removeprefix('num_').removeprefix('is_').replace('_', ' ')} "
        f"{int(value) if float(value).is_integer() else format(value, '.3g')}"
        for name, value in finding.counts.items()
        if value
    )


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    return html.escape(visible_line(text))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
