"""A command's target, loaded while a bar shows how far that is.

Example: `loaded(Generate(prompt="Hello"))` loads smollm2-135m as it is stored.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.target import Target
    from outrider.targets import TargetOptions

__all__ = ["loaded"]


def loaded(options: "TargetOptions") -> "Target":
    """Load the target.

    Raises:
        CheckpointError, ConfigError: as `load_target`.
    """
    from outrider.cli.terminal import progress
    from outrider.targets import target_of

    with progress() as bar:
        return target_of(options, lambda at: bar.show(*at))
