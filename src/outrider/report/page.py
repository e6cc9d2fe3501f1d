"""The page of one or several runs: a single HTML file that loads nothing.

Jinja fills `page.html` and escapes everything that is no drawing of ours. Before that, control characters, characters
that reorder a line and lone surrogates become visible escapes. A content security policy allows the page's own styles
and scripts by their hash, and nothing else: no request leaves it, and text that came from a model could not run even if
it were taken for markup.

Example: `write_page([read_source(Path("runs/x"))], Path("runs/x/report.html"))`.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outrider.env import version
from outrider.errors import ConfigError
from outrider.records.display import visible_line
from outrider.records.files import write_text
from outrider.report.answer import answer_of, facts_of, other_answers
from outrider.report.contents import sections_of, shared_sections
from outrider.report.parts import Fragment, Section
from outrider.report.sources import Source
from outrider.results.figures.bars import NARROW, WIDE

__all__ = ["page_of", "write_page"]

FOLDER: Final = Path(__file__).parent
REMEDY: Final = "give another --output"


@dataclass(frozen=True, kw_only=True)
class _Run:
    key: str
    name: str
    answer: str
    others: list[str]
    facts: list[tuple[str, str]]
    sections: list[Section]


def write_page(sources: Sequence[Source], output: Path) -> None:
    """Write the page of these runs, atomically.

    Raises:
        ConfigError: if the drawing library is not installed.
        RunError: if the file cannot be written.
    """
    write_text(output, page_of(sources), REMEDY)


def page_of(sources: Sequence[Source]) -> str:
    """Return the HTML of these runs.

    Raises:
        ConfigError: if the drawing library is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("a report needs Jinja2; run: pip install 'outrider[report]'") from error
    from markupsafe import Markup

    runs = [
        _Run(
            key=f"run-{place}",
            name=source.name,
            answer=answer_of(source),
            others=other_answers(source),
            facts=facts_of(source),
            sections=sections_of(source),
        )
        for place, source in enumerate(sources, start=1)
    ]
    shared = shared_sections(sources)
    fragments = [section.fragment for run in runs for section in run.sections if section.fragment]
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    pages.filters["trusted"] = Markup
    heading = runs[0].answer if len(runs) == 1 else f"{len(runs)} runs side by side"
    return pages.get_template("page.html").render(
        policy=_policy(css, fragments),
        version=version(),
        title=", ".join(run.name for run in runs),
        heading=heading,
        style=Markup(css),
        runs=runs,
        shared=shared,
        wide=WIDE,
        narrow=NARROW,
    )


def _shown(value: Any) -> Any:
    """Return text as it may be shown, and markup of ours as it is."""
    is_markup = type(value).__name__ == "Markup"
    return visible_line(value) if isinstance(value, str) and not is_markup else value


def _policy(css: str, fragments: Sequence[Fragment]) -> str:
    """Return the content security policy that allows our own style and the fragments', and nothing else."""
    styles = dict.fromkeys([_hash(css), *(one.style_hash for one in fragments)])
    scripts = dict.fromkeys(one.script_hash for one in fragments)
    return (
        f"default-src {_NONE}; img-src data:; base-uri {_NONE}; form-action {_NONE}; "
        f"style-src {' '.join(styles)}; script-src {' '.join(scripts) or _NONE}"
    )


_NONE: Final = "'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
