"""The acceptance of an EAGLE-3 head of any published layout on held-out texts, as our training measures it.

The head is read by `outrider.formats`, its numbers become those of a network in training, and the network is evaluated
as after a training run (`outrider.train.evaluate`): every position whose root the target wrote is an anchor, depth k is
reached where all guesses before it were right. So both trainers' heads are judged by one program.

Example: `held_out(read_eagle3(directory, target), target, source, 3, 512).tau` is 1.38 for a head of 6 minutes.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from benchmarks.other_trainer.convert import Source

from outrider.data.texts import Example
from outrider.formats.eagle3 import Eagle3Checkpoint
from outrider.target import Target
from outrider.train.batch import collate, fill_rows
from outrider.train.evaluate import Counts, HeldOut, summary
from outrider.train.objective import Teacher
from outrider.train.objectives.eagle3 import Eagle3Objective, Eagle3ObjectiveConfig
from outrider.train.objectives.eagle3_network import Eagle3Network, plain
from outrider.train.objectives.eagle3_start import TrainedHead

__all__ = ["held_out", "num_weights"]

ROWS = 2


def held_out(checkpoint: Eagle3Checkpoint, target: Target, source: Source, num_depths: int, row_length: int) -> HeldOut:
    """Return the figures of a head on the held-out texts."""
    teacher = Teacher.of(target, "cpu")
    config = Eagle3ObjectiveConfig(num_depths=num_depths)
    head = TrainedHead(teacher, config, network_of(checkpoint, row_length), checkpoint.ids_K)
    objective = Eagle3Objective(head, config)
    objective.module.eval()
    counts, generator = Counts.zero(num_depths), torch.Generator()
    with torch.no_grad():
        for rows in batches(source, row_length):
            counts.add(objective(collate(rows, row_length), generator))
    return summary(counts)


def network_of(checkpoint: Eagle3Checkpoint, row_length: int) -> Eagle3Network:
    """Return the network of a head, in fp32; its sliding windows must hold a row."""
    layer = checkpoint.spec.layer
    assert all(window is None or window >= row_length for window in layer.windows), "a row is longer than a window"
    network = Eagle3Network(replace(checkpoint.spec, layer=plain(layer, layer.num_layers)))
    named = {name: tensor.float() for name, tensor in checkpoint.tensors.items() if name != "embed_tokens.weight"}
    network.load_state_dict(named)
    return network


def batches(source: Source, row_length: int) -> Iterator[list[list[Example]]]:
    """Return the held-out texts, packed in rows."""
    texts, first = source.data.held_out, len(source.data.train)
    rows = fill_rows([min(texts.num_tokens(index), row_length) for index in range(len(texts))], row_length)
    packed = [[_example(source, index, first) for index in row] for row in rows]
    for at in range(0, len(packed), ROWS):
        yield packed[at : at + ROWS]


def _example(source: Source, index: int, first: int) -> Example:
    example, features_TF = source.data.held_out.example(index), source.states(first + index)
    return Example(example.tokens_T[: len(features_TF)], example.learn_T[: len(features_TF)], features_TF)


def num_weights(checkpoint: Eagle3Checkpoint) -> int:
    """Count the numbers that a head adds to its target: the embedding is the target's."""
    return sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if name != "embed_tokens.weight")
