"""A command's target, loaded while a bar shows how far that is.

Example: `loaded(Generate(prompt="Hello"))` loads smollm2-135m as it is stored.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from outrider.models.weight_kinds import WeightsChoice
    from outrider.target import Target

__all__ = ["Options", "loaded"]


class Options(Protocol):
    """Options that name a target and say how it runs."""

    @property
    def target(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def weights(self) -> "WeightsChoice": ...

    @property
    def device(self) -> str | None: ...

    @property
    def trust_remote_code(self) -> bool: ...


def loaded(options: Options) -> "Target":
    """Load the target.

    Raises:
        CheckpointError, ConfigError: as `load_target`.
    """
    from outrider.cli.terminal import progress
    from outrider.targets import load_target

    with progress() as bar:
        return load_target(
            options.target,
            dtype=options.dtype,
            weights=options.weights,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
            listen=lambda at: bar.show(*at),
        )
