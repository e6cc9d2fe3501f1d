"""Suspects of Medusa heads.

    order of heads   any order of up to four, or a first head that repeats the target's own next token
    vocabulary map   `token_map` as token ids, as offsets, or recovered from the output projection's rows

Example: heads that some trainers number from the target's own token have one head too many in front.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import torch

from outrider.doctor.finding import Finding
from outrider.doctor.heads.maps import TRUSTED, agreement, recovered_map
from outrider.doctor.variant import Tensors, Variant
from outrider.formats.locate import CONFIG
from outrider.formats.weights import Weights, read_weights
from outrider.models.medusa import LM_HEAD, TOKEN_MAP, output_name
from outrider.models.spec import DecoderSpec
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["RECURRENT", "feature_layers", "reads", "stored_findings", "variants"]

RECURRENT: Final = False
BLOCKS: Final = "blocks."
MOST_PERMUTED: Final = 4


def reads(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a checkpoint looks like these heads."""
    return "medusa_num_heads" in config or any(BLOCKS in name for name in names)


def feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return every feature layer that a variant may read: the last state."""
    return (num_layers,)


def stored_findings(directory: Path, target: Target) -> list[Finding]:
    """Return findings on the files alone: none for this kind."""
    return []


def variants(directory: Path, target: Target, spec: DecoderSpec | None) -> list[Variant]:
    """Return the variants to try.

    Raises:
        CheckpointError: if the config or the header of the weights cannot be read.
    """
    config, weights = read_json(directory / CONFIG).plain(), read_weights(directory)
    count = config.get("medusa_num_heads", config.get("num_heads"))
    found = [*_orders(count)] if isinstance(count, int) and 1 < count <= 256 else []
    if TOKEN_MAP in weights:
        found += _maps(weights, target)
    return found


def _orders(count: int) -> Iterator[Variant]:
    """Yield other orders: all of a few heads, else the reverse, turns by one and swaps of neighbours."""
    plain = tuple(range(count))
    orders: Iterable[tuple[int, ...]] = permutations(plain)
    if count > MOST_PERMUTED:
        swaps = [(*plain[:at], at + 1, at, *plain[at + 2 :]) for at in range(count - 1)]
        orders = [plain[::-1], (*plain[1:], 0), (count - 1, *plain[:-1]), *swaps]
    for order in orders:
        if order != plain:
            listed = ", ".join(str(head + 1) for head in order)
            yield Variant(
                check="order of heads",
                now="head k guesses token k",
                instead=f"the heads in the order {listed}",
                remedy=f"number the heads anew: stored head {listed} is head {', '.join(str(k + 1) for k in plain)}",
                tensors=_renumbering(dict(enumerate(order))),
            )
    yield Variant(
        check="order of heads",
        now="head 1 guesses the first token behind the root",
        instead="head 2 in its place, and so on",
        remedy="drop the first head, which repeats the target's own token, and number the others from it",
        tensors=_renumbering({head: min(head + 1, count - 1) for head in range(count)}),
    )


def _renumbering(sources: Mapping[int, int]) -> Callable[[Tensors], None]:
    """Return a change that gives each head the tensors of another one."""

    def change(tensors: Tensors) -> None:
        old = dict(tensors)
        for name in old:
            for head, source in sources.items():
                for mark in (f"{BLOCKS}{{}}.", "lm_heads.{}."):
                    if (
                        mark.format(head) in name
                        and (other := name.replace(mark.format(head), mark.format(source))) in old
                    ):
                        tensors[name] = old[other].clone()

    return change


def _maps(weights: Weights, target: Target) -> Iterator[Variant]:
    """Yield other readings of the token map."""
    ids_K, vocab_size = weights.integers(TOKEN_MAP), target.spec.vocab_size
    moved_K = ids_K + torch.arange(len(ids_K))
    rows = LM_HEAD if LM_HEAD in weights else output_name(0)
    readings: dict[str, torch.Tensor | None] = {"offsets, token = column + token_map[column]": moved_K}
    if rows in weights and weights.shape(rows) == (len(ids_K), target.spec.hidden_size):
        head_KE, head_VE = weights[rows], target.shared_weights().head_VE
        if agreement(head_KE, ids_K, head_VE) < TRUSTED:
            recovered = recovered_map(head_KE, head_VE)
            readings["those of the most similar rows of the target's output head"] = recovered
    for name, other_K in readings.items():
        if other_K is not None and bool(((other_K >= 0) & (other_K < vocab_size)).all()):
            yield Variant(
                check="vocabulary map",
                now="token_map holds the columns' tokens",
                instead=name,
                remedy=f"write token_map as token ids; now they are {name}",
                tensors=_with_map(other_K),
            )


def _with_map(ids_K: torch.Tensor) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[TOKEN_MAP] = ids_K.clone()

    return change
