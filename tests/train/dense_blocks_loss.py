"""DFlash's loss written out in fp64, every block alone, and the check of packed training against it."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from dense_block import block_states
from outrider.train.batch import Batch
from outrider.train.objective import Outcome
from outrider.train.objectives.blocks.dflash import DFlashObjective

GAMMA = 4.0
Weights = Mapping[str, Tensor]
More = Callable[[DFlashObjective, Weights, Tensor, int, int], Tensor]
"""A further loss of a place: from the objective, its weights, the state [E], the token before it, and its own."""


def dense_loss(objective: DFlashObjective, batch: Batch, weights: Weights, more: More | None = None) -> Tensor:
    """The loss, block by block: every anchor alone, from the text before it."""
    spec, teacher = objective.spec, objective.teacher
    assert batch.features_BLF is not None
    sums: dict[tuple[int, int], list[tuple[float, Tensor]]] = {}
    for row in range(len(batch.tokens_BL)):
        tokens, learn, segments = (part[row].tolist() for part in batch[:3])
        for anchor in range(len(tokens) - 1):
            start = segments.index(segments[anchor])
            features_TF = batch.features_BLF[row, start:anchor, : spec.features]
            embedded_ME = teacher.embedding_VE[[tokens[anchor], *[spec.mask_id] * (spec.block_size - 1)]]
            for depth in range(1, spec.block_size):
                at = anchor + depth
                if segments[anchor] == 0 or at >= len(tokens) or segments[at] != segments[anchor] or not learn[at]:
                    break
                state_E = block_states(spec, weights, features_TF, embedded_ME, spec.decoder.rms_norm_eps)[depth]
                loss = -(teacher.head_VE @ state_E).log_softmax(-1)[tokens[at]]
                if more is not None:
                    loss = loss + more(objective, weights, state_E, tokens[at - 1], tokens[at])
                weight = math.exp(-(depth - 1) / GAMMA)
                sums.setdefault((row, segments[anchor]), []).append((weight, weight * loss))
    means = [sum(loss for _, loss in parts) / sum(weight for weight, _ in parts) for parts in sums.values()]
    return torch.stack(means).sum()


def check_packed(objective: DFlashObjective, batch: Batch, more: More | None = None) -> Outcome:
    """Hold loss and gradients of the objective, whose gamma is `GAMMA`, against the formulas."""
    outcome = objective(batch, torch.Generator().manual_seed(1))
    outcome.loss.backward()
    named = dict(objective.module.named_parameters())
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()}
    loss = dense_loss(objective, batch, weights, more)
    loss.backward()
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    for name, parameter in named.items():
        want = weights[name].grad
        assert parameter.grad is not None
        assert want is not None
        assert want.abs().max() > 0, name
        assert (parameter.grad - want).abs().max() < 1e-8 * want.abs().max(), name
    return outcome
