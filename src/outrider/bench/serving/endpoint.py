"""A server that already runs, as written on a command line: `URL`, or `METHOD=URL` to say what it decodes with.

Example: `endpoint_of("none=http://localhost:8000/v1").label` is "none", plain decoding, with which other endpoints are
compared.
"""

from typing import NamedTuple

from outrider.errors import ConfigError

__all__ = ["Endpoint", "endpoint_of"]

UNNAMED = "served"


class Endpoint(NamedTuple):
    """Label of its row, and its address up to and with /v1."""

    label: str
    url: str


def endpoint_of(text: str) -> Endpoint:
    """
    Raises:
        ConfigError: if that is no address.
    """
    label, equals, url = text.partition("=")
    if not equals or "/" in label:
        label, url = UNNAMED, text
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"endpoint {url} must begin with http:// or https://, as in http://localhost:8000/v1")
    return Endpoint(label, url)
