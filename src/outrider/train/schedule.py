"""The texts and the learning rate of each step: pure functions, so that a resumed run continues unchanged.

Every epoch permutes the texts anew, packs them into rows, a window of texts at a time, and cuts the rows into
micro-batches and these into steps. Nothing is left out: the last step of an epoch may be smaller. The learning rate
rises linearly over the warm-up and then follows a cosine down to 0:

    lr(s) = peak * (s + 1) / W                                  for s < W
    lr(s) = peak * (1 + cos(pi * (s - W) / (S - W))) / 2        for W <= s < S

A step is the same whatever number of processes share it as long as rows x accumulation x processes stays the same:
its micro-batches are dealt out in turn.

Worked example: lengths 5, 4, 3, 2, rows of 8 and order 0 1 2 3 give the rows [0, 2] and [1, 3]; with one row per
micro-batch and two micro-batches per step they are one step.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from outrider.train.batch import fill_rows
from outrider.train.config import TrainConfig

__all__ = ["Micro", "Schedule", "Step", "generator", "learning_rate", "plan", "warmup_steps"]

WINDOW = 256  # texts packed at a time: first fit is quadratic in it

Micro = tuple[tuple[int, ...], ...]
"""Rows of one forward pass; a row is the numbers of its texts."""


class Step(NamedTuple):
    """One optimiser step: its epoch, its micro-batches over all processes, and the tokens that they hold."""

    epoch: int
    micros: tuple[Micro, ...]
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All steps of a run; `num_cut` texts of an epoch are longer than a row."""

    steps: tuple[Step, ...]
    num_cut: int

    @cached_property
    def num_tokens(self) -> int:
        return sum(step.num_tokens for step in self.steps)


def plan(lengths: Sequence[int], config: TrainConfig, num_processes: int = 1) -> Schedule:
    """Return every step of a run over texts of these lengths."""
    steps: list[Step] = []
    left = math.inf if config.max_tokens is None else config.max_tokens
    epoch = 0
    # texts without a token would never use up max_tokens
    while left > 0 and (epoch < config.epochs or config.max_tokens is not None) and any(lengths):
        for step in _epoch(lengths, config, epoch, num_processes):
            if left > 0:
                steps.append(step)
                left -= step.num_tokens
        epoch += 1
    return Schedule(steps=tuple(steps), num_cut=sum(length > config.row_length for length in lengths))


def _epoch(lengths: Sequence[int], config: TrainConfig, epoch: int, num_processes: int) -> Iterator[Step]:
    order = _permutation(len(lengths), config.seed, epoch)
    cut = [min(length, config.row_length) for length in lengths]
    rows = list(_rows([index for index in order if cut[index]], cut, config.row_length))
    micros = [tuple(rows[at : at + config.rows]) for at in range(0, len(rows), config.rows)]
    per_step = config.accumulation * num_processes
    for at in range(0, len(micros), per_step):
        some = tuple(micros[at : at + per_step])
        yield Step(epoch, some, sum(cut[index] for micro in some for row in micro for index in row))


def _rows(order: Sequence[int], lengths: Sequence[int], row_length: int) -> Iterator[tuple[int, ...]]:
    for at in range(0, len(order), WINDOW):
        window = order[at : at + WINDOW]
        for row in fill_rows([lengths[index] for index in window], row_length):
            yield tuple(window[place] for place in row)


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
    return order


def generator(seed: int, *place: int | str) -> torch.Generator:
    """Return a CPU generator for one place of a run: equal places draw equal numbers, others unrelated ones."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # seeds have 63 bits


def warmup_steps(num_steps: int, config: TrainConfig) -> int:
    """Return W, rounded up."""
    return math.ceil(num_steps * config.warmup_ratio)


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0."""
    warm = warmup_steps(num_steps, config)
    if step < warm:
        return config.peak * (step + 1) / warm
    return config.peak * (1 + math.cos(math.pi * (step - warm) / (num_steps - warm))) / 2
