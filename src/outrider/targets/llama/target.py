"""A GGUF file that llama.cpp computes, behind our interface: any architecture that it runs.

The file's weights run as llama.cpp runs them. Tokens, verification, sampling and stops are ours; from the library come
logits of every row, and hidden states where its graph names them. A row's bits depend on how many rows are read with
it, so texts are compared up to ties. Keys and values are stored in fp16, with dtype "float32" in fp32.

    spec.drafts    "trees" with keys and values of attention; "chains" where a layer keeps a recurrent state

Loading ends with a rehearsal (`rehearsal.py`).

Example: `load_target("model.gguf", backend="llama_cpp")`.

Shapes: R rows, V vocabulary, E hidden size.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any, Final, final

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from outrider.cache import CachePlan
from outrider.errors import CapacityError, CheckpointError, ConfigError, as_error
from outrider.formats.gguf.file import GgufFile, open_gguf
from outrider.formats.gguf.tokenizer import end_ids
from outrider.formats.locate import locate
from outrider.target import SharedWeights, Target, TargetSpec
from outrider.targets.llama.binding import MOST_SEQUENCES, Context, Model
from outrider.targets.llama.rehearsal import MemoryBytes, memory_bytes, rehearse
from outrider.targets.llama.sequences import AttentionMemory, Memory, RecurrentMemory
from outrider.targets.llama.session import NO_DRAFT_MODEL, LlamaCache, LlamaSession
from outrider.targets.llama.states import StateReader
from outrider.targets.prefill import prefill_rows

__all__ = ["LlamaTarget"]

CPU: Final = torch.device("cpu")
EMBEDDING, HEAD, LONG = "token_embd.weight", "output.weight", "rope_factors_long.weight"
CELLS: Final = 256
"""llama.cpp rounds the positions of a context up to a multiple of this."""
PLAIN: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@final
class LlamaTarget(Target):
    """A model of llama.cpp, its name and its tokenizer.

    Raises:
        CheckpointError: if a drafted step differs from plain decoding.
    """

    def __init__(self, model: Model, source: GgufFile, name: str, dtype: torch.dtype, tokenizer: Any) -> None:
        self.model = model
        self._source = source
        self._tokenizer = tokenizer
        self._bytes = MemoryBytes(0, 0)
        self._longest = _longest(model, source)
        self._spec = TargetSpec(
            name=name,
            source=str(model.file),
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            max_positions=self._longest or model.max_positions,
            eos_ids=_eos_ids(model, source),
            dtype=dtype,
            device=CPU,
            weight_bytes=model.num_bytes,
            batch_invariant=False,
            weights=_kinds(source),
            drafts="chains" if model.has_state else "trees",
            keeps_prefixes=not model.has_state,
        )
        self._bytes = memory_bytes(self)
        rehearse(self, partial(self._open, exact=True))

    @classmethod
    def from_file(cls, file: Path, name: str, dtype: torch.dtype) -> "LlamaTarget":
        """Load a GGUF file, or all parts of a model if `file` is one of them.

        Raises:
            CheckpointError: if it is damaged, llama.cpp cannot load it, or a drafted step differs from plain decoding.
            ConfigError: if the bindings are not installed.
        """
        from outrider.targets.llama.tokenizer import tokenizer_of

        source = open_gguf(file)
        model = Model.load(source.path)
        return cls(model, source, name, dtype, tokenizer_of(source, model))

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def checkpoint(self) -> Path | None:
        return locate(self.model.file)

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        numbers = ceil(self._bytes.per_token / (2 * self._spec.num_layers * self._spec.dtype.itemsize))
        return CachePlan(
            num_layers=self._spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=1,  # layers may differ: the bytes are measured, and spread evenly
            head_dim=numbers,
            capacity=capacity,
            tail=tail,
            dtype=self._spec.dtype,
            state_bytes=self._bytes.per_slot * (2 if self.model.has_state else 1),
        )

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> LlamaSession:
        return self._open(plan, feature_layers, exact=self._spec.dtype == torch.float32)

    def _open(self, plan: CachePlan, feature_layers: tuple[int, ...] = (), *, exact: bool) -> LlamaSession:
        num_cells = CELLS * ceil(plan.num_slots * plan.num_positions / CELLS)
        if self._longest is not None and num_cells > self._longest:
            raise CapacityError(
                f"{self._spec.name} changes its rotary frequencies beyond {self._longest} positions, and llama.cpp"
                f" counts those of all slots ({num_cells}); use fewer slots (max_batch) or shorter texts (max_len)"
            )
        most_slots = MOST_SEQUENCES // (2 if self.model.has_state else 1)
        if plan.num_slots > most_slots:
            raise CapacityError(
                f"llama.cpp tells {MOST_SEQUENCES} sequences apart, too few for {plan.num_slots} slots; use"
                f" max_batch={most_slots} or fewer"
            )
        if feature_layers and self.model.has_state:
            raise ConfigError(
                "heads that read hidden states do not run on a recurrent or hybrid model on llama.cpp, which reorders"
                " its rows; use ngram, suffix or a draft model"
            )
        reader = StateReader(self.model, feature_layers, self._spec.dtype) if feature_layers else None
        most_rows = max(prefill_rows(CPU), plan.num_slots * plan.tail)
        kind: type[Memory] = RecurrentMemory if self.model.has_state else AttentionMemory
        context = Context(
            self.model,
            num_cells=num_cells,
            num_sequences=kind.num_sequences(plan.num_slots, plan.tail),
            most_rows=most_rows,
            most_outputs=most_rows if reader is not None and reader.needs_outputs else plan.num_slots * plan.tail,
            exact=exact,
            observer=reader,
        )
        return LlamaSession(context, LlamaCache(plan, context, kind(context, plan.num_slots)), reader)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return nullcontext()

    def project(self, states_RE: Tensor) -> Tensor:
        raise ConfigError(NO_DRAFT_MODEL)

    def shared_weights(self) -> SharedWeights:
        embedding_VE = self._matrix(EMBEDDING)
        return SharedWeights(embedding_VE, self._matrix(HEAD) if HEAD in self._source.tensors else embedding_VE)

    def _matrix(self, name: str) -> Tensor:
        if name not in self._source.tensors:
            raise CheckpointError(f"{self.model.file} has no tensor {name}, which this head shares; use another head")
        tensor = self._source.tensors[name]
        with as_error(CheckpointError, f"tensor {name} of {self.model.file} cannot be widened", "use another head"):
            values = dequantize(tensor.read(), GGMLQuantizationType[tensor.kind])
        return torch.from_numpy(values.reshape(tensor.shape)).to(self._spec.dtype)


def _eos_ids(model: Model, source: GgufFile) -> tuple[int, ...]:
    """Return the tokens that end a text: those of our decoder where it reads such a vocabulary, else llama.cpp's."""
    try:
        return tuple(end_ids(source.metadata))
    except CheckpointError:
        return model.eos_ids


def _longest(model: Model, source: GgufFile) -> int | None:
    """Return the positions of one set of rotary frequencies, where a longer context takes another set (LongRoPE)."""
    if not any(name.endswith(LONG) for name in source.tensors):
        return None
    original = source.get(".rope.scaling.original_context_length", model.max_positions)
    return min(int(original), model.max_positions)


def _kinds(source: GgufFile) -> str:
    """Return the types of all matrices, those with the most numbers first: "Q4_1, Q8_0"."""
    sizes: dict[str, int] = {}
    for tensor in source.tensors.values():
        if len(tensor.shape) > 1:
            kind = PLAIN.get(tensor.kind, tensor.kind)
            sizes[kind] = sizes.get(kind, 0) + prod(tensor.shape)
    return ", ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
