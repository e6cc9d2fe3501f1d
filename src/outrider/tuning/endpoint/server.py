"""`outrider tune --endpoint`, from settings to the result.

Servers are asked before the run has a directory, so one that is not there leaves nothing behind.

Example: `tuned_server(TuneConfig(endpoints=("http://localhost:8000/v1",))).sentence`.
"""

from collections.abc import Callable
from pathlib import Path

from outrider.records.codec import dumps
from outrider.records.progress import Listener, Progress, unheard
from outrider.target import Target
from outrider.targets.deferred import DeferredTarget
from outrider.tuning.config import TuneConfig
from outrider.tuning.endpoint.run import tuned_endpoint
from outrider.tuning.endpoint.servers import reached
from outrider.tuning.opening import open_files
from outrider.tuning.outcome.report import TuneReport
from outrider.tuning.prompts import sampled

__all__ = ["tuned_server"]


def tuned_server(
    config: TuneConfig,
    target: Target | None = None,
    *,
    started: Callable[[Path], None] = lambda directory: None,
    listen: Listener = unheard,
) -> TuneReport:
    """Look at a server that already runs, or go on where an interrupted run stopped.

    Args:
        target: the loaded target, where the caller has it; else its files alone are read.
        started, listen: as of `outrider.tuning.tune.tuned`.

    Raises:
        OutriderError: as `tuned_endpoint`, or if a server is not there, not ready, or counts nothing.
    """
    described = target or DeferredTarget(
        config.target, dtype=config.dtype, weights=config.weights, trust_remote_code=config.trust_remote_code
    )
    sample = sampled(config, described)
    listen(Progress(0, None, f"asking {config.endpoints[0]}"))
    servers = reached(config, described, sample)
    files = open_files(config, described, sample, started)
    report = tuned_endpoint(config, described, sample, servers, files, listen)
    files.finish(dumps(report))
    return report
