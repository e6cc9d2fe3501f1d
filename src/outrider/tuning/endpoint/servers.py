"""The servers of a run: the one to look at, and plain decoding beside it where the user has such a server.

    --endpoint URL               the server; where it does not draft, it is plain decoding itself
    --endpoint URL none=URL      and the same without speculation, for what its drafts gain

Example: `chosen(("http://a/v1", "none=http://b/v1"))` gives both, the one to look at first.
"""

from collections.abc import Sequence
from typing import NamedTuple

from outrider.bench.serving.contender import Reader
from outrider.bench.serving.endpoint import Endpoint, endpoint_of
from outrider.data.dialogue import Dialogue
from outrider.errors import ConfigError
from outrider.results.rows import PLAIN
from outrider.target import Target
from outrider.tuning.config import TuneConfig
from outrider.tuning.endpoint.probe import Server, probed
from outrider.tuning.prompts import Sample

__all__ = ["Servers", "chosen", "reached"]

WARM_UP = 48


class Servers(NamedTuple):
    """Servers that answer; `plain` is None where only one was given."""

    main: Server
    plain: Server | None
    reader: Reader


class Chosen(NamedTuple):
    """Addresses of the server to look at, and of plain decoding."""

    main: Endpoint
    plain: Endpoint | None


def chosen(endpoints: Sequence[str]) -> Chosen:
    """Return the server to look at, and plain decoding.

    Raises:
        ConfigError: for no address, or for several servers to look at.
    """
    found = [endpoint_of(text) for text in endpoints]
    drafting = [one for one in found if one.label != PLAIN]
    plain = [one for one in found if one.label == PLAIN]
    if len(drafting) > 1 or len(plain) > 1:
        raise ConfigError(
            f"tune looks at one server, beside none=URL, and {len(found)} are given; compare servers with "
            "outrider bench --endpoint"
        )
    return Chosen(drafting[0], plain[0] if plain else None) if drafting else Chosen(plain[0], None)


def reached(config: TuneConfig, target: Target, sample: Sample) -> Servers:
    """Return the servers, each asked for a few tokens.

    Raises:
        EndpointError: if one is not there, not ready, or counts nothing.
    """
    spec = target.spec
    prompt = Dialogue(sample.conversations[0]).ask(0, target.tokenizer)
    reader = Reader(
        tokenizer=target.tokenizer,
        vocab_size=spec.vocab_size,
        eos_ids=spec.eos_ids,
        warm_up=tuple(prompt[: min(WARM_UP, spec.max_positions // 2)]),
    )
    main, plain = chosen(config.endpoints)

    def look(endpoint: Endpoint) -> Server:
        return probed(endpoint, reader, model=config.endpoint_model, metrics=config.endpoint_metrics)

    return Servers(look(main), None if plain is None else look(plain), reader)
