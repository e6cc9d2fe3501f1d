"""Settings at work in the audits of methods and of servers: the target that they name, and all of them as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from outrider.audit.config import AuditConfig
from outrider.records.progress import Listener
from outrider.target import Target
from outrider.targets import load_target

__all__ = ["loaded_target", "plain_settings"]


def loaded_target(config: AuditConfig, listen: Listener) -> Target:
    """Return the target that the settings name."""
    return load_target(
        config.target,
        dtype=config.dtype,
        weights=config.weights,
        kv_dtype=config.kv_dtype,
        device=config.device,
        backend=config.backend,
        trust_remote_code=config.trust_remote_code,
        listen=listen,
    )


def plain_settings(config: AuditConfig) -> dict[str, Any]:
    """Return all settings by name, as JSON can hold them."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    return (
        [_plain(one) for one in value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    )
