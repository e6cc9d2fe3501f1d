"""PARD: a draft model that writes all its tokens in one pass (arXiv 2504.18583).

A draft model spends one pass per token. PARD trains it to look ahead: behind the root stand K - 1 mask tokens, and each
predicts what comes one place further, having seen the text and the masks before it but none of the drafted tokens.

    committed ... x y r                    y, r pending: not yet read
    one pass over  y r [m] [m] [m]         K = 4; logits at r, m, m, m give drafts 1, 2, 3, 4
    cache          ... x y r               the masks are not kept
    accepted d1 d2, bonus b                pending [d1, d2, b]

The drafts are independent of each other given the text, so a sampled chain's distribution is the product of its
columns', and acceptance position by position stays exact. The mask token is never drafted.

A checkpoint is a plain draft model whose config names the mask, `"pard_token": 151665`; ours may also be slim
(`formats/hf_draft.py`).

Shapes: B slots, M rows of each, R rows that are drafted from, E hidden size, K columns of the output head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self, final

import torch
from torch import Tensor

from outrider.draft import Draft
from outrider.formats.hf_config import mask_of
from outrider.formats.locate import locate
from outrider.formats.token_ranking import check_draft_vocab, drafted_ids
from outrider.noise import Stream, chain_law
from outrider.placement import place_tokens
from outrider.proposer import Commit, DraftLimit, Kept, Proposer, ProposerSpec, Reused, Session, SessionPlan
from outrider.proposers.draft_model import cut_from
from outrider.proposers.drafting.fused_chain import FusedChain, Law
from outrider.proposers.drafting.model_reader import ModelReader, Row
from outrider.proposers.drafting.sampler import ChainSampler
from outrider.proposers.reach import within_reach
from outrider.proposers.settings import check_bounds
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets.draft import load_draft
from outrider.targets.output_head import output_head

__all__ = ["PardConfig", "PardProposer"]


@dataclass(frozen=True, kw_only=True)
class PardConfig:
    """Settings of PARD.

    checkpoint   directory or hub id of the draft model; it must share the target's vocabulary; by default the one that
                 is shipped for the target
    num_nodes    drafted tokens per step, K; one pass reads K - 1 masks
    sampled      draw the drafts instead of taking the most probable token; None draws them where that costs
                 no more: on the CPU, with the target's noise
    draft_vocab  draft only that many of the most frequent tokens, 0 for all; by default 8192 where training left a
                 ranking beside the checkpoint, else all
    """

    checkpoint: str | None = None
    num_nodes: int = 8
    sampled: bool | None = None
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab)
        check_bounds(self, num_nodes=(1, 64))


@final
class PardProposer(Proposer):
    """A draft model with a mask token."""

    Config = PardConfig
    shipped = "pard"

    def __init__(
        self, model: Target, mask_id: int, config: PardConfig, num_bytes: int, ids_K: Tensor | None = None
    ) -> None:
        """Take `ids_K` as the tokens that are drafted, None for all."""
        self.model = model
        self.mask_id = mask_id
        self.config = config
        self.output = output_head(model, None if ids_K is None else ids_K[ids_K != mask_id])
        self._num_bytes = num_bytes + self.output.num_bytes

    @classmethod
    def load(cls, target: Target, config: PardConfig) -> Self:
        name = config.checkpoint or ""
        draft = load_draft(name, target)
        mask_id = mask_of(draft.config, name, target.spec.vocab_size)
        ids_K = drafted_ids(locate(name), target, config.draft_vocab)
        return cls(draft.model, mask_id, config, draft.num_bytes, ids_K)

    @classmethod
    def example(cls, target: Target, seed: int) -> Self:
        config = PardConfig(checkpoint="", num_nodes=1 + seed % 5, sampled=seed % 2 == 1 or None)
        vocab_size = target.spec.vocab_size
        ids_K = torch.arange(seed % 2, vocab_size, 2) if seed % 3 == 2 else None
        return cls(cut_from(target, "0"), (7 * seed + 3) % vocab_size, config, 0, ids_K)

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=self.config.num_nodes, num_bytes=self._num_bytes)

    def open(self, plan: SessionPlan) -> Session:
        def within(plan: SessionPlan) -> Session:
            num_masks = self.config.num_nodes - 1
            reader = ModelReader(self.model, self.output, plan, tail=2 * num_masks + 4, num_more=num_masks)
            return PardSession(reader, self, plan)

        return within_reach(self.model.spec.max_positions, plan, within)


@final
class PardSession(Session):
    """The draft model's cache, which only ever holds committed tokens, and what it has still to read."""

    def __init__(self, reader: ModelReader, proposer: PardProposer, plan: SessionPlan) -> None:
        self.reader = reader
        self.mask_id = proposer.mask_id
        self.config = proposer.config
        self.plan = plan
        can_choose = not self.config.sampled and reader.ids_K is not None  # fewer columns hold no mask
        self.fused = FusedChain.of(reader.network, reader.cache, 1) if can_choose else None
        self.draws = self.config.sampled is None and plan.noise is Stream.TARGET

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.reader.admit(slot, tokens, sampling)

    def keep(self, slot: int) -> Kept:
        return self.reader.kept(slot)

    def reuse(
        self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None, reused: Reused
    ) -> None:
        self.reader.reuse(slot, tokens, sampling, reused)

    def num_pending(self, slot: int) -> int:
        return self.reader.num_pending(slot)

    def catch_up(self, slots: Sequence[int]) -> None:
        self.reader.catch_up(slots)

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        depths = {slot: min(*limit, self.config.num_nodes) for slot, limit in zip(slots, limits, strict=True)}
        active = {slot: depth for slot, depth in depths.items() if depth > 0}
        if not active:
            return Draft.empty(len(slots), self.plan.device)
        feeds = {slot: feed.tokens for slot, feed in self.reader.take(list(active)).items()}
        if self.fused is None:
            return self._grow(slots, feeds, active)
        tokens = self._choose(self.fused, feeds, active)
        return Draft.of_chains([tokens.get(slot, []) for slot in slots], self.plan.device)

    def _choose(self, fused: FusedChain, feeds: dict[int, list[int]], depths: dict[int, int]) -> dict[int, list[int]]:
        """Run the one pass as one graph: the most probable tokens at the roots and at the masks."""
        masked = [feed + [self.mask_id] * (depths[slot] - 1) for slot, feed in feeds.items()]
        counts, ends = list(map(len, masked)), list(accumulate(map(len, masked)))
        rows = [row for end, depth in zip(ends, depths.values(), strict=True) for row in range(end - depth, end)]
        # Masks lie behind the committed length, where the next read overwrites them.
        placement = place_tokens(self.reader.cache, list(feeds), counts)
        tokens_R = torch.tensor([token for row in masked for token in row], device=self.plan.device)
        x_RE = fused.network.inputs(tokens_R.new_empty(len(tokens_R), 0), tokens_R, placement)
        drafted = fused.choose(x_RE, placement, rows, laws=self._laws(feeds, depths)).tokens_LN[0].tolist()
        self.reader.cache.extend(list(feeds), list(map(len, feeds.values())))
        starts = accumulate(depths.values(), initial=0)
        return {slot: drafted[start : start + depths[slot]] for slot, start in zip(depths, starts, strict=False)}

    def _laws(self, feeds: dict[int, list[int]], depths: dict[int, int]) -> list[Law] | None:
        """Return the law of every drafted token; None if all requests are greedy."""
        settings = [self.reader.samplings[slot] for slot in feeds]
        if not self.draws or all(one.greedy for one in settings):
            return None
        firsts = [
            length + len(feed)
            for length, feed in zip(self.reader.text_lengths(list(feeds)), feeds.values(), strict=True)
        ]
        return [
            chain_law(one.temperature, one.seed, first + level)
            for one, first, slot in zip(settings, firsts, feeds, strict=True)
            for level in range(depths[slot])
        ]

    def _grow(self, slots: Sequence[int], feeds: dict[int, list[int]], depths: dict[int, int]) -> Draft:
        """Run the one pass from Python, and choose level by level."""
        reader = self.reader
        masks = [[self.mask_id] * (depths[slot] - 1) for slot in feeds]
        states_BME = reader.states(list(feeds), list(feeds.values()), masks)
        roots = {slot: Row(place, len(feed) - 1) for place, (slot, feed) in enumerate(feeds.items())}
        levels = [[slot for slot in depths if level < depths[slot]] for level in range(max(depths.values()))]
        rows = [Row(roots[slot].place, roots[slot].row + level) for level, some in enumerate(levels) for slot in some]
        logits_RK = reader.logits(states_BME, rows)
        if reader.ids_K is None:  # fewer columns hold no mask
            logits_RK[:, self.mask_id] = -torch.inf
        sampler = ChainSampler(
            self.plan,
            slots,
            reader.samplings,
            sampled=bool(self.config.sampled),
            vocab_size=reader.vocab_size,
            ids_K=reader.ids_K,
        )
        for growing, logits_BK in zip(levels, torch.split(logits_RK, list(map(len, levels))), strict=True):
            sampler.grow(growing, logits_BK, reader.text_lengths(growing))
        return sampler.draft()

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        for slot, _, tokens, _ in commits:
            self.reader.commit(slot, tokens)

    def release(self, slot: int) -> None:
        self.reader.release(slot)

    @property
    def num_bytes(self) -> int:
        return self.reader.num_bytes
