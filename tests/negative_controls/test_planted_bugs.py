"""A gate is worth what it catches: every bug is planted in the production code, and a named check must fail.

Each check first passes on the code as it is. The bugs are ones that real implementations of speculative decoding had.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import checks
import numpy as np
import pytest
import torch
from planting import Plant, plant

from outrider import placement, verify
from outrider import sampling as transforms
from outrider.adaptive.controller import AdaptiveBudget
from outrider.audit import enumerate as enumeration
from outrider.audit.enumerate import Drafter, law_error, random_model
from outrider.batch import Batch
from outrider.cache import KVCache
from outrider.draft import Draft
from outrider.ops.torch import TorchOps
from outrider.processors.path import PathLogits
from outrider.targets import native


class Bug(NamedTuple):
    """What is wrong, how it is planted, and the check that sees it."""

    name: str
    plant: Plant
    check: Callable[[], None]


tree_rule = partial(plant, verify, enumeration, name="reject_tree")
block_rule = partial(plant, verify, enumeration, name="judge_block")
request = partial(plant, verify, name="_distributions")
placed = partial(plant, placement, native, name="place_real_rows")
committed = partial(plant, KVCache, name="commit", old="1 + len(path) for path in paths")
emitted = partial(plant, Batch, name="_emit")
path_row = partial(
    plant, PathLogits, name="__getitem__", old="self._state.advance(self._tree.tokens[row - 1])"
)  # fmt: skip


def coupled_by_argmax(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "choose_one", lambda logits_V, *rest: int(logits_V.argmax()))


def top_p_without_the_crossing_token(patch: pytest.MonkeyPatch) -> None:
    def cut(logits_RV: np.ndarray, probs_RV: np.ndarray, top_p: float) -> np.ndarray:
        falling_RV = -np.sort(-probs_RV, axis=1)
        least_R1 = (falling_RV * (np.cumsum(falling_RV, axis=1) <= top_p)).max(axis=1, keepdims=True)
        return np.where((probs_RV >= least_R1) & (least_R1 > 0), logits_RV, -np.inf)

    patch.setattr(transforms, "nucleus", cut)


BUGS = [
    Bug(
        "rejection: argmax instead of a sample as the bonus",
        tree_rule(old="chance.pick(p_V, position + len(path))", new="int(p_V.argmax())"),
        partial(checks.chain_law, "rejection"),
    ),
    Bug(
        "block: argmax instead of a sample as the bonus",
        block_rule(old="chance.pick(residual_V, position + num_accepted)", new="int(residual_V.argmax())"),
        partial(checks.chain_law, "block"),
    ),
    Bug("coupled: argmax instead of a sample", coupled_by_argmax, partial(checks.engine_text, "chain")),
    Bug(
        "accepting when q <= 0",
        tree_rule(old="if q > 0 and chance.accept(min(1.0, p / q)", new="if q <= 0 or chance.accept(min(1.0, p / q)"),
        checks.impossible_token_law,
    ),
    Bug(
        "a ratio that ignores temperature and filters",
        request(
            old="distribution(given.logits_BMV[slot], given.samplings[slot])", new="given.logits_BMV[slot].softmax(-1)"
        ),
        checks.request_law,
    ),
    Bug(
        "top-p drops the token that crosses the threshold",
        top_p_without_the_crossing_token,
        checks.top_p_like_transformers,
    ),
    Bug(
        "the ratio test shares its numbers with the draft",
        plant(verify.NoiseChance, name="accept", old="Stream.ACCEPT", new="Stream.DRAFT"),
        checks.drawn_law,
    ),
    Bug(
        "the residual token shares its noise with the draft",
        plant(verify.NoiseChance, name="pick", old="Stream.RESIDUAL", new="Stream.DRAFT"),
        checks.drawn_law,
    ),
    Bug(
        "q kept in another precision than it was sampled in",
        request(old="draft.probs_BMV[slot].to(", new="draft.probs_BMV[slot].bfloat16().to("),
        checks.request_law,
    ),
    Bug(
        "q missing for a sampled draft (lossless, but accepts too little)",
        request(old="None if draft.probs_BMV is None else draft.probs_BMV[slot].to(p_MV.dtype)", new="None"),
        checks.request_acceptance,
    ),
    Bug(
        "q missing from the residual of a sampled draft",
        tree_rule(old="_one_hot(p_V, token) if q_V is None else q_V", new="_one_hot(p_V, token)"),
        partial(checks.chain_law, "rejection"),
    ),
    Bug(
        "a budget lets the others pay for the request that copies",
        plant(AdaptiveBudget, name="_begin", old="[TOGETHER] if num_waiting else requests", new="[TOGETHER]"),
        checks.nobody_pays_for_another,
    ),
    Bug(
        "a budget cuts sampled drafts, and so chooses among the draws",
        plant(AdaptiveBudget, name="prune", old="self._may_prune = False", new="pass"),
        checks.sampled_drafts_stay_whole,
    ),
    Bug(
        "the residual is not taken after a rejection",
        tree_rule(old="p_V = _residual(p_V,", new="_residual(p_V,"),
        partial(checks.chain_law, "rejection"),
    ),
    Bug(
        "children tried best first instead of in the order they were drawn",
        tree_rule(
            old="enumerate(children[row])",
            new="enumerate(sorted(children[row], key=lambda child: -float(q_MV[row][tree.tokens[child - 1]])))",
        ),
        checks.tree_law,
    ),
    Bug(
        "q not renormalised after a child was tried",
        plant(verify, name="_without", old="return rest_V / mass if mass > 0 else rest_V", new="return rest_V"),
        checks.tree_law,
    ),
    Bug(
        "block: a step reuses numbers that an earlier step has looked at",
        block_rule(old="chance.accept(keep, position, i - 1)", new="chance.accept(keep, position + i - 1, 0)"),
        checks.steps_law,
    ),
    Bug(
        "the bonus is never written to the cache after a full accept",
        committed(new="1 + len(path) + (len(path) == 3) for path in paths"),
        partial(checks.engine_text, "chain"),
    ),
    Bug(
        "the cache is cropped one short",
        committed(new="max(1, len(path)) for path in paths"),
        partial(checks.engine_text, "chain"),
    ),
    Bug(
        "the cache is cropped one long",
        committed(new="2 + len(path) for path in paths"),
        partial(checks.engine_text, "tree"),
    ),
    Bug(
        "the cache is cropped one long, seen in its length",
        committed(new="2 + len(path) for path in paths"),
        checks.cache_lengths,
    ),
    Bug(
        "the accepted path is not gathered",
        plant(KVCache, name="commit", old="        if moved:\n", new="        if False:\n"),
        partial(checks.engine_text, "tree"),
    ),
    Bug(
        "RoPE one off for drafted nodes",
        placed(
            old="positions_BM=positions_BM,",
            new="positions_BM=positions_BM + torch.arange(draft.num_rows).clamp(max=1),",
        ),
        partial(checks.engine_text, "chain"),
    ),
    Bug(
        "siblings at different positions",
        placed(old="np.array(depths)", new="rows_R"),
        partial(checks.engine_text, "tree"),
    ),
    Bug(
        "siblings see each other",
        placed(
            old="mask_RT.reshape(*shape, draft.num_rows)", new="np.tril(mask_RT.reshape(*shape, draft.num_rows) | True)"
        ),
        partial(checks.engine_text, "tree"),
    ),
    Bug(
        "stale cache rows zeroed instead of masked",
        plant(TorchOps, name="attend", old="masked_fill(hidden, -torch.inf)", new="masked_fill(hidden, 0.0)"),
        partial(checks.engine_text, "chain"),
    ),
    Bug(
        "acceptance counted past the end of the text",
        emitted(old="min(len(path.tokens), len(emitted))", new="len(path.tokens)"),
        checks.stop_counts,
    ),
    Bug(
        "tokens emitted past the end of the text",
        emitted(old="break", new="pass"),
        checks.stop_counts,
    ),
    Bug(
        "padding rows counted as accepted",
        plant(
            Draft,
            name="of_trees",
            old='draft.__dict__["trees"] = list(trees)',
            new="(N := draft.num_rows - 1), vars(draft).update(num_nodes=(N,) * len(trees), trees=["
            "Tree((t + [0] * N)[:N], (p + [-1] * N)[:N]) for t, p in trees])",
        ),
        checks.padding_counts,
    ),
    Bug(
        "a row reads its neighbour's slot once another request has finished",
        placed(
            old="slots_B=torch.from_numpy(np.array(slots, dtype=np.int64)),", new="slots_B=torch.arange(len(slots)),"
        ),
        partial(checks.engine_text, "chain", max_batch=3),
    ),
    Bug(
        "a row's noise depends on its place in the batch",
        plant(
            verify._OwnTokens,
            name="__init__",
            old="given.lengths[slot] + 1 + depth",
            new="given.lengths[slot] + 1 + depth + slot",
        ),
        partial(checks.engine_text, "lopsided", max_batch=3),
    ),
    Bug(
        "a walk advances the request's own processors",
        plant(PathLogits, name="__getitem__", old="self._state.fork()", new="self._state"),
        partial(checks.processor_law, "coupled"),
    ),
    Bug(
        "processors read the rejected siblings in front of a row",
        path_row(new="[self._state.advance(token) for token in self._tree.tokens[:row]]"),
        partial(checks.processor_law, "rejection"),
    ),
    Bug(
        "processors read no drafted token",
        path_row(new="pass"),
        partial(checks.processor_law, "block"),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_planted_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.check()
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        bug.check()


def test_q_rounded_to_bfloat16_shifts_the_law_by_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.request_error() < checks.EXACT
    request(old="draft.probs_BMV[slot].to(", new="draft.probs_BMV[slot].bfloat16().to(")(monkeypatch)
    assert checks.request_error() > 1e-4


@pytest.mark.parametrize("fresh", [True, False])
def test_under_the_block_rule_a_drafter_must_not_reuse_noise_that_an_earlier_step_has_judged(fresh: bool) -> None:
    """The accepted length depends on every drafted token, also on those behind it."""
    drafter: Drafter = checks.chain_by_key(random_model(2, 2), 2, fresh)
    error = law_error(random_model(1, 2), drafter, "block", vocab_size=2, length=3, num_steps=2)
    assert (error < checks.EXACT) == fresh
    error = law_error(random_model(1, 2), drafter, "rejection", vocab_size=2, length=3, num_steps=2)
    assert error < checks.EXACT


def test_the_transcripts_are_varied() -> None:
    """What the checks on text rely on."""
    for prompt in checks.PROMPTS:
        for sampling in (checks.SamplingParams(), checks.SAMPLED):
            assert len(set(checks.truth(prompt, sampling))) > 5
    assert torch.tensor(checks.truth(checks.PROMPTS[1], checks.SAMPLED)).eq(0).any()
