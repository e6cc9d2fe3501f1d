"""The entry to every audit: settings in, a report out.

Example: `audit(AuditConfig(methods=("ngram",))).verdict` is "PASS".
"""

from collections.abc import Mapping

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
) -> AuditReport:
    """Check that methods are lossless on a target, or with `config.endpoint` that a server is.

    Args:
        target: the loaded target, where the caller has it; else the settings name it.
        proposers: proposers by name, in place of `config.methods`; the contract of their classes is not run.
        listen: told of the progress.

    Raises:
        OutriderError: if the target, a method or the server cannot be used, or a setting does not fit them.
    """
    if config.endpoint is not None:
        return audit_server(config, listen=listen)
    return audit_methods(config, target, proposers, listen=listen)
