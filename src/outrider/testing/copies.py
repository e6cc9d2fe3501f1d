"""Counting what comes back from the device.

A GPU works ahead of the host until the host asks for a number: `tolist`, `item`, `bool(tensor)`, `nonzero`, a copy to
the CPU. Each such question empties the queue, so a fast step asks once. `HostCopies` counts the questions, on tensors
of any device, so that the count can be a test where there is no GPU.

>>> with HostCopies() as copies:
...     _ = torch.tensor([1, 2]).tolist()
>>> copies.names
['tolist']
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["HostCopies"]

QUESTIONS: dict[Any, str] = {
    getattr(Tensor, name): name.strip("_")
    for name in (
        "tolist",
        "item",
        "cpu",
        "nonzero",
        "masked_select",
        "unique",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__array__",
    )
} | {torch.nonzero: "nonzero", torch.masked_select: "masked_select"}


@final
class HostCopies(TorchFunctionMode):
    """Counts while it is entered; `names` says what was asked, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in QUESTIONS:
            self.names.append(QUESTIONS[function])
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> "HostCopies":
        super().__enter__()  # type: ignore[no-untyped-call]
        return self
