"""Measure candidates against a reference, one after another, and file the figures in the cache.

Two models are in memory at a time: the reference, and the candidate at hand. Figures on the benchmark's own prompts are
filed as soon as a candidate is done; those on other texts are printed only. An interrupted measurement goes on with the
candidate in which it stopped (`unfinished.py`).

A GGUF file holds rounded numbers. Its int8 and int4 round the widened numbers once more.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from outrider.data.workloads import workload_hash
from outrider.errors import ConfigError
from outrider.formats.locate import gguf_file, locate
from outrider.loop.memory import give_back
from outrider.models.weight_kinds import KvDtype, WeightsChoice
from outrider.quality.compare import Passage, Quality, check_vocabularies, compare
from outrider.quality.config import QualityConfig
from outrider.quality.filed import Filed, file_quality
from outrider.quality.report import Line, Model, Report
from outrider.quality.texts import Texts, conversations_of, held_out
from outrider.quality.unfinished import Unfinished
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import collect_manifest, template_hash
from outrider.target import Target
from outrider.targets import load_target

__all__ = ["measure"]


class _Wanted(NamedTuple):
    label: str
    name: str
    weights: WeightsChoice
    kv_dtype: KvDtype = "auto"


def measure(
    config: QualityConfig, listen: Listener = unheard, finished: Callable[[Line], None] = lambda line: None
) -> tuple[Report, Unfinished]:
    """Measure all candidates, but those that an interrupted measurement of the same has done.

    Returns the report, and what was kept of it, which `end` deletes once the report is safe.

    Args:
        finished: told of each candidate when its figures are known, and kept.

    Raises:
        ConfigError: without a candidate, for a bad value, and for a candidate of another vocabulary.
        CheckpointError: if a model cannot be found or read.
    """
    conversations, wanted = conversations_of(config), _wanted(config)
    load = partial(load_target, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code)
    reference = load(config.target, weights="bf16")
    settings = {name: _plain(value) for name, value in asdict(config).items()}
    hashes = workload_hash(conversations), template_hash(reference.tokenizer)
    places = [gguf_file(name) or locate(name) for name in (config.target, *(one.name for one in wanted))]
    unfinished = Unfinished.of(settings, hashes, places)
    texts = unfinished.texts or held_out(conversations, reference, config.num_tokens, listen)
    lines = list(unfinished.lines)
    unfinished.keep(texts, lines)
    for line in lines:
        finished(line)
    for number, one in list(enumerate(wanted))[len(lines) :]:
        listen(Progress(number, len(wanted), f"loading {one.label}"))
        candidate = load(one.name, weights=one.weights, kv_dtype=one.kv_dtype)
        check_vocabularies(reference, candidate)
        line = _line(one, reference, candidate, texts, _share(listen, number, len(wanted)))
        if not config.prompts:
            file_quality(candidate.spec, Filed(reference=_model(reference), line=line))
        lines.append(line)
        unfinished.keep(texts, lines)
        finished(line)
        del candidate
        give_back()
    manifest = collect_manifest(
        seed=0,
        settings=settings,
        workload_hash=hashes[0],
        template_hash=hashes[1],
    )
    return Report(reference=_model(reference), lines=tuple(lines), manifest=manifest), unfinished


def _wanted(config: QualityConfig) -> list[_Wanted]:
    """Return the candidates, all of which exist."""
    kinds = [_Wanted(kind, config.target, kind) for kind in dict.fromkeys(config.weights)]
    caches = [_Wanted(f"kv {kind}", config.target, "bf16", kind) for kind in dict.fromkeys(config.kv_dtype)]
    others = [_Wanted(_label(name), name, "stored") for name in dict.fromkeys(config.candidates)]
    wanted = [*kinds, *caches, *others]
    if not wanted:
        raise ConfigError("there is nothing to measure; give --weights, --kv-dtype or --candidates")
    for name in dict.fromkeys(one.name for one in wanted):
        if gguf_file(name) is None:
            locate(name, with_code=config.trust_remote_code)
    return [one._replace(name=_directory(one.name)) if one.weights in ("int8", "int4") else one for one in wanted]


def _directory(name: str) -> str:
    """Return what int8 and int4 of a target are made from: a GGUF file's widened directory."""
    return name if gguf_file(name) is None else str(locate(name))


def _label(name: str) -> str:
    return Path(name).name.removesuffix(".gguf")


def _line(one: _Wanted, reference: Target, candidate: Target, texts: Texts, listen: Listener) -> Line:
    total = sum(passage.num_positions for part in texts for passage in part)

    def part(passages: list[Passage], before: int) -> Quality:
        return compare(
            reference, candidate, passages, listen=lambda at: listen(Progress(before + at.done, total, one.label))
        )

    prompts = part(texts.prompts, 0)
    return Line(
        label=one.label,
        model=_model(candidate),
        prompts=prompts,
        answers=part(texts.answers, prompts.num_positions),
    )


def _share(listen: Listener, number: int, total: int) -> Listener:
    """Return a listener for one candidate's progress, which tells that of all."""

    def tell(at: Progress) -> None:
        listen(Progress(number + (at.done / at.total if at.total else 0.0), total, at.words))

    return tell


def _model(target: Target) -> Model:
    spec = target.spec
    return Model(name=spec.name, weights=spec.weights, weight_bytes=spec.weight_bytes)


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, tuple) else value
