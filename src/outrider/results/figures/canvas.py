"""A sheet to draw on, and its SVG: Matplotlib draws, and the result is made fit for a page.

One unit is one pixel. Colours are roles (`Colour`): a file of its own gets greys and hues with about the same contrast
on white and on black, a figure inside a page gets the page's CSS variables, so that one drawing serves light and dark.
Text stays text. Style attributes become presentation attributes, which a strict content security policy allows.

Text in a file has no font to measure with, so widths are estimates on the wide side: 0.58 of the font size a character,
twice that for wide ones.

Example: `sheet(820, 300, Box(120, 40, 760, 260))` has a plot 640 pixels wide and 220 high.
"""

import io
import logging
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from html import escape
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from xml.etree import ElementTree

from outrider.errors import ConfigError
from outrider.records.display import visible_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HUES", "Box", "Colour", "Sheet", "drawing", "elided", "sheet", "svg_of", "text_width", "wrapped"]

CHARACTER: Final = 0.58
SVG: Final = "http://www.w3.org/2000/svg"
SMALL, NORMAL, LARGE = 11, 13, 18
SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "outrider",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
INHERITED: Final = ("font-family", "stroke-linejoin", "stroke-linecap")
CLASSES: Final = ("bar", "whisker", "mark", "line", "curve", "band", "ring")
"""Names of groups, which become their class."""
NUMBER: Final = re.compile(r"-?\d+\.\d{3,}")


class Colour(Enum):
    """A role of colour, with its value in a file; in a page it is the variable `--NAME`."""

    INK = "#747b86"
    MUTED = "#747b85"
    FASTER = "#2f81c7"
    SLOWER = "#c9642a"
    NEITHER = "#858d97"
    HUE_1 = "#2f81c8"
    HUE_2 = "#c9642b"
    HUE_3 = "#3f9a55"
    HUE_4 = "#9a5fc0"
    HUE_5 = "#b5872b"
    HUE_6 = "#2a9d9d"
    HUE_7 = "#c2527c"
    HUE_8 = "#6d7d3a"

    @property
    def variable(self) -> str:
        return f"var(--{self.name.lower().replace('_', '-')})"


HUES: Final = tuple(colour for colour in Colour if colour.name.startswith("HUE"))


class Box(NamedTuple):
    """The plot inside a sheet, in pixels from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


class Sheet(NamedTuple):
    """A figure, its one pair of axes, and its size; `write` puts text at pixels."""

    figure: "Figure"
    axes: "Axes"
    width: float
    height: float

    def write(
        self, x: float, y: float, text: str, size: float = SMALL, *, colour: Colour = Colour.INK, **style: Any
    ) -> None:
        """Put a line of text with its baseline at y."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, visible_line(text), fontsize=size, color=colour.value, va="baseline", **style)


@contextmanager
def drawing() -> Iterator[None]:
    """Hold Matplotlib to our settings, whatever the user's are, and to silence about characters it has no shape for.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("drawing figures needs Matplotlib; run: pip install 'outrider[report]'") from error
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def sheet(width: float, height: float, plot: Box) -> Sheet:
    """Return an empty sheet; call it inside `drawing`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    left, bottom = plot.left / width, 1 - plot.bottom / height
    axes = figure.add_axes((left, bottom, (plot.right - plot.left) / width, (plot.bottom - plot.top) / height))
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=Colour.MUTED.value)
    axes.set_axisbelow(True)
    return Sheet(figure, axes, width, height)


def svg_of(drawn: Sheet, title: str, words: str, prefix: str | None = None) -> str:
    """Return the SVG, with its title as accessible name and `words` as description.

    Args:
        prefix: start of every id of a figure inside a page; None for a file.
    """
    buffer = io.StringIO()
    drawn.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    start = "" if prefix is None else f"{prefix}-"
    used = {found[1] for part in root.iter() for value in part.attrib.values() if (found := LINK.search(value))}
    for part in root.iter():
        _mend(part, used, start)
    body = "".join(_lines(part, inline=prefix is not None) for part in root if not part.tag.endswith("metadata"))
    namespace = f'xmlns="{SVG}" ' if prefix is None else ""
    size = f'viewBox="0 0 {drawn.width:g} {drawn.height:g}"'
    named = f'role="img" aria-labelledby="{start}title {start}desc"'
    font = f'font-family="system-ui, sans-serif" stroke-linejoin="round" width="{drawn.width:g}"'
    head = f'<title id="{start}title">{_escaped(title)}</title>\n<desc id="{start}desc">{_escaped(words)}</desc>\n'
    return f"<svg {namespace}{size} {named} {font}>\n{head}{body}</svg>\n"


def text_width(text: str, size: float = SMALL) -> float:
    """Return the pixels that a line of text takes at most, roughly."""
    return size * CHARACTER * sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def elided(text: str, width: float, size: float = SMALL) -> str:
    """Return the text on one line of at most `width` pixels, its middle cut out where it is longer.

    >>> elided("draft_model:num_nodes=3", 100, 11)
    'draft_m\u2026nodes=3'
    """
    line = visible_line(text)
    most = max(3, int(width / (size * CHARACTER)))
    kept = most
    while text_width(line, size) > width and kept > 2:
        line = visible_line(text)
        line = f"{line[: kept // 2]}…{line[len(line) - (kept - 1) // 2 :]}"
        kept -= 1
    return line


def wrapped(text: str, width: float, size: float = SMALL) -> list[str]:
    """Return the text in lines of at most `width` pixels."""
    return textwrap.wrap(visible_line(text), max(1, int(width / (size * CHARACTER))))


LINK: Final = re.compile(r"#([\w.]+)")
ROLES: Final = {colour.value: colour.variable for colour in Colour}


def _mend(part: ElementTree.Element, used: set[str], start: str) -> None:
    """Turn styles into attributes, leave out ids that nothing refers to, and shorten numbers."""
    for item in part.attrib.pop("style", "").split(";"):
        name, _, value = item.partition(":")
        if name.strip() and name.strip() not in INHERITED:
            part.set(name.strip(), value.strip())
    for name in list(part.attrib):
        value = part.attrib.pop(name)
        if name.endswith("}href"):
            name, value = "href", f"#{start}{value[1:]}"
        elif name == "id" and value in CLASSES:
            name = "class"
        elif name == "id" and value not in used:
            continue
        elif name == "id":
            value = f"{start}{value}"
        elif name == "clip-path" or (name == "transform" and value.startswith("rotate(-0")):
            continue
        elif name in ("d", "x", "y", "transform"):
            value = " ".join(NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value).split())
        part.set(name, value)


def _lines(part: ElementTree.Element, *, inline: bool) -> str:
    """Return an element as text, a line each; an empty group is nothing, and one without attributes its content."""
    tag = part.tag.partition("}")[2]
    if tag in ("style", "clipPath"):
        return ""
    inner = "".join(_lines(child, inline=inline) for child in part)
    said = _escaped((part.text or "") if tag == "text" else "")
    if tag in ("g", "defs") and not inner:
        return ""
    if tag == "g" and not part.attrib:
        return inner
    given = "".join(f' {name}="{_coloured(value, inline)}"' for name, value in part.attrib.items())
    if tag in ("g", "defs"):
        return f"<{tag}{given}>\n{inner}</{tag}>\n"
    return f"<{tag}{given}>{said}</{tag}>\n" if said else f"<{tag}{given}/>\n"


def _coloured(value: str, inline: bool) -> str:
    return _escaped(ROLES.get(value, value) if inline else value)


def _escaped(text: str) -> str:
    return escape(visible_line(text), quote=True)
