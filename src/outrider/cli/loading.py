"""A command's options made into what an engine takes: its target, and the settings of its request.

The target is loaded while a bar shows how far that is; what its quantisation cost, or how to measure it, is said.

Example: `loaded(Generate(prompt="Hello"))` loads smollm2-135m as it is stored.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outrider.records.display import visible_line

if TYPE_CHECKING:
    from outrider.params import SamplingParams, StructuredOutputs
    from outrider.requests.logprobs import TokenLogprob
    from outrider.target import Target
    from outrider.targets import TargetOptions

__all__ = ["RequestOptions", "loaded", "logprob_lines", "params_of"]

log = logging.getLogger(__name__)
SAME = (
    *("temperature", "top_k", "top_p", "min_p", "seed", "stop", "min_tokens", "bad_words", "logprobs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)


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


class RequestOptions(Protocol):
    """The options that say which form an answer has, beside those of the names in `SAME`."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def json_schema(self) -> Path | None: ...

    @property
    def json_object(self) -> bool: ...

    @property
    def compact_json(self) -> bool: ...

    @property
    def regex(self) -> str | None: ...

    @property
    def choice(self) -> tuple[str, ...]: ...

    @property
    def grammar(self) -> Path | None: ...


def params_of(options: RequestOptions) -> "SamplingParams":
    """Return the settings of the request.

    Raises:
        ConfigError: if a file cannot be read, or `max_new_tokens` is below 1.
        RequestError: for a value out of range.
    """
    from outrider.errors import ConfigError
    from outrider.params import SamplingParams

    if options.max_new_tokens < 1:  # `SamplingParams` would name its own field, max_tokens
        raise ConfigError(f"max_new_tokens={options.max_new_tokens} must be at least 1")
    values: dict[str, Any] = {name: getattr(options, name) for name in SAME}
    return SamplingParams(max_tokens=options.max_new_tokens, structured_outputs=_form(options), **values)


def _form(options: RequestOptions) -> "StructuredOutputs | None":
    from outrider.params import StructuredOutputs

    given: dict[str, Any] = {
        "json": None if options.json_schema is None else _read(options.json_schema),
        "json_object": options.json_object,
        "regex": options.regex,
        "choice": options.choice or None,
        "grammar": None if options.grammar is None else _read(options.grammar),
    }
    if not any(value is not None and value is not False for value in given.values()):
        return None
    return StructuredOutputs(disable_any_whitespace=options.compact_json, **given)


def _read(path: Path) -> str:
    from outrider.errors import ConfigError, said

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {said(error)}") from error


def logprob_lines(logprobs: "Sequence[TokenLogprob]", tokenizer: Any) -> list[str]:
    """Return a line for each token: its text, its log-probability and rank, and the most probable tokens."""

    def shown(token: int) -> str:
        return repr(visible_line(tokenizer.decode([token]))) if tokenizer is not None else str(token)

    return [
        f"{shown(one.token):<16} {one.logprob:8.3f}  rank {one.rank:<6}"
        + "".join(f"  {shown(token)} {logprob:.3f}" for token, logprob in one.top)
        for one in logprobs
    ]
