"""What tests need, ours and yours: tiny targets, proposers whose acceptance is known, and the contract.

    tiny_target      a random two-layer decoder in float64: real logits, milliseconds
    Oracle           drafts exactly what the target will say: accepted to full depth
    Adversary        drafts what the target will not say: never accepted
    Scripted         drafts what a function tells it to
    assert_lossless  the text with a proposer equals the text without

A third-party method runs the same checks as ours: `outrider.testing.contract.check_contract(MyProposer)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.engine import Completion, Engine
from outrider.errors import LosslessnessError
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.proposer import Commit, Proposer, Room, Session, SessionPlan
from outrider.proposers.none import NoProposer
from outrider.sampling import Sampling
from outrider.target import Target
from outrider.targets.native import NativeTarget

__all__ = ["Adversary", "Oracle", "Scripted", "assert_lossless", "tiny_spec", "tiny_target", "tiny_weights"]


def tiny_spec(vocab_size: int = 31, max_positions: int = 96, **changes: Any) -> DecoderSpec:
    """The shape of a tiny decoder; keyword arguments replace fields of `DecoderSpec`."""
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": max_positions,
        "rope": RopeSpec(),
        "eos_ids": (vocab_size - 1,),
    }
    fields |= changes
    return DecoderSpec(windows=fields.pop("windows", (None,) * fields["num_layers"]), **fields)


def tiny_weights(spec: DecoderSpec, seed: int) -> dict[str, Tensor]:
    """Random float64 weights; larger than usual, so that the distribution is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = 1 + 0.1 * noise if name.endswith("norm.weight") else noise * (0.7 if len(shape) == 2 else 0.1)
    return weights


def tiny_target(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, spec: DecoderSpec | None = None, **changes: Any
) -> NativeTarget:
    """A random decoder without a tokenizer; the last token id ends a text."""
    spec = spec or tiny_spec(**changes)
    return NativeTarget.from_weights(spec, tiny_weights(spec, seed), f"tiny-{seed}", dtype)


@final
@dataclass(frozen=True)
class ScriptedConfig:
    """Scripted proposers are made in code, not by name."""


Script = Callable[[Sequence[int], Sampling, Room], Tree]


@final
class Scripted(Proposer):
    """Drafts `script(tokens, sampling, room)`, where `tokens` is all that is committed, the root last."""

    Config = ScriptedConfig

    def __init__(self, script: Script, max_nodes: int = 4, taps: tuple[int, ...] = ()) -> None:
        self.script = script
        self._max_nodes = max_nodes
        self._taps = taps

    @classmethod
    def load(cls, target: Target, config: ScriptedConfig) -> Self:
        return cls.example(target, 0)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        return cls(lambda tokens, sampling, room: Tree([], []))

    @property
    def max_nodes(self) -> int:
        return self._max_nodes

    @property
    def taps(self) -> tuple[int, ...]:
        return self._taps

    @property
    def learns(self) -> bool:
        return False

    @property
    def num_bytes(self) -> int:
        return 0

    def open(self, plan: SessionPlan) -> "ScriptedSession":
        return ScriptedSession(self.script, plan)


@final
class ScriptedSession(Session):
    """Knows the text of every slot; keeps the features it was given for tests to look at."""

    def __init__(self, script: Script, plan: SessionPlan) -> None:
        self.script = script
        self.plan = plan
        self.tokens: dict[int, list[int]] = {}
        self.samplings: dict[int, Sampling] = {}
        self.features: dict[int, list[Tensor]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.tokens[slot] = list(tokens)
        self.samplings[slot] = sampling
        self.features[slot] = [] if features_TF is None else [features_TF]

    def propose(self, slots: Sequence[int], rooms: Sequence[Room]) -> Draft:
        trees = [
            self.script(self.tokens[slot], self.samplings[slot], room) if room.num_nodes else Tree([], [])
            for slot, room in zip(slots, rooms, strict=True)
        ]
        return Draft.of_trees(trees, self.plan.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for commit in commits:
            self.tokens[commit.slot] += commit.tokens
            if features_BMF is not None:
                self.features[commit.slot].append(features_BMF[commit.index, commit.rows])

    def release(self, slot: int) -> None:
        del self.tokens[slot], self.samplings[slot], self.features[slot]

    def reset(self) -> None:
        """Nothing is kept across requests."""

    @property
    def num_bytes(self) -> int:
        return 0


class Oracle:
    """Knows the target's text beforehand: decode plainly once, then draft from the transcript."""

    def __init__(self, target: Target, depth: int = 4) -> None:
        self.target = target
        self.depth = depth

    def continuation(self, tokens: Sequence[int], sampling: Sampling, length: int) -> list[int]:
        """The target's own next tokens, end-of-text tokens ignored."""
        room = self.target.spec.max_positions - len(tokens)
        if min(length, room) < 1:
            return []
        engine = Engine(self.target, NoProposer())
        settings: dict[str, Any] = {"sampling": sampling, "ignore_eos": True, "max_new_tokens": min(length, room)}
        return list(engine.generate([list(tokens)], **settings)[0].tokens)

    def script(self, tokens: Sequence[int], sampling: Sampling, room: Room) -> Tree:
        return Tree.chain(self.continuation(tokens, sampling, min(room.num_nodes, room.max_depth, self.depth)))

    def proposer(self) -> Scripted:
        return Scripted(self.script, self.depth)


class Adversary:
    """Drafts, at every position, a token that the target does not choose there."""

    def __init__(self, target: Target, depth: int = 4) -> None:
        self.oracle = Oracle(target, depth)

    def script(self, tokens: Sequence[int], sampling: Sampling, room: Room) -> Tree:
        right = self.oracle.script(tokens, sampling, room).tokens
        return Tree.chain([(token + 1) % self.oracle.target.spec.vocab_size for token in right])

    def proposer(self) -> Scripted:
        return Scripted(self.script, self.oracle.depth)


def assert_lossless(
    target: Target, proposer: Proposer, prompts: Sequence[Sequence[int]], *, max_batch: int = 1, **settings: Any
) -> list[Completion]:
    """Decode with and without the proposer, and compare token by token.

    Raises:
        LosslessnessError: naming the first difference.
    """
    plain = Engine(target, NoProposer()).generate(prompts, **settings)
    drafted = Engine(target, proposer, max_batch=max_batch).generate(prompts, **settings)
    for index, (want, got) in enumerate(zip(plain, drafted, strict=True)):
        if want.tokens != got.tokens or want.finished != got.finished:
            at = next((i for i, (a, b) in enumerate(zip(want.tokens, got.tokens, strict=False)) if a != b), "the end")
            raise LosslessnessError(f"prompt {index} differs from plain decoding at answer token {at}")
    return drafted
