"""Hidden states out of llama.cpp's graph, for heads that read the target's.

llama.cpp names the tensors of its graphs, the same way for almost every architecture:

    feature layer k       l_out-(k - 1)       the residual stream before layer k, 1 <= k < num_layers
    num_layers            result_norm         after the final norm
    num_layers + 1        l_out-(last)        before it

The last two hold only rows whose logits were asked for. Each tensor that is shown interrupts the computation once.

Example: a model of 30 layers and the feature layers (2, 15, 27) show l_out-1, l_out-14 and l_out-26.

Shapes: R rows of a call, E hidden size, F features.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.errors import ConfigError
from outrider.targets.llama.binding import Model, Observer

__all__ = ["StateReader"]


@final
class StateReader(Observer):
    """The states at some feature layers, collected while rows are read.

    Raises:
        ConfigError: for a feature layer that the graph does not name.
    """

    def __init__(self, model: Model, feature_layers: Sequence[int], dtype: torch.dtype) -> None:
        last = model.num_layers
        if min(feature_layers) < 1:
            raise ConfigError("this head reads the embeddings (feature layer 0), which llama.cpp does not show")
        names = {last: "result_norm", last + 1: f"l_out-{last - 1}"}
        self.names = [names.get(layer, f"l_out-{layer - 1}") for layer in feature_layers]
        self.needs_outputs = max(feature_layers) >= last
        self.hidden_size = model.hidden_size
        self.dtype = dtype
        self._found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}

    @property
    def width(self) -> int:
        """F."""
        return len(self.names) * self.hidden_size

    def wants(self, name: str) -> bool:
        return name in self._found

    def take(self, name: str, numbers: NDArray[np.float32]) -> None:
        self._found[name].append(numbers.reshape(-1, self.hidden_size))

    def collect(self, num_rows: int) -> Tensor:
        """Return the features [R, F] of the rows that were read since the last call.

        Raises:
            ConfigError: if the graph of this architecture has no such tensor.
        """
        states: list[Tensor] = []
        for name, found in self._found.items():
            count = sum(map(len, found))
            if count != num_rows:
                raise ConfigError(
                    f"llama.cpp shows {count} rows of {name} for {num_rows} tokens of this architecture, so heads that"
                    " read its states do not run; use ngram, suffix or a draft model"
                )
            states.append(torch.from_numpy(np.concatenate(found)).to(self.dtype))
            found.clear()
        by_name = dict(zip(self._found, states, strict=True))
        return torch.cat([by_name[name] for name in self.names], dim=1)

    def drop(self) -> None:
        """Forget what was collected."""
        for found in self._found.values():
            found.clear()
