"""The kinds of damaged input, by name, each with its share of all inputs.

A kind is a function `(rng, directory) -> None`. It writes one input into the empty `directory`, damaged as `rng`
decides, and uses it as a user would. It returns if the input was taken and lets an `OutriderError` pass if it was
refused; anything else that it raises is a failure, an `AssertionError` of its own included.

A kind whose inputs take less time gets a larger share. Example: `shares(70, ["config", "params"])` gives "params" 60.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["KINDS", "Kind", "shares"]


class Kind(NamedTuple):
    """A kind of input.

    place    module and function
    weight   share of all inputs, relative to the others; small where one input takes long
    """

    place: str
    weight: int


def _of(module: str, **weights: int) -> dict[str, Kind]:
    return {name: Kind(f"benchmarks.fuzz.{module}:{name}", weight) for name, weight in weights.items()}


KINDS: Final[dict[str, Kind]] = {
    **_of("checkpoints", config=25, generation_config=25, hf_config=15, index=25),
    **_of("checkpoints", tokenizer=25, tokenizer_config=25, weights=25),
    "directory": Kind("benchmarks.fuzz.checkpoints:directory_of_other_files", 25),
    "gguf": Kind("benchmarks.fuzz.gguf_files:gguf_file", 25),
    **_of("gguf_files", gguf_quantised=10),
    **_of("quantised", quantised=15),
    **_of("gguf_files", gguf_pieces=15),
    **_of("heads", dflash=15, draft_model=15, eagle3=15, medusa=15, mtp=15),
    **_of("kept", corpus=25, kernel=10),
    **_of("runs", bench_run=5, profile=30, report=10),
    **_of("training", prompts_file=150, run_log=25, shards=10, train_run=3),
    **_of("servers", server=20, probe=6),
    **_of("tunings", tune_run=4, tuned=8, recipe=50, catalogue=60),
    **_of("requests", params=150, form=90, request=150),
}


def shares(num: int, kinds: Sequence[str]) -> dict[str, int]:
    """Return how many of `num` inputs each kind gets, by largest remainder."""
    total = sum(KINDS[kind].weight for kind in kinds)
    exact = {kind: num * KINDS[kind].weight / total for kind in kinds}
    found = {kind: int(share) for kind, share in exact.items()}
    behind = sorted(kinds, key=lambda kind: found[kind] - exact[kind])
    for kind in behind[: num - sum(found.values())]:
        found[kind] += 1
    return found
