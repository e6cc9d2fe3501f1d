"""Outrider's methods as vLLM's speculative configuration.

The module of a method's name in this folder translates the method's `Config` into vLLM's keys. vLLM drafts chains, so
only the depth of a tree is kept. A checkpoint is exported first, unless it is an export already: every export holds
`serving.json`, written last, with its configuration.

Example: prompt lookup with `num_nodes=8, min_n=2, max_n=4` becomes
`{"method": ..., "num_speculative_tokens": 8, "prompt_lookup_min": 2, "prompt_lookup_max": 4}`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from outrider.export.exported import MARKER, Export, Exported, export_checkpoint, export_into
from outrider.formats.locate import locate
from outrider.records.json_fields import read_json
from outrider.results.rows import PLAIN
from outrider.target import Target

__all__ = ["Order", "on_vllm", "served_checkpoint"]

SERVED: Final = ("ngram", "suffix", "draft_model", "eagle3", "peagle", "dflash", "medusa", "mtp", "pard")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A method to serve.

    config   settings of the method
    output   the directory of an export, which need not exist
    """

    config: Any
    target: Target
    output: Path


def on_vllm(method: str, order: Order) -> Exported | None:
    """Return the speculative configuration, empty for plain decoding; None for a method that vLLM does not have.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or does not belong to the target.
        ConfigError: if vLLM cannot load such a checkpoint.
    """
    if method == PLAIN:
        return Exported(speculative={})
    if method not in SERVED:
        return None
    serve: Callable[[Order], Exported] = import_module(f"outrider.export.{method}").on_vllm
    return serve(order)


def served_checkpoint(order: Order, checkpoint: str | None, num_nodes: int, *notes: str) -> Exported:
    """Return the configuration of a checkpoint; export it into `order.output` unless it is an export for vLLM."""
    source = locate(checkpoint or "")
    # the checkpoint may be an export, or an earlier run may have written one
    for directory in (source, order.output):
        if known := _known(directory, num_nodes):
            return replace(known, notes=(*notes, *known.notes))
    exported = export_into(order.output, lambda part: _export(order, source, part, num_nodes))
    return replace(exported, notes=(*notes, *exported.notes))


def _export(order: Order, source: Path, part: Path, num_nodes: int) -> Exported:
    return export_checkpoint(
        Export(
            checkpoint=source,
            target=order.target,
            output=part,
            engine="vllm",
            num_nodes=num_nodes,
            served_from=order.output,
        )
    )


def _known(directory: Path, num_nodes: int) -> Exported | None:
    """Return the configuration of an export for vLLM; None for any other directory."""
    file = directory / MARKER
    if not file.is_file():
        return None
    known = read_json(file)
    if known["engine"] not in ("vllm", "speculators"):
        return None
    own = {"model": str(directory.resolve()), "num_speculative_tokens": num_nodes}
    return Exported(
        speculative=dict(known["speculative"]) | own, flags=dict(known["flags"]), notes=tuple(known["notes"])
    )
