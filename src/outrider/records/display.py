r"""Untrusted text, such as model output, prompts and names, made safe to show; and values in messages.

A terminal obeys escape sequences, and characters that reorder a line mislead its reader. Both are shown as escapes: ESC
as `\x1b`, a right-to-left override as `\u202e`. Markdown and HTML in a report are escaped too.

Example: `visible("\x1b[2J")` is `\x1b[2J` in eight plain characters, and `markdown_text("a|<b>")` is `a\|&lt;b&gt;`.
"""

import json
import re
import reprlib
from typing import Any

__all__ = ["markdown_code", "markdown_text", "shown", "shown_json", "visible", "visible_line"]

COMMANDS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for newline and tab
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of the writing direction
    "\u200b\u2028\u2029\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"  # line ends, shapeless ones
    "\U000e0000-\U000e001f\ud800-\udfff"
)
UNSEEN = re.compile(f"[{COMMANDS}]")
UNSEEN_IN_A_LINE = re.compile(f"[{COMMANDS}\n\t]")
MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
BLOCK = re.compile(r"^(?:#|[-+](?=[-+\s])|\d+(?=[.)]))")

LONGEST = 80
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = LONGEST


def shown(value: Any) -> str:
    """Return any Python value as one short line for a message.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    if isinstance(value, int) and value.bit_length() > 128:  # longer ones cannot even be printed
        return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1}"
    try:
        text = " ".join(SHORT.repr(value).split())
    except Exception:  # an object whose repr fails
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def shown_json(value: object, max_chars: int = 60) -> str:
    """Return a JSON value as one short line of ASCII for a message: in JSON's notation, strings in single quotes.

    >>> shown_json([True, None]), shown_json("64")
    ('[true, null]', "'64'")
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value).__name__)
    cut = text if len(text) <= max_chars else text[:max_chars] + "..."
    return ascii(cut) if isinstance(value, str) else cut.encode("ascii", "backslashreplace").decode()


def visible(text: str) -> str:
    r"""Return the text with control, invisible and reordering characters as escapes, except newline and tab.

    >>> print(visible("a\x1b[31mb\nc"))
    a\x1b[31mb
    c
    """
    return UNSEEN.sub(_escape, text)


def visible_line(text: str) -> str:
    r"""Return `visible` text on one line: newlines and tabs are escaped too.

    >>> print(visible_line("a\nb"))
    a\nb
    """
    return UNSEEN_IN_A_LINE.sub(_escape, text)


def markdown_text(text: str) -> str:
    r"""Return Markdown that shows the text literally, also inside a table cell.

    >>> print(markdown_text("a|b [c](d) <script> snake_case _x_"))
    a\|b \[c\](d) &lt;script&gt; snake_case \_x\_
    """
    line = MARKDOWN.sub(r"\\\g<0>", visible_line(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return BLOCK.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", line)


def markdown_code(text: str) -> str:
    """Return the text as a Markdown code span, also inside a table cell.

    >>> markdown_code("a`b|c")
    '`` a`b\\\\|c ``'
    """
    line = visible_line(text).replace("|", "\\|")
    runs = re.findall("`+", line)
    fence = "`" * (1 + max(map(len, runs), default=0))
    needs_space = bool(runs) or not line.strip() or line != line.strip()
    return f"{fence} {line if line.strip() else '-'} {fence}" if needs_space else f"{fence}{line}{fence}"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] in "\n\t":
        return "\\n" if found[0] == "\n" else "\\t"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
