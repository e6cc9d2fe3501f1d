"""Measure what reading a prompt costs the target and a drafter, by its length.

    python benchmarks/reading.py [--target smollm2-135m] [--methods eagle3 mtp] [--lengths 512 1024 ...] [--repeats 5]

Nobody reads the outputs of a prompt's last layer, so it stops at its keys and values. A row of the table is a length:

    target      milliseconds of the target's reading
    last layer  the same if the last layer runs whole, over that (median of pairs, taken in turns)
    METHOD      milliseconds of the drafter's reading, behind the target's

Prompts are random tokens, nothing is kept, and each length has a round to warm up. Example: a ratio of 1.07 says that a
whole last layer would make the target's reading 7 % longer. The last line is JSON.
"""

import json
import random
import statistics
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import tyro

from outrider import Engine, SamplingParams, load_target
from outrider.metrics import PrefillRecord, StepRecord
from outrider.models.decoder import Decoder
from outrider.proposers.method_spec import load_method, method_specs


@dataclass(kw_only=True)
class Config:
    """Settings of the benchmark."""

    target: str = "smollm2-135m"
    methods: tuple[str, ...] = ("eagle3", "mtp")
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 7936)
    repeats: int = 5


class Reader:
    """An engine and the seconds of its last prompt."""

    def __init__(self, target: Any, method: str) -> None:
        self.records: list[StepRecord | PrefillRecord] = []
        [spec] = method_specs([method])
        self.engine = Engine(target, load_method(spec, target), record=self.records.append, prefix_cache_bytes=0)

    def read(self, prompt: list[int]) -> tuple[float, float]:
        """Return the seconds of the target and of the drafter."""
        self.records.clear()
        self.engine.generate([prompt], SamplingParams(max_tokens=1))
        read = [record for record in self.records if isinstance(record, PrefillRecord)]
        return sum(record.target_s for record in read), sum(record.proposer_s for record in read)


def whole_last_layer() -> Any:
    """Return a context in which the last layer runs for every row of a prompt."""
    read = Decoder._read

    def whole(self: Decoder, *args: Any, stores_only: bool = False, **settings: Any) -> Any:
        return read(self, *args, **settings)

    return patch.object(Decoder, "_read", whole)


def measured(config: Config) -> list[dict[str, Any]]:
    target = load_target(config.target)
    plain = Reader(target, "none")
    drafters = {method: Reader(target, method) for method in config.methods}
    draw = random.Random(0)
    rows = []
    for length in config.lengths:
        prompt = [draw.randrange(target.spec.vocab_size) for _ in range(length)]
        seen: dict[str, list[float]] = {name: [] for name in ("target", "whole", *drafters)}
        for turn in range(config.repeats + 1):
            found = {"target": plain.read(prompt)[0]}
            with whole_last_layer():
                found["whole"] = plain.read(prompt)[0]
            found |= {method: reader.read(prompt)[1] for method, reader in drafters.items()}
            for name, seconds in found.items() if turn else ():
                seen[name].append(seconds)
        ratios = [whole / usual for whole, usual in zip(seen["whole"], seen["target"], strict=True)]
        rows.append(
            {"length": length, "target_ms": 1e3 * statistics.median(seen["target"])}
            | {"last_layer": statistics.median(ratios)}
            | {f"{method}_ms": 1e3 * statistics.median(seen[method]) for method in drafters}
        )
        print_row(rows[-1], first=len(rows) == 1)
    return rows


def print_row(row: dict[str, Any], first: bool) -> None:
    if first:
        print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
    cells = (f"{value:.2f}" if name == "last_layer" else f"{value:.0f}" for name, value in row.items())
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    print(json.dumps({"schema": "outrider.reading/1", "target": config.target, "rows": measured(config)}))


if __name__ == "__main__":
    main()
