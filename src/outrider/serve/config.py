"""Settings of `outrider serve`; the command's options are these fields.

Example: `ServeConfig(target="smollm2-135m", max_batch=4, port=0)` serves at most four requests at once, on a free port.
"""

from dataclasses import dataclass, field
from typing import Final

from outrider.errors import ConfigError
from outrider.loop.options import EngineOptions

__all__ = ["LOOPBACK", "ServeConfig"]

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
LIMITS: Final = {
    "port": (0, 65535),
    "max_batch": (1, 1024),
    "max_len": (2, 2**24),
    "max_waiting": (0, 100_000),
    "max_tokens": (1, 2**24),
    "max_body_bytes": (1024, 2**30),
    "grace_s": (0, 3600),
    "prefix_cache_bytes": (0, 2**50),
    "prefill_chunk": (1, 2**24),
}


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EngineOptions):
    """Settings of a server.

    Raises:
        ConfigError: for a number out of range, or an empty host or key.
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network, then set a key."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    api_key: str | None = field(default=None, repr=False)
    """Key that clients must send; by default that in OUTRIDER_API_KEY, which other users cannot read."""
    served_model_name: str | None = None
    """Name of the model for clients; by default the target as given."""
    max_batch: int = 8
    """Requests that decode at the same time."""
    max_len: int = 4096
    """Longest text in tokens, prompt included; at most the target's own limit."""
    max_waiting: int = 64
    """Requests that may wait; more are refused with status 503."""
    max_tokens: int | None = None
    """Longest answer that a request may ask for; by default only max-len limits it."""
    max_body_bytes: int = 4 * 2**20
    """Largest request body."""
    grace_s: float = 30.0
    """Seconds that running requests may take after SIGTERM or Ctrl-C."""
    prefix_cache_bytes: int | None = None
    """Memory for keys and values of finished texts, from which prompts that begin alike go on; 0 keeps none, by default
    as much as the slots take, at most 1 GiB."""
    prefill_chunk: int | None = None
    """Tokens of prompts that are read between two steps; by default 256 on the CPU and 8192 on a GPU."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value} must be between {low} and {high}")
        for name in ("host", "api_key", "served_model_name"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} is empty; leave it out, or give a value")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("api_key has characters that a header cannot hold; use printable ASCII")

    @property
    def model(self) -> str:
        """The model's name for clients."""
        return self.served_model_name or self.target

    @property
    def is_local(self) -> bool:
        """True if only this machine can connect."""
        return self.host in LOOPBACK
