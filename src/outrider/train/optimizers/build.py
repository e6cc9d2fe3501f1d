"""The optimiser of a run: AdamW for all weights, or Muon for the matrices inside a network and AdamW for the rest.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix: every direction of an update gets the same size,
also those that the gradient hardly shows. It is scaled so that an entry's root mean square is that of AdamW's updates,
so one learning rate serves both. Embeddings, output heads and vectors stay with AdamW, as its authors advise.

Example: of an EAGLE-3 head of one layer, Muon takes fc.weight and the seven matrices of the layer.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from outrider.train.config import TrainConfig
from outrider.train.objective import Objective

__all__ = ["optimizer_of", "trainable"]

OUTER = ("embed_tokens", "lm_head")
"""Parts of the names of embeddings and output heads."""
MOMENTUM = 0.95


def optimizer_of(objective: Objective, config: TrainConfig) -> Optimizer:
    """Return the optimiser of the trained weights; only matrices are decayed."""
    named = [(name, one) for name, one in objective.module.named_parameters() if one.requires_grad]
    inner = [one for name, one in named if config.optimizer == "muon" and _is_inner(name, one)]
    chosen = {id(one) for one in inner}
    others = [one for _, one in named if id(one) not in chosen]
    groups = [
        {"params": [one for one in others if one.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in others if one.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    parts: list[Optimizer] = [AdamW(groups, lr=config.peak, betas=betas)] if groups else []
    if inner:
        parts.append(
            Muon(
                inner,
                lr=config.peak,
                momentum=MOMENTUM,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return parts[0] if len(parts) == 1 else _Together(parts)


def trainable(objective: Objective) -> Iterator[Tensor]:
    """Return the trained weights of an objective."""
    return (parameter for parameter in objective.module.parameters() if parameter.requires_grad)


def _is_inner(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and not any(part in name for part in OUTER)


@final
class _Together(Optimizer):
    """Several optimisers as one: they share groups, whose learning rate is set from outside, and state."""

    def __init__(self, parts: list[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for part in self._parts:
            part.step()
