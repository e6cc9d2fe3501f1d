"""Drafting with several prediction modules, one for each drafted token (DeepSeek-V3, arXiv 2412.19437, section 2.2).

Module k (from 0) reads at slot t the output of module k - 1 (module 0: the target's state) and the token x_{t+1+k},
and predicts x_{t+2+k}. Each has its own cache. With the root at position n, a proposal runs the modules in turn:

    module 0   slots c_0..n-1, all tokens known          output at n-1 -> draft 1
    module 1   slots c_1..n-1, the last reads draft 1    output at n-1 -> draft 2
    module k   slots c_k..n-1, the last k read drafts    output at n-1 -> draft k+1

A slot stays in module k's cache if its token is not a guess: t + 1 + k <= n, so afterwards c_k = n - k. Guessed slots
are read again next time; `inputs` keeps each module's pending states, from c_k on.

Example, three modules, n = 5: module 0 reads slot 4 (x5); module 1 slots 3 (x5) and 4 (draft 1); module 2 slots
2 (x5), 3 (draft 1) and 4 (draft 2). Kept: 5, 4 and 3 slots.

Shapes: B slots, R rows of a read, E hidden size, F features.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.draft import Draft
from outrider.models.recurrent import RecurrentHead
from outrider.ops.base import GraphCache
from outrider.placement import Placement, place_tokens
from outrider.proposer import Commit, DraftLimit, Kept, Reused, Session, SessionPlan
from outrider.proposers.drafting.recurrent import rows_of
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.sampling import SamplingParams

__all__ = ["MtpModulesSession"]

PIECE = 128
"""Rows of one slot in one read; longer runs of pending tokens (prompts) are read in pieces."""


@final
class Text:
    """One slot: its tokens, root included, and for each module its pending states."""

    def __init__(self, tokens: Sequence[int], sampling: SamplingParams, num_modules: int) -> None:
        self.tokens = list(tokens)
        self.sampling = sampling
        self.inputs: list[list[Tensor]] = [[] for _ in range(num_modules)]

    @property
    def root(self) -> int:
        """The root's position, n."""
        return len(self.tokens) - 1

    def count(self, module: int) -> int:
        return sum(len(part) for part in self.inputs[module])

    def add(self, module: int, states_RE: Tensor) -> None:
        if len(states_RE):
            self.inputs[module].append(states_RE)

    def drop(self, module: int, count: int) -> None:
        """Forget the first `count` states of a module: they are in its cache."""
        if count:
            rest_RE = torch.cat(self.inputs[module])[count:]
            self.inputs[module] = [rest_RE] if len(rest_RE) else []


@final
class MtpModulesSession(Session):
    """The modules' caches, and what each has still to read.

    Args:
        modules: the weights, module 0 first; `fuse` of module 0 takes the target's features in any dtype.
        plan: the session's sizes and noise.
        vocab_size: the target's.
        num_nodes: the longest draft, at most one token for each module.
        sampled: draw chains with each request's sampling settings instead of taking the most probable token.
    """

    def __init__(
        self, modules: Sequence[RecurrentHead], plan: SessionPlan, *, vocab_size: int, num_nodes: int, sampled: bool
    ) -> None:
        assert 1 <= num_nodes <= len(modules)
        self.modules = list(modules[:num_nodes])
        self.plan = plan
        self.vocab_size = vocab_size
        self.sampled = sampled
        tail = PIECE + num_nodes
        self.caches = [
            KVCache(module.plan(plan.max_slots, plan.max_positions, tail), plan.device) for module in self.modules
        ]
        self.graph_caches = [GraphCache() for _ in self.modules]
        self.texts: dict[int, Text] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        assert features_TF is not None, "the target was opened without feature layers"
        self.texts[slot] = Text(tokens, sampling, len(self.modules))
        self.texts[slot].add(0, self.modules[0].fuse(features_TF))

    def keep(self, slot: int) -> Kept:
        lengths = [cache.lengths[slot] for cache in self.caches]
        copies = tuple(cache.copy(slot, length) for cache, length in zip(self.caches, lengths, strict=True))
        # module k read k tokens further: its last k shared positions may hold another text's tokens
        return Kept(min(lengths), num_again=len(self.modules) - 1, caches=copies)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        assert reused.kept is not None, "the session has feature layers"
        for cache, text in zip(self.caches, reused.kept.caches, strict=True):
            cache.paste(slot, text, reused.length)
        self.admit(slot, tokens, sampling, features_TF)

    def num_pending(self, slot: int) -> int:
        return self.texts[slot].count(0)

    def catch_up(self, slots: Sequence[int]) -> None:
        for module in range(len(self.modules)):
            self._shorten(slots, module, 1)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        depths = {
            slot: min(*limit, len(self.modules)) if self.texts[slot].root else 0
            for slot, limit in zip(slots, limits, strict=True)
        }
        chains = ChainSampler(
            self.plan,
            slots,
            {slot: self.texts[slot].sampling for slot in slots},
            sampled=self.sampled,
            vocab_size=self.vocab_size,
            ids_K=self.modules[0].ids_K,
        )
        guessed: dict[int, Tensor] = {}
        for module, cache in enumerate(self.caches):
            active = [slot for slot in slots if module < depths[slot]]
            if not active:
                break
            self._shorten(active, module, PIECE)
            out = self._read(module, active, chains.tokens, guessed)
            last_BE = torch.stack([out[slot][-1] for slot in active])
            chains.grow(active, self.modules[module].predict(last_BE), [self.texts[slot].root + 1 for slot in active])
            guessed = self._keep(module, cache, active, out)
        return chains.draft()

    def _shorten(self, slots: Sequence[int], module: int, most: int) -> None:
        """Read pending tokens in pieces until none has more than `most` slots."""
        cache = self.caches[module]
        for slot in slots:
            text = self.texts[slot]
            while text.count(module) > most:
                # One state stays pending: the next proposal reads it and predicts from it.
                start, size = cache.lengths[slot], min(PIECE, text.count(module) - 1)
                states_RE = torch.cat(text.inputs[module])[:size]
                tokens = text.tokens[start + 1 + module :][:size]
                count = min(len(states_RE), len(tokens))
                if not count:
                    break
                inputs = self._inputs(module, [slot], [states_RE[:count]], tokens)
                if module + 1 < len(self.modules):
                    text.add(module + 1, self._call(module, *inputs))
                else:  # nobody reads what the last module makes of known text
                    self.modules[module].store(*inputs, cache)
                cache.extend([slot], [count])
                text.drop(module, count)

    def _read(
        self, module: int, slots: Sequence[int], drafted: dict[int, list[int]], guessed: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Run a module over all slots it has not read, up to the one before the root; return its outputs by slot."""
        states, tokens, counts = [], [], []
        for slot in slots:
            text = self.texts[slot]
            parts = text.inputs[module] + ([guessed[slot]] if slot in guessed else [])
            states.append(parts[0] if len(parts) == 1 else torch.cat(parts))
            length, start = self.caches[module].lengths[slot], self.caches[module].lengths[slot] + 1 + module
            # Committed tokens first, then the drafted ones that this module reads as guesses.
            tokens += text.tokens[start : text.root + 1 + module]
            tokens += drafted[slot][max(0, start - text.root - 1) : module]
            counts.append(text.root - length)
        assert [len(some) for some in states] == counts, "a module lost count of its slots"
        out_RE = self._call(module, *self._inputs(module, slots, states, tokens))
        return dict(zip(slots, torch.split(out_RE, counts), strict=True))

    def _inputs(
        self, module: int, slots: Sequence[int], states: Sequence[Tensor], tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor, Placement]:
        states_RE = states[0] if len(states) == 1 else torch.cat(list(states))
        placement = place_tokens(self.caches[module], slots, [len(some) for some in states])
        return states_RE, torch.tensor(tokens, device=self.plan.device), placement

    def _call(self, module: int, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        """Return a module's output states."""
        head, kept = self.modules[module], self.graph_caches[module]
        return head.read(states_RE, tokens_R, placement, self.caches[module], graph_cache=kept).states_RE

    def _keep(self, module: int, cache: KVCache, slots: Sequence[int], out: dict[int, Tensor]) -> dict[int, Tensor]:
        """Commit the rows that read no guess, pass them to the next module, and return the outputs at guessed slots."""
        guessed = {}
        for slot in slots:
            text = self.texts[slot]
            # The last `module` slots read drafted tokens.
            count = max(0, text.root - module) - cache.lengths[slot]
            cache.extend([slot], [count])
            text.drop(module, count)
            if module + 1 < len(self.modules):
                text.add(module + 1, out[slot][:count])
                guessed[slot] = out[slot][count:]
        return guessed

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        assert features_BMF is not None, "the target was opened without feature layers"
        for slot, rows, tokens, place in commits:
            self.texts[slot].tokens += tokens
            self.texts[slot].add(0, self.modules[0].fuse(rows_of(features_BMF[place], rows[: len(tokens)])))

    def release(self, slot: int) -> None:
        del self.texts[slot]
        for cache in self.caches:
            cache.reset(slot)

    @property
    def num_bytes(self) -> int:
        return sum(cache.plan.num_bytes for cache in self.caches)
