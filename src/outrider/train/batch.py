"""The input of an objective: packed rows of several texts, with the target's features beside them.

Texts are laid end to end in rows of one length, so that nothing is spent on padding. `segments` says which text a
position belongs to; a position sees earlier positions of its own text only, and counts its positions from 0.

    texts [a b c] [d e]    row  a b c d e .    segments 1 1 1 2 2 0    positions 0 1 2 0 1 0

`learn` marks the tokens that the target wrote (the assistant's): an objective learns to predict those and no others.

Shapes: B rows, L positions, F features (feature layers side by side, each of the target's hidden size).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.data.texts import Example

__all__ = ["Batch", "collate", "fill_rows"]


class Batch(NamedTuple):
    """Packed rows. Padding has segment 0, token 0, position 0 and learns nothing."""

    tokens_BL: Tensor
    learn_BL: Tensor
    segments_BL: Tensor
    positions_BL: Tensor
    features_BLF: Tensor | None

    def shifted(self, x_BL: Tensor, by: int, fill: float = 0) -> Tensor:
        """Return x at position + `by` within the same text; `fill` where that lies outside the text."""
        moved = torch.full_like(x_BL, fill)
        moved[:, : max(0, x_BL.shape[1] - by)] = x_BL[:, by:]
        shape = self.segments_BL.shape + (1,) * (x_BL.dim() - 2)
        return torch.where(self.within(by).view(shape), moved, torch.full_like(x_BL, fill))

    def within(self, by: int) -> Tensor:
        """Return bool [B, L]: position + `by` exists in the same text."""
        same = torch.zeros_like(self.segments_BL, dtype=torch.bool)
        kept = max(0, self.segments_BL.shape[1] - by)
        same[:, :kept] = self.segments_BL[:, :kept] == self.segments_BL[:, by:]
        return same & (self.segments_BL > 0)

    def written_ahead(self, num_depths: int, first: int) -> Tensor:
        """Return bool [K, B, L]: at depth k the target wrote all tokens from `first` places ahead to `first` + k - 1.

        No depth reaches across the end of a text. Worked example: learn = [0, 0, 1, 1, 0, 1] and `first` = 1 give depth
        1 at places 1, 2, 4 and depth 2 at place 1.
        """
        ahead = [self.shifted(self.learn_BL, first + depth) for depth in range(num_depths)]
        return torch.stack(ahead).cumprod(0).bool()

    def text_numbers(self) -> Tensor:
        """Return int64 [B, L]: a number for each text of the batch, equal within it."""
        rows_B1 = torch.arange(len(self.segments_BL), device=self.segments_BL.device)[:, None]
        return rows_B1 * (self.segments_BL.shape[1] + 1) + self.segments_BL

    def causal_BLL(self) -> Tensor:
        """Return bool [B, L, L]: row l sees column s <= l of its own text. Padding sees itself, so no row is empty."""
        same = self.segments_BL[:, :, None] == self.segments_BL[:, None, :]
        return same & torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on a device."""
        features = None if self.features_BLF is None else self.features_BLF.to(device)
        tokens, learn, segments, positions = (part.to(device) for part in self[:4])
        return Batch(tokens, learn, segments, positions, features)


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Return the texts of each row: first fit, in the given order, so that the order decides the result.

    Worked example: lengths 5, 4, 3, 2 in rows of 8 give [[0, 2], [1, 3]].
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        fits = next((row for row, left in enumerate(room) if left >= length), None)
        if fits is None:
            rows.append([index])
            room.append(row_length - length)
        else:
            rows[fits].append(index)
            room[fits] -= length
    return rows


def collate(rows: Sequence[Sequence[Example]], row_length: int, *, fill: bool = False) -> Batch:
    """Lay each row's texts end to end; the batch is as long as the longest row, at most `row_length`.

    Features stay on their device; all else is on the host.

    Args:
        fill: always `row_length`, so that all batches have one shape.
    """
    longest = max(sum(len(example.tokens_T) for example in row) for row in rows)
    length = row_length if fill else min(row_length, longest)
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for row in rows:
        for part, tensor in zip(parts, _row(row, length), strict=True):
            part.append(tensor)
    tokens, learn, segments, positions = (torch.stack(part) for part in parts[:4])
    features = torch.stack(parts[4]) if rows[0][0].features_TF is not None else None
    return Batch(tokens, learn, segments, positions, features)


def _row(examples: Sequence[Example], length: int) -> list[Tensor]:
    sample = examples[0].features_TF
    width = 0 if sample is None else sample.shape[1]
    tokens, segments, positions = (torch.zeros(length, dtype=torch.int64) for _ in range(3))
    learn = torch.zeros(length, dtype=torch.bool)
    features = torch.zeros(length, width) if sample is None else sample.new_zeros(length, width)
    start = 0
    for number, example in enumerate(examples, start=1):
        count = min(len(example.tokens_T), length - start)
        where = slice(start, start + count)
        tokens[where] = example.tokens_T[:count]
        learn[where] = example.learn_T[:count]
        segments[where] = number
        positions[where] = torch.arange(count)
        if example.features_TF is not None:
            features[where] = example.features_TF[:count]
        start += count
    return [tokens, learn, segments, positions, features]
