"""A target described by its files, whose weights are loaded on first use.

With a server as the engine, this process needs the target's tokenizer, context limit and end-of-text tokens, and its
weights only to export a head. So a benchmark of a 70B model behind vLLM loads no second copy.

Example: `DeferredTarget("smollm2-135m", dtype="bfloat16").spec.vocab_size` reads `config.json` and no weights.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from outrider.cache import CachePlan
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.foreign import reading
from outrider.formats.gguf.stored import stored_weights
from outrider.formats.locate import locate
from outrider.formats.quantised import quantised_weights
from outrider.formats.tokenizer import load_tokenizer
from outrider.models.weight_kinds import MADE_KINDS, WeightsChoice
from outrider.ops.quantised import kinds_of
from outrider.target import SharedWeights, Target, TargetSession, TargetSpec
from outrider.targets import load_target
from outrider.targets.placing import QUANTISED_WITH, dtype_named, stored_file, weights_named

__all__ = ["DeferredTarget", "kinds_from_files"]


@final
class DeferredTarget(Target):
    """The files of a model, loaded on the CPU on first use.

    Raises:
        CheckpointError: if files are missing or incomplete.
        ConfigError: for an unknown dtype or kind of weights.
    """

    def __init__(
        self, name: str, *, dtype: str, weights: WeightsChoice = "stored", trust_remote_code: bool = False
    ) -> None:
        numbers, self.weights = dtype_named(dtype), weights_named(weights)
        self.name = name
        self.dtype = dtype
        self.directory = locate(name, with_code=trust_remote_code)
        self._tokenizer = load_tokenizer(self.directory, trust_remote_code)
        kinds = kinds_from_files(name, self.weights, numbers, self.directory)
        self._spec = _described(name, self.directory, numbers, kinds, trust_remote_code)

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @cached_property
    def loaded(self) -> Target:
        """The loaded target."""
        trusts = self._spec.trusts_code
        return load_target(self.name, dtype=self.dtype, weights=self.weights, device="cpu", trust_remote_code=trusts)

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        return self.loaded.plan(num_slots, capacity, tail)

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> TargetSession:
        return self.loaded.open(plan, feature_layers)

    def decoding_threads(self) -> AbstractContextManager[None]:
        return self.loaded.decoding_threads() if "loaded" in self.__dict__ else nullcontext()

    def project(self, states_RE: Tensor) -> Tensor:
        return self.loaded.project(states_RE)

    def shared_weights(self) -> SharedWeights:
        return self.loaded.shared_weights()


def kinds_from_files(name: str, weights: WeightsChoice, dtype: torch.dtype, directory: Path) -> str:
    """Return the kinds of the weights that `load_target` gives on the CPU, without loading them.

    Raises:
        ConfigError: for int8 or int4 with files that are quantised already, or with another dtype.
        CheckpointError: if the files cannot be read as stored.
    """
    if weights == "bf16" or (weights == "stored" and dtype not in QUANTISED_WITH):
        return str(dtype).removeprefix("torch.")
    if dtype not in QUANTISED_WITH:
        raise ConfigError(f"weights={weights!r} needs dtype bfloat16 or float32, not {dtype}; leave one of them out")
    file = stored_file(name, weights)
    if weights != "stored":
        return MADE_KINDS[weights]
    stored = stored_weights(file) if file is not None else quantised_weights(directory, "stored")
    return str(dtype).removeprefix("torch.") if stored is None else kinds_of(stored)


def _described(name: str, directory: Path, dtype: torch.dtype, kinds: str, trusts: bool) -> TargetSpec:
    with reading(f"the config in {directory} cannot be read", directory, trusts, "download the model again"):
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trusts
        ).get_text_config()
        generation = directory / "generation_config.json"
        read = GenerationConfig.from_pretrained
        ends = read(str(directory), local_files_only=True).eos_token_id if generation.is_file() else None
    # without a context limit no cache can be planned
    max_positions = getattr(config, "max_position_embeddings", None)
    if not max_positions:
        raise CheckpointError(f"the config of {name} has no max_position_embeddings; add its context limit")
    return TargetSpec(
        name=name,
        source=str(directory),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        max_positions=int(max_positions),
        eos_ids=tuple(dict.fromkeys(_ids(ends) + _ids(getattr(config, "eos_token_id", None)))),
        dtype=dtype,
        device=torch.device("cpu"),
        weight_bytes=sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        batch_invariant=False,
        weights=kinds,
        trusts_code=trusts,
    )


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
