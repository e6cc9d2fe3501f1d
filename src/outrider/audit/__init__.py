"""The lossless verdict: is every text the target's own, and would a fault have been seen?

    from outrider.audit import AuditConfig, audit

    report = audit(AuditConfig(methods=("ngram", "suffix")))
    print(report.verdict, report.sentence)

Names are imported when they are first used, so that `outrider audit --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.audit.config import AuditConfig
    from outrider.audit.report import AuditReport, Finding, Layer
    from outrider.audit.run import audit

__all__ = ["AuditConfig", "AuditReport", "Finding", "Layer", "audit"]

_HOMES = {"AuditConfig": "config", "AuditReport": "report", "Finding": "report", "Layer": "report", "audit": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'outrider.audit' has no attribute {name!r}")
    return getattr(import_module(f"outrider.audit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
