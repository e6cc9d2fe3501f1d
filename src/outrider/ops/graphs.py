"""Graphs: a function over fixed buffers, recorded once and repeated without Python.

On a GPU a decoder layer is a dozen kernels of a few microseconds, and launching each from Python costs as much as it
computes. A CUDA graph holds the launches of one call and repeats them at once, on the same addresses: inputs are copied
into the buffers that the function read, results are found in the tensors that it made. The function must not bring
numbers to the host, build tensors from host numbers, or use shapes that depend on data.

    graphs = GraphPool("cuda")
    twice = graphs.record(lambda: x * 2)      x is a buffer that stays
    x.copy_(new); twice.replay()              twice.result holds 2 * new until the next replay

Without a GPU `EagerGraph` does the same: it records the operations that PyTorch ran, with the same tensors, and repeats
those. Python does not run again, so whatever the function took from the host is frozen as in a CUDA graph, and what a
capture forbids raises. A function that works as an EagerGraph works in a CUDA graph; this is how the GPU path is tested
without a GPU.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from outrider.env import cuda_graphs

__all__ = ["CudaGraph", "EagerGraph", "Graph", "GraphPool", "alone", "default_graph_pool"]

Made = TypeVar("Made")

WARM_UPS = 2
"""Calls before a capture: libraries choose their kernels, kernels are compiled, lazy tables are made."""

_ALONE = threading.RLock()

HOST = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount")
"""Operations that a capture forbids: they copy numbers to or from the host, or derive shapes from them."""


@contextmanager
def alone() -> Iterator[None]:
    """Hold a lock that keeps other threads off the GPU: a thread that waits for the device breaks a capture.

    Threads launch on one stream anyway, so taking turns costs little.
    """
    with _ALONE:
        yield


class Graph(ABC, Generic[Made]):
    """One recorded call."""

    @property
    @abstractmethod
    def result(self) -> Made:
        """The result of the function; its tensors hold the results of the last replay."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Device memory in bytes."""

    @abstractmethod
    def replay(self) -> None:
        """Repeat the call on the buffers' current content."""


@final
class CudaGraph(Graph[Made]):
    """A CUDA graph. All graphs of a pool share the memory between their inputs and results."""

    def __init__(self, function: Callable[[], Made], pool: Any) -> None:
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function()
        main.wait_stream(side)
        before = torch.cuda.memory_reserved()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = function()
        self._num_bytes = max(0, torch.cuda.memory_reserved() - before)

    @property
    def result(self) -> Made:
        return self._result

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def replay(self) -> None:
        self._graph.replay()


class _Call(NamedTuple):
    """One operation; `made` are the new tensors it gave (None where it gave a view or an argument)."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Tensor | None]


@final
class EagerGraph(Graph[Made]):
    """The operations of one call, repeated one by one. For tests, on any device."""

    def __init__(self, function: Callable[[], Made]) -> None:
        function()  # builds lazy tables before the recording, as the warm-up of a CUDA graph does
        self._calls: list[_Call] = []
        with _OpRecorder(self._calls):
            self._result = function()

    @property
    def result(self) -> Made:
        return self._result

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for call in self._calls for tensor in call.made if tensor is not None)

    @property
    def num_operations(self) -> int:
        """Operations that compute or write; views are not counted."""
        return len(self._calls)

    @torch.inference_mode()
    def replay(self) -> None:
        for call in self._calls:
            again = tree_leaves(call.operation(*call.args, **call.kwargs))
            for old, new in zip(call.made, again, strict=True):
                if old is not None:
                    old.copy_(new)


class _OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations and refuses those that a capture refuses."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        if name in HOST or _picks_by_truth(name, args):
            raise RuntimeError(f"operation '{name}' waits for the host, which a recorded function must not")
        given = operation(*args, **kwargs)
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x if isinstance(x, Tensor) and _storage(x) not in known else None for x in tree_leaves(given)]
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in operation._schema.arguments)
        if writes or any(x is not None for x in made):
            self._calls.append(_Call(operation, args, kwargs, made))
        return given


def _picks_by_truth(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether rows are selected by a bool tensor: their number depends on data."""
    indices = tree_leaves(args[1]) if name.startswith(("index", "_index_put_impl_")) and len(args) > 1 else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


@final
class GraphPool:
    """The graphs of one device, with one memory pool."""

    def __init__(self, device: torch.device | str) -> None:
        self._is_cuda = torch.device(device).type == "cuda"
        self._pool: Any = None
        self._graphs: list[Graph[Any]] = []

    def record(self, function: Callable[[], Made]) -> Graph[Made]:
        """Call the function to warm up, then record it. Its arguments are the buffers in its closure."""
        with alone():
            if self._is_cuda and self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph: Graph[Made] = CudaGraph(function, self._pool) if self._is_cuda else EagerGraph(function)
            self._graphs.append(graph)
            return graph

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    @property
    def num_bytes(self) -> int:
        """Device memory of all graphs, the pool included."""
        return sum(graph.num_bytes for graph in self._graphs)


@lru_cache
def _shared(device: torch.device) -> GraphPool:
    return GraphPool(device)


def default_graph_pool(device: torch.device | str) -> GraphPool | None:
    """Return the graphs of a GPU, shared by everything that runs there.

    Returns None on other devices, or with OUTRIDER_CUDA_GRAPHS=0.
    """
    device = torch.device(device)
    is_wanted = device.type == "cuda" and cuda_graphs()
    return _shared(device) if is_wanted else None
