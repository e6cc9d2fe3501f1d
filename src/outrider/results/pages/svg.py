"""Writing SVG by hand: escaped elements, and text that is measured by its number of characters.

Text in a file of its own has no font to measure with, so widths are estimates on the wide side: 0.58 of the font size a
character, about 7.5 pixels at 13.

Example: `element("text", escaped("a < b"), x=3, font_weight=600)` is `<text x="3" font-weight="600">a &lt; b</text>`.
"""

import textwrap
from collections.abc import Iterable
from html import escape

__all__ = ["element", "escaped", "label", "picture", "text_width", "wrapped"]

CHARACTER = 0.58


def escaped(value: str) -> str:
    """Return the text as XML takes it: markup and quotes escaped, control and other forbidden characters left out."""
    allowed = (c for c in value if c in "\t\n" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF))
    return escape("".join(c for c in allowed if c not in "\ufffe\uffff"), quote=True)


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return an element; `_` in an attribute's name stands for `-`, and children are markup or `escaped` text."""
    head = "".join(f' {key.replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{head}>{''.join(children)}</{name}>" if children else f"<{name}{head}/>"


def label(x: float, y: float, value: str, size: float, **attributes: str) -> str:
    """Return a line of text."""
    return element("text", escaped(value), x=x, y=y, font_size=size, **attributes)


def picture(parts: Iterable[str], width: float, height: str, ink: str) -> str:
    """Return a whole file of these elements, a line each; the first two are its `title` and `desc`."""
    return element(
        "svg",
        *(f"\n{part}" for part in parts),
        "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby="title desc",
        font_family="system-ui, sans-serif",
        fill=ink,
    )


def text_width(value: str, size: float) -> float:
    """Return the pixels that a line of text takes at most, roughly."""
    return len(value) * size * CHARACTER


def wrapped(value: str, width: float, size: float) -> list[str]:
    """Return the text in lines of at most `width` pixels."""
    return textwrap.wrap(value, max(1, int(width / (size * CHARACTER))))


def _value(value: str | float) -> str:
    return escaped(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
