"""llama.cpp's library through its Python bindings: a file, and a context that reads rows of tokens.

The bindings are the package llama-cpp-python; only its low-level module is used, whose functions are those of
`llama.h`. What the library says is not printed; the first line ends in the sentence of an error.

    a row               token 17, position 5, sequences (0, 3): read once, seen by both sequences

A row belongs to one sequence or several. It sees the positions of its first sequence up to its own.

Example: `Model.load(file).context(...)` and then `context.read([Row(1, 0, (0,))])` gives logits [1, V].
"""

import ctypes
import logging
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, final
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.env import num_kernel_threads, num_usable_cores
from outrider.errors import CapacityError, CheckpointError, ConfigError, RunError, said

__all__ = ["MOST_SEQUENCES", "Context", "Model", "Observer", "Row", "library"]

log = logging.getLogger(__name__)

INSTALL: Final = "run pip install 'outrider[llama]', which compiles it"
MOST_SEQUENCES: Final = 256
"""Sequences that a context can tell apart."""
WARNING, ERROR, CONTINUED = 3, 4, 5
"""Levels of what the library says."""
LONGEST: Final = 300

NDBytes = NDArray[np.uint8]
NDFloats = NDArray[np.float32]

_said: deque[str] = deque(maxlen=8)
_kept: list[Any] = []
"""Functions that the library calls, kept alive."""


class Row(NamedTuple):
    """A token to read, its position, and the sequences that it belongs to."""

    token: int
    position: int
    sequences: tuple[int, ...]


class Observer(Protocol):
    """A reader of numbers inside a graph while it is computed."""

    def wants(self, name: str) -> bool:
        """Return whether to show the tensor of this name; each one that is shown costs time."""
        ...

    def take(self, name: str, numbers: NDFloats) -> None:
        """Receive such a tensor, one row for each row of the call."""
        ...


@cache
def library() -> Any:
    """Return the bindings' module.

    Raises:
        ConfigError: if they are not installed, or their library does not load.
    """
    try:
        module = import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise ConfigError(f"backend='llama_cpp' needs the package {error.name or 'llama_cpp'}; {INSTALL}") from None
    except Exception as error:  # the bindings raise what they like where their library is missing
        raise ConfigError(f"llama-cpp-python does not load ({said(error)}); {INSTALL} for this machine") from error
    _kept.append(_listener(module))
    module.llama_log_set(_kept[-1], None)
    module.llama_backend_init()
    return module


def _listener(module: Any) -> Any:
    """Return the callback that remembers warnings and errors."""

    def hear(level: int, text: bytes | None, _: Any) -> None:
        line = (text or b"").decode("utf-8", "replace").strip().partition("\n")[0]
        if line and level in (WARNING, ERROR):
            _said.append(line)
            log.debug("llama.cpp: %s", line)

    return module.llama_log_callback(hear)


def _callback(module: Any, observer: Observer, raised: list[BaseException]) -> Any:
    """Return the function that the library calls for each tensor: first to ask, then to show.

    An exception in it, an interrupt above all, would be lost in the library; it goes to `raised`.
    """
    name_of, size_of, copy = (
        getattr(module._lib, f"ggml_{name}") for name in ("get_name", "nbytes", "backend_tensor_get")
    )
    name_of.argtypes, name_of.restype = [ctypes.c_void_p], ctypes.c_char_p
    size_of.argtypes, size_of.restype = [ctypes.c_void_p], ctypes.c_size_t
    copy.argtypes, copy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None

    def see(tensor: int, asks: bool, _: Any) -> bool:
        try:
            name = name_of(tensor).decode("utf-8", "replace")
            if asks:
                return observer.wants(name)
            numbers = np.empty(size_of(tensor) // 4, dtype=np.float32)
            copy(tensor, numbers.ctypes.data, 0, numbers.nbytes)
            observer.take(name, numbers)
        except BaseException as error:
            raised.append(error)
        return True

    return module.ggml_backend_sched_eval_callback(see)


def _last_words() -> str:
    """Return the first line that the library said of a call that failed; later ones only say that it did."""
    return _said[0][:LONGEST] if _said else "no reason given"


@final
class Model:
    """A loaded file: the weights, which contexts share."""

    def __init__(self, handle: Any, file: Path) -> None:
        module = library()
        self.handle = handle
        self.file = file
        self.vocab = module.llama_model_get_vocab(handle)
        self.vocab_size = int(module.llama_vocab_n_tokens(self.vocab))
        self.hidden_size = int(module.llama_model_n_embd(handle))
        self.num_layers = int(module.llama_model_n_layer(handle))
        self.max_positions = int(module.llama_model_n_ctx_train(handle))
        self.num_bytes = int(module.llama_model_size(handle))
        self.has_state = bool(module.llama_model_is_recurrent(handle) or module.llama_model_is_hybrid(handle))
        finalize(self, module.llama_model_free, handle)

    @classmethod
    def load(cls, file: Path) -> "Model":
        """Load a file, all of whose parts lie beside it.

        Raises:
            CheckpointError: if llama.cpp cannot load it, or it is no model that writes text.
            ConfigError: if the bindings are not installed.
        """
        module = library()
        params = module.llama_model_default_params()
        params.n_gpu_layers = 0
        params.check_tensors = True
        _said.clear()
        handle = module.llama_model_load_from_file(str(file).encode(), params)
        if not handle:
            remedy = "download it again, or update llama-cpp-python if the model is newer"
            raise CheckpointError(f"llama.cpp cannot load {file} ({_first_error()}); {remedy}")
        model = cls(handle, file)
        if module.llama_model_has_encoder(handle) or not module.llama_model_has_decoder(handle):
            raise CheckpointError(
                f"{file} has an encoder, and speculative decoding needs a decoder; give another model"
            )
        if module.llama_model_is_diffusion(handle):
            raise CheckpointError(f"{file} is a diffusion model, which does not decode token by token; give another")
        return model

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, the file's own first."""
        module = library()
        first = [module.llama_vocab_eos(self.vocab), module.llama_vocab_eot(self.vocab)]
        others = [token for token in range(self.vocab_size) if module.llama_vocab_is_eog(self.vocab, token)]
        return tuple(dict.fromkeys(token for token in [*first, *others] if token in others))


def _first_error() -> str:
    """Return the first thing that went wrong: later lines only say that loading failed."""
    lines = [line for line in _said if "failed to load model" not in line]
    return (lines[0] if lines else _last_words())[:LONGEST]


@final
class Context:
    """The memory of some sequences, and the calls that read rows into it.

    Args:
        num_cells: positions of all sequences together.
        num_sequences: sequences; at most 256, and each takes memory where a state is recurrent.
        most_rows: rows of one call.
        most_outputs: rows of one call whose logits are wanted.
        exact: keys and values in fp32, and attention that sums in it; else as llama.cpp does by default.
        observer: asked about each tensor of the graph; None computes the graph in one piece.

    Raises:
        CapacityError: if its memory cannot be allocated.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_cells: int,
        num_sequences: int,
        most_rows: int,
        most_outputs: int,
        exact: bool = False,
        observer: Observer | None = None,
    ) -> None:
        module = library()
        params = module.llama_context_default_params()
        params.n_ctx = num_cells
        params.n_batch = params.n_ubatch = most_rows
        params.n_outputs_max = max(most_outputs, num_sequences)  # the library keeps room for one of each
        params.n_outputs_max_per_seq = 0
        params.n_seq_max = min(num_sequences, MOST_SEQUENCES)
        params.n_threads = params.n_threads_batch = num_kernel_threads() or num_usable_cores()
        params.swa_full = True  # a window's old positions are needed again after a rejected draft
        params.kv_unified = True  # sequences share the cells of their common beginning
        params.no_perf = True
        if exact:
            params.type_k = params.type_v = module.GGML_TYPE_F32
            params.flash_attn_type = module.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._raised: list[BaseException] = []
        self._observed = None if observer is None else _callback(module, observer, self._raised)
        if self._observed is not None:
            params.cb_eval = self._observed
        self.model = model
        self.most_rows = most_rows
        self.num_sequences = min(num_sequences, MOST_SEQUENCES)
        _said.clear()
        handle = module.llama_init_from_model(model.handle, params)
        if not handle:
            raise CapacityError(
                f"llama.cpp cannot open {num_cells} positions of {model.file.name} ({_last_words()});"
                " use fewer slots (max_batch) or shorter texts (max_len)"
            )
        self._handle = handle
        self._module = module
        self.memory = module.llama_get_memory(handle)
        finalize(self, module.llama_free, handle)

    def read(self, rows: Sequence[Row], *, wants: bool = True) -> Tensor:
        """Read rows, and return logits [R, V] of all rows where they are wanted, else an empty tensor.

        Raises:
            CapacityError: if there is no memory for them.
            RunError: if llama.cpp fails.
        """
        batch, kept = self._batch(rows, wants)
        _said.clear()
        code = self._module.llama_decode(self._handle, batch)
        del kept
        if self._raised:
            first = self._raised[0]
            self._raised.clear()
            raise first
        if code == 1:
            raise CapacityError(f"llama.cpp has no room for {len(rows)} rows; use fewer slots (max_batch)")
        if code:
            raise RunError(f"llama.cpp fails to read {len(rows)} rows (code {code}: {_last_words()}); use another file")
        if not wants:
            return torch.empty(0, self.model.vocab_size)
        found = self._module.llama_get_logits(self._handle)
        logits_RV = np.ctypeslib.as_array(found, shape=(len(rows), self.model.vocab_size))
        return torch.from_numpy(logits_RV.copy())  # the next call may move the library's own

    def _batch(self, rows: Sequence[Row], wants: bool) -> tuple[Any, list[Any]]:
        """Return the call's argument, and the arrays that it points into."""
        tokens = np.array([row.token for row in rows], dtype=np.int32)
        positions = np.array([row.position for row in rows], dtype=np.int32)
        counts = np.array([len(row.sequences) for row in rows], dtype=np.int32)
        flat = np.array([sequence for row in rows for sequence in row.sequences], dtype=np.int32)
        starts = flat.ctypes.data + 4 * (np.cumsum(counts, dtype=np.int64) - counts)
        outputs = np.full(len(rows), wants, dtype=np.int8)
        batch = self._module.llama_batch()
        batch.n_tokens = len(rows)
        for name, array in (("token", tokens), ("pos", positions), ("n_seq_id", counts), ("logits", outputs)):
            setattr(batch, name, array.ctypes.data_as(dict(batch._fields_)[name]))
        batch.seq_id = starts.ctypes.data_as(dict(batch._fields_)["seq_id"])
        return batch, [tokens, positions, counts, flat, starts, outputs]

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Remove a sequence's positions from `start` on; return False where its state cannot be cut."""
        return bool(self._module.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def share(self, source: int, target: int, start: int = 0, stop: int = -1) -> None:
        """Let `target` have the positions of `source` too, without copying them."""
        self._module.llama_memory_seq_cp(self.memory, source, target, start, stop)

    def clear(self) -> None:
        """Forget all sequences, and zero their memory."""
        self._module.llama_memory_clear(self.memory, True)

    def stored_bytes(self, sequence: int) -> int:
        """Return the bytes that a sequence's memory takes when it is stored."""
        return int(self._module.llama_state_seq_get_size(self._handle, sequence))

    def stored(self, sequence: int) -> NDBytes:
        """Return a copy of a sequence's memory."""
        data = np.empty(self.stored_bytes(sequence), dtype=np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        size = self._module.llama_state_seq_get_data(self._handle, pointer, data.size, sequence)
        return data[:size]

    def restore(self, sequence: int, data: NDBytes) -> None:
        """Fill an empty sequence with such a copy.

        Raises:
            RunError: if llama.cpp refuses it.
        """
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not self._module.llama_state_seq_set_data(self._handle, pointer, data.size, sequence):
            raise RunError(f"llama.cpp cannot restore a kept text ({_last_words()}); use prefix_cache_bytes=0")
