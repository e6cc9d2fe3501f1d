"""The target that signs a data set: its name, fingerprint, tokenizer and limits, with or without its weights.

Where a server does the writing, the target is needed here only for its tokenizer and to sign the data, so of its
weights nothing but the embedding is read.

Example: `Identity.from_files("Qwen/Qwen2.5-7B-Instruct", "bfloat16").max_positions` is 32768.
"""

from dataclasses import dataclass
from typing import Any, Self

from outrider.errors import CheckpointError, ConfigError
from outrider.formats.locate import locate
from outrider.formats.store import fingerprint, fingerprint_of
from outrider.formats.tokenizer import load_tokenizer
from outrider.formats.weights import EMBEDDING, read_weights
from outrider.models.spec import DecoderSpec
from outrider.models.weight_kinds import WeightsChoice
from outrider.records.provenance import template_hash
from outrider.target import Target
from outrider.targets.deferred import kinds_from_files
from outrider.targets.placing import dtype_named, weights_named

__all__ = ["Identity"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """A target as a data set knows it; `weights` lists the kinds of its weights, as "Q4_1, Q8_0"."""

    name: str
    fingerprint: str
    weights: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    max_positions: int
    tokenizer: Any

    @classmethod
    def of(cls, target: Target) -> Self:
        """Identify a target in memory.

        Raises:
            ConfigError: if it has no tokenizer.
        """
        if target.tokenizer is None:
            raise ConfigError(
                f"{target.spec.name} has no tokenizer, so it cannot read prompts; add its tokenizer files"
            )
        spec = target.spec
        return cls(
            name=spec.name,
            fingerprint=fingerprint(target),
            weights=spec.weights,
            vocab_size=spec.vocab_size,
            eos_ids=spec.eos_ids,
            max_positions=spec.max_positions,
            tokenizer=target.tokenizer,
        )

    @classmethod
    def from_files(
        cls, name: str, dtype: str, weights: WeightsChoice = "stored", trust_remote_code: bool = False
    ) -> Self:
        """Identify a directory, hub id or `smollm2-135m`; read its embedding as `dtype`.

        Args:
            weights: the kind that the writer runs, as `load_target` takes it.

        Raises:
            CheckpointError: if it cannot be found or read.
            ConfigError: if it has no tokenizer, for an unknown dtype or kind of weights, and for a kind that does not
                fit its files.
        """
        numbers, kind = dtype_named(dtype), weights_named(weights)
        directory = locate(name, with_code=trust_remote_code)
        kinds = kinds_from_files(name, kind, numbers, directory)
        tokenizer = load_tokenizer(directory, trust_remote_code)
        if tokenizer is None:
            raise ConfigError(f"{name} has no tokenizer, so it cannot read prompts; add its tokenizer files")
        spec, stored = DecoderSpec.from_config_file(directory), read_weights(directory)
        if EMBEDDING not in stored:
            raise CheckpointError(f"{name} has no tensor {EMBEDDING}; leave out --endpoint to load it whole")
        return cls(
            name=name,
            fingerprint=fingerprint_of(stored[EMBEDDING].to(numbers)),
            weights=kinds,
            vocab_size=spec.vocab_size,
            eos_ids=spec.eos_ids,
            max_positions=spec.max_positions,
            tokenizer=tokenizer,
        )

    def plain(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "weights": self.weights,
            "vocab_size": self.vocab_size,
            "template_hash": template_hash(self.tokenizer),
        }
