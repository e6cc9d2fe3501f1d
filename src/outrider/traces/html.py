"""Traces as HTML: the ribbon of the served page, in one piece that a report, a file or a notebook holds.

    fragment(traces)    style, data, the first answer as plain markup, and the script that brings it to life
    page(traces)        the same as a file of its own
    Ribbon(traces)      the same as the value of a notebook's cell

The fragment needs no network and no `eval`; its style applies within it alone. It follows `color-scheme` of what is
around it. Prompts, model output and names are untrusted: data is JSON in which no character can end its block, markup
is escaped, and characters that act on a line are shown as escapes. A page with a content security policy allows
`script_hash()` and `style_hash()`.

Example: `fragment([record_trace(engine, "Why?")])` in an e-mail shows text; in a browser, also each step's card.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from outrider.records.codec import to_plain
from outrider.records.display import visible
from outrider.traces.trace import StepTrace, Trace

__all__ = ["Ribbon", "fragment", "page", "script_hash", "style_hash"]

PLAIN: Final = "none"
MOST_BYTES: Final = 2_000_000
SCRIPTS: Final = ("dom", "steps", "strip", "card", "ribbon", "shelf")
"""Modules of the component, each after those that it imports."""
START: Final = 'for (const shelf of document.querySelectorAll("ribbon-shelf")) shelf.start();'
MODULE_LINE = re.compile(r"^(?:import .*;|\s*//.*)$", re.MULTILINE)
BASE: Final = """color: var(--ink);
*, *::before, *::after { box-sizing: border-box; }
"""
NOTEBOOKS: Final = """
[data-jp-theme-light="true"] .outrider-ribbons, .vscode-light .outrider-ribbons { color-scheme: light; }
[data-jp-theme-light="false"] .outrider-ribbons, .vscode-dark .outrider-ribbons { color-scheme: dark; }
"""
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
PAGE_STYLE: Final = (
    ":root { color-scheme: light dark; background: light-dark(#fbfaf7, #15171a); color: light-dark(#1b1d20, #e8e6e1); }"
    "body { max-width: 78rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }"
    "h1 { font-size: 1.25rem; overflow-wrap: anywhere; }"
)


@dataclass(frozen=True)
class Ribbon:
    """Traces that a notebook shows as a fragment."""

    traces: Sequence[Trace]
    note: str = ""

    def _repr_html_(self) -> str:
        return fragment(self.traces, self.note)


def fragment(traces: Sequence[Trace], note: str = "", most_bytes: int = MOST_BYTES) -> str:
    """Return HTML that shows traces, one at a time: prompt by prompt, and plain decoding behind what drafts.

    Args:
        note: a sentence below them, such as how they were recorded.
        most_bytes: limit of the data; traces beyond it are left out, and a sentence says how many.
    """
    traces = _in_order(traces)
    data, num_kept = _data(traces, most_bytes)
    left_out = len(traces) - num_kept
    notes = [note] if note else []
    notes += [f"{left_out} of {len(traces)} traces are left out, to keep this page small."] if left_out else []
    lines = (f'<p class="hint">{_text(line)}</p>' for line in notes)
    return "\n".join(
        (
            '<section class="outrider-ribbons">',
            f"<style>{_style()}</style>",
            "<ribbon-shelf>",
            f'<script type="application/json">{data}</script>',
            *map(_markup, traces[:1]),
            "</ribbon-shelf>",
            *lines,
            f"<script>{_script()}</script>",
            "</section>",
        )
    )


def page(traces: Sequence[Trace], title: str, note: str = "") -> str:
    """Return a whole HTML file that shows traces."""
    styles = f"{style_hash()} {_hash(PAGE_STYLE)}"
    policy = f"default-src 'none'; script-src {script_hash()}; style-src {styles}; base-uri 'none'; form-action 'none'"
    return PAGE.format(policy=policy, title=_text(title), style=PAGE_STYLE, body=fragment(traces, note))


def script_hash() -> str:
    """Return the source of the fragment's script for a content security policy."""
    return _hash(_script())


def style_hash() -> str:
    """Return the source of the fragment's style for a content security policy."""
    return _hash(_style())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@lru_cache(1)
def _script() -> str:
    """Return the modules of the component as one script; a page that holds it already ignores it."""
    code = "\n".join(MODULE_LINE.sub("", _asset(f"{name}.js")).replace("\nexport ", "\n") for name in SCRIPTS)
    lines = "\n".join(line for line in code.splitlines() if line.strip())
    return f'"use strict"; if (!customElements.get("ribbon-shelf")) {{\n{lines}\n}}{START}'


@lru_cache(1)
def _style() -> str:
    """Return the component's style, nested so that it applies within the fragment alone."""
    return f".outrider-ribbons {{\n{_asset('ribbon.css').replace(':root {', '& {')}\n{BASE}}}{NOTEBOOKS}"


def _asset(name: str) -> str:
    return (resources.files("outrider.traces") / "ribbon" / name).read_text(encoding="utf-8")


def _data(traces: Sequence[Trace], most_bytes: int) -> tuple[str, int]:
    """Return as many traces as fit, as JSON for a script block, and their number."""
    plain_ms = {_place(trace): _ms_per_token(trace) for trace in traces if trace.method == PLAIN}
    found: list[str] = []
    for trace in traces:
        text = _inert(to_plain(_shown(trace, plain_ms.get(_place(trace)))))
        most_bytes -= len(text)
        if most_bytes < 0 and found:
            break
        found.append(text)
    return f"[{','.join(found)}]", len(found)


def _in_order(traces: Sequence[Trace]) -> list[Trace]:
    """Return traces by prompt, in the order in which prompts came; what is left out at the end are whole prompts."""
    places = {place: number for number, place in enumerate(dict.fromkeys(map(_place, traces)))}
    return sorted(traces, key=lambda trace: (places[_place(trace)], trace.method == PLAIN))


def _place(trace: Trace) -> tuple[object, ...]:
    """Return the fields that are equal for the answers of several methods to one prompt."""
    return (trace.target, trace.category, trace.prompt_id, trace.prompt, trace.temperature)


def _ms_per_token(trace: Trace) -> float | None:
    return trace.total_ms / len(trace.tokens) if trace.tokens else None


def _shown(trace: Trace, plain_ms: float | None) -> Mapping[str, Any]:
    """Return what the component reads of a trace."""
    return {
        "target": trace.target,
        "method": trace.method,
        "category": trace.category,
        "prompt_id": trace.prompt_id,
        "prompt": trace.prompt,
        "temperature": trace.temperature,
        "plain_ms": plain_ms,
        "steps": [_shown_step(step) for step in trace.steps],
    }


def _shown_step(step: StepTrace) -> Mapping[str, Any]:
    """Return a step without what no card shows: token ids, and choices but for those of the last token."""
    tokens: list[dict[str, Any]] = [{"text": token.text, "by": token.by} for token in step.tokens]
    if step.tokens:
        tokens[-1] |= {"prob": step.tokens[-1].prob, "top": step.tokens[-1].top}
    draft = step.draft
    tree: dict[str, Any] = {
        "texts": draft.texts,
        "parents": draft.parents,
        "accepted": draft.accepted,
        "probs": draft.probs,
    }
    tree |= {"part": draft.part} if draft.part else {}
    return {"tokens": tokens, "ms": step.ms} | ({"draft": tree} if draft.texts else {})


def _inert(value: object) -> str:
    """Return JSON of ASCII alone, without a character that HTML reads: nothing in it can end a script block."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _markup(trace: Trace) -> str:
    """Return an answer as plain markup: what a reader without scripts sees."""
    named = _text(" \u00b7 ".join(part for part in (trace.category, trace.method) if part))
    said = f'<p class="shelf-said" dir="auto">{_text(trace.prompt)}</p>' if trace.prompt else ""
    steps = "".join(f'<span class="step">{"".join(_tokens(step))}</span>' for step in trace.steps)
    hint = f'<p class="hint">{named}; accepted drafts are marked</p>'
    return f'{hint}{said}<div class="ribbon-text" dir="auto">{steps}</div>'


def _tokens(step: StepTrace) -> Iterator[str]:
    for place, token in enumerate(step.tokens):
        tag = "mark" if token.by in ("draft", "forced") else "span"
        first = " first" if place == 0 else ""
        yield f'<{tag} class="token {token.by}{first}">{_text(token.text)}</{tag}>'


def _text(text: str) -> str:
    return html.escape(visible(text))
