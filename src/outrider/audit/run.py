"""The entry to every audit: settings in, a report out.

Example: `audit(AuditConfig(methods=("ngram",))).verdict` is "PASS".
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from outrider.audit.config import AuditConfig
from outrider.audit.methods import audit_methods
from outrider.audit.report import AuditReport
from outrider.audit.servers.compare import audit_server
from outrider.proposer import Proposer
from outrider.records.progress import Listener, unheard
from outrider.target import Target

__all__ = ["audit"]


def audit(
    config: AuditConfig,
    target: Target | None = None,
    proposers: Mapping[str, Proposer] | None = None,
    *,
    listen: Listener = unheard,
    started: Callable[[Path], None] = lambda directory: None,
    ended: Callable[[AuditReport], None] = lambda report: None,
) -> AuditReport:
    """Check that methods are lossless on a target, or with `config.endpoint` that a server is.

    An audit of methods that settings name goes on where an interrupted one of the same settings was.

    Args:
        target: the loaded target, where the caller has it; else the settings name it.
        proposers: proposers by name, in place of `config.methods`; the contract of their classes is not run.
        listen: told of the progress.
        started: told of the directory of finished pieces, before the first of them.
        ended: told of the report, before these pieces are removed; of a server's, also of one that was cut short.

    Raises:
        OutriderError: if the target, a method or the server cannot be used, or a setting does not fit them.
    """
    if config.endpoint is not None:
        return audit_server(config, listen=listen, ended=ended)
    return audit_methods(config, target, proposers, listen=listen, started=started, ended=ended)
