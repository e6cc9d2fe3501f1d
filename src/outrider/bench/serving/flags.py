"""Flags of a server that we start, and the names of its files.

Example: `serve_flags({"dtype": "bfloat16"}, ["dtype=float32"])` is `["--dtype", "float32"]`.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from outrider.errors import ConfigError

__all__ = ["file_name", "serve_flags"]


def serve_flags(own: Mapping[str, str | None], given: Sequence[str]) -> list[str]:
    """Return the flags of a server: ours, and those given as `name=value` or `name`, which replace ours of the same
    name.

    >>> serve_flags({"dtype": "bfloat16", "no-cache": None}, ["cache", "dtype=float32"])
    ['--cache', '--dtype', 'float32']
    """
    flags = dict(own)
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        name = name.strip().replace("_", "-")
        if not name:
            raise ConfigError(f"'{text}' is no flag of a server; write name=value or name")
        for other in (name, f"no-{name}", name.removeprefix("no-")):
            flags.pop(other, None)
        flags[name] = value if equals else None
    return [
        part for name, value in flags.items() for part in ([f"--{name}"] if value is None else [f"--{name}", value])
    ]


def file_name(label: str) -> str:
    """Return a name that no other label of a run has."""
    clean = "".join(char if char.isalnum() or char in "-_." else "-" for char in label)
    return clean if clean == label and len(label) < 80 else f"{clean[:60]}-{sha256(label.encode()).hexdigest()[:8]}"
