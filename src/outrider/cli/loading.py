"""A command's target, loaded while a bar shows how far that is; and what its quantisation cost, or how to measure it.

Example: `loaded(Generate(prompt="Hello"))` loads smollm2-135m as it is stored.
"""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.target import Target
    from outrider.targets import TargetOptions

__all__ = ["loaded"]

log = logging.getLogger(__name__)


def loaded(options: "TargetOptions") -> "Target":
    """Load the target.

    Raises:
        CheckpointError, ConfigError: as `load_target`.
    """
    from outrider.cli.terminal import progress
    from outrider.quality.filed import said
    from outrider.targets import target_of

    with progress() as bar:
        target = target_of(options, lambda at: bar.show(*at))
    if options.weights in ("int8", "int4") and (sentence := said(target.spec, options.weights)):
        log.info("%s", sentence)
    return target
