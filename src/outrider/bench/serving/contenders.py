"""The serving contenders of a benchmark, from its settings.

    engines = ["vllm"]            a server of our own for plain decoding and for each method, one after the other, or
                                  all at the same time and in turns with our engine (`together`)
    engines = ["vllm-custom"]     the same, but vLLM drafts with our own code (`outrider.vllm.custom_class`)
    engines = ["llama.cpp"]       the same with `llama-server`
    endpoints = ["a=URL", "URL"]  servers that already run; what stands before "=" is what the row is called

Example: `engines=("vllm",), methods=("none", "ngram")` are two contenders, each in a group of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender, Name
from outrider.bench.notes import Notes
from outrider.bench.serving.contender import Reader, ServedContender
from outrider.bench.serving.endpoint import endpoint_of
from outrider.bench.serving.llama_servers import LlamaServers
from outrider.bench.serving.service import Remote
from outrider.bench.serving.starter import Starter
from outrider.bench.serving.vllm_servers import VllmServers
from outrider.llama_cpp.environment import Llama
from outrider.proposers.method_spec import MethodSpec
from outrider.target import Target
from outrider.vllm.environment import Vllm

__all__ = ["Engines", "ServingContenders", "serving_contenders"]


class Engines(NamedTuple):
    """The engines whose servers a run starts; None for one that does not take part."""

    vllm: Vllm | None = None
    llama: Llama | None = None


class ServingContenders(NamedTuple):
    """Contenders that are open at the same time, one group after another, and what a reader must know of them."""

    contender_groups: list[list[Contender]]
    notes: list[str]


def serving_contenders(
    config: BenchConfig,
    methods: Sequence[MethodSpec],
    target: Target,
    warm_up: Sequence[int],
    max_len: int,
    directory: Path,
    tell: Callable[[str], None],
    engines: Engines,
) -> ServingContenders:
    """Return the serving contenders of a run.

    Args:
        max_len: tokens of the longest text.
        directory: the run's directory, for exports and logs.
        tell: called with what takes long.

    Raises:
        CheckpointError: if a checkpoint cannot be exported.
    """
    notes, spec = Notes(), target.spec
    reader = Reader(
        tokenizer=target.tokenizer, vocab_size=spec.vocab_size, eos_ids=spec.eos_ids, warm_up=tuple(warm_up)
    )
    order = "in turns, all engines at once" if config.together else "one server after the other, not interleaved"
    starter = Starter(config, target, reader, max_len, directory, tell)
    found: list[Contender] = []
    if engines.vllm is not None:
        servers = VllmServers(starter, engines.vllm)
        found += [one for method in methods for one in servers.contenders(method, notes)]
        notes.texts.append(f"{servers.description}, {order}")
    if engines.llama is not None:
        others = LlamaServers(starter, engines.llama)
        found += [one for method in methods for one in others.contenders(method, notes)]
        found += [others.kind(text, notes) for text in config.llama_kinds]
        notes.texts.append(f"{others.description}, {order}")
    found += [_remote(starter, text) for text in config.endpoints]
    return ServingContenders([[one] for one in found], notes.texts)


def _remote(starter: Starter, text: str) -> ServedContender:
    endpoint, config = endpoint_of(text), starter.config
    name = Name("endpoint", endpoint.label)
    return starter.served(name, Remote(endpoint.url), model=config.endpoint_model, metrics=config.endpoint_metrics)
