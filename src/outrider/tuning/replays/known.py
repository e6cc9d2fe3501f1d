"""The target as a text that is known already: every forward says what the target wrote, and costs next to nothing.

A target's text does not depend on what was drafted. So once the answers are known, any proposer can be run along them
in the real engine without the target: `ReplayTarget` answers each forward with logits whose largest entry is the next
token of the known text, and with the features that the target had at that place.

    text "a b c d e", root b at position 1, draft "c x": rows say c, d (and, behind the wrong x, anything)

Rows off the text are never read: a verifier walks down while the target's own token is a child.

Shapes: B slots, M rows, V vocabulary, F features, T tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.draft import Draft
from outrider.target import Forward, SharedWeights, Target, TargetSession, TargetSpec

__all__ = ["KnownText", "ReplayTarget"]

SURE: Final = 1e4
"""Logit of the next token beside zeros: certain at every temperature up to 100."""


@dataclass(frozen=True, eq=False)
class KnownText:
    """A prompt with its answer, and the states that the target had behind each token but the last.

    states_TLE   one state for each of the kept feature layers; None where no drafter reads any
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    states_TLE: Tensor | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt, *self.answer)


@final
class ReplayTarget(Target):
    """A target that writes known texts.

    Args:
        target: the real one; its weights are not used.
        layers: feature layers whose states the texts hold, in their order.
    """

    def __init__(self, target: Target, texts: Sequence[KnownText], layers: Sequence[int]) -> None:
        self._target = target
        self.texts: Mapping[tuple[int, ...], KnownText] = {text.prompt: text for text in texts}
        self.layers = tuple(layers)

    @property
    def spec(self) -> TargetSpec:
        return self._target.spec

    @property
    def tokenizer(self) -> Any:
        return self._target.tokenizer

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        return CachePlan(
            num_layers=0,
            num_slots=num_slots,
            num_kv_heads=1,
            head_dim=1,
            capacity=capacity,
            tail=tail,
            dtype=self.spec.dtype,
        )

    def open(self, plan: CachePlan, feature_layers: tuple[int, ...] = ()) -> TargetSession:
        return _ReplaySession(self, plan, [self.layers.index(layer) for layer in feature_layers])

    def decoding_threads(self) -> AbstractContextManager[None]:
        return self._target.decoding_threads()

    def project(self, states_RE: Tensor) -> Tensor:
        return self._target.project(states_RE)

    def shared_weights(self) -> SharedWeights:
        return self._target.shared_weights()


@final
class _ReplaySession(TargetSession):
    """Slots and the texts in them. A slot's text is found when its root is known, which ends its prompt."""

    def __init__(self, target: ReplayTarget, plan: CachePlan, columns: Sequence[int]) -> None:
        self._target = target
        self._columns = list(columns)
        self._cache = KVCache(plan, target.spec.device)
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._texts: dict[int, KnownText] = {}
        shape = (plan.num_slots, plan.tail, target.spec.vocab_size)
        self._logits_BMV = torch.zeros(shape, dtype=torch.float32, device=target.spec.device)
        self._set: list[tuple[int, int, int]] = []

    @property
    def cache(self) -> KVCache:
        return self._cache

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for slot, prompt in zip(slots, prompts, strict=True):
            start = self._cache.lengths[slot]  # a prompt comes in pieces
            self._prompts[slot] = (*(self._prompts[slot] if start else ()), *prompt)
            self._texts.pop(slot, None)
            self._cache.extend([slot], [len(prompt)])
            found.append(self._states(self._beginning(slot), range(start, start + len(prompt))))
        return found

    def forward(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Forward:
        num_rows = draft.num_rows
        for place, row, token in self._set:
            self._logits_BMV[place, row, token] = 0.0
        self._set, states = [], []
        for place, (slot, root, tree) in enumerate(zip(slots, roots, draft.trees, strict=True)):
            text, length = self._text(slot, root), self._cache.lengths[slot]
            depths = [0, *tree.depths()]
            for row, depth in enumerate(depths):
                after = length + depth + 1
                self._set.append((place, row, text.tokens[after] if after < len(text.tokens) else 0))
            padded = [*depths, *[0] * (num_rows - len(depths))]
            states.append(self._states(text, [length + depth for depth in padded]))
        for place, row, token in self._set:
            self._logits_BMV[place, row, token] = SURE
        features = [one for one in states if one is not None]
        return Forward(self._logits_BMV[: len(slots), :num_rows], torch.stack(features) if features else None)

    def states(self, slots: Sequence[int], roots: Sequence[int], draft: Draft) -> Tensor:
        raise AssertionError("a known text has no states after the final norm of other tokens")

    def _beginning(self, slot: int) -> KnownText:
        """Return a text that begins as a slot's prompt, whose last token is not known yet."""
        prompt = self._prompts[slot]
        return next(text for text in self._target.texts.values() if text.prompt[:-1][: len(prompt)] == prompt)

    def _text(self, slot: int, root: int) -> KnownText:
        if slot not in self._texts:
            self._texts[slot] = self._target.texts[(*self._prompts[slot], root)]
        return self._texts[slot]

    def _states(self, text: KnownText, positions: Sequence[int]) -> Tensor | None:
        """Return the features at these positions, [R, F]; behind the end of the text, its last one."""
        if not self._columns:
            return None
        assert text.states_TLE is not None, "the states were kept"
        last = len(text.states_TLE) - 1
        rows_RLE = text.states_TLE[[min(place, last) for place in positions]]
        return rows_RLE[:, self._columns].flatten(1)
