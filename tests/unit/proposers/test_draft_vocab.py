"""A drafter with few of its target's tokens: it drafts only those, the text stays, and memory is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from outrider import ConfigError, DraftLimit, Proposer, SamplingParams, SessionPlan, load_proposer
from outrider.formats.hf_draft import write_draft
from outrider.formats.medusa import write_medusa
from outrider.formats.mtp import write_mtp
from outrider.formats.token_ranking import rank_tokens, write_ranking
from outrider.noise import Stream
from outrider.proposers import medusa, mtp
from outrider.proposers.eagle3 import head_of, random_checkpoint
from outrider.proposers.medusa import medusa_heads
from outrider.target import Target
from outrider.targets.output_head import output_head
from outrider.testing import assert_lossless, tiny_target
from outrider.testing.tiny import tiny_spec, tiny_weights

VOCAB, KEPT = 64, 7
DTYPES = [torch.float32, torch.float64]


def written(method: str, target: Target, directory: Path) -> dict[str, Any]:
    """Write a checkpoint without a ranking; settings to load it with."""
    if method == "mtp":
        write_mtp(directory, mtp.random_checkpoint(target, 1, "normed", seed=3), target.spec.dtype)
        return {"num_nodes": 3}
    if method == "medusa":
        found = medusa.random_checkpoint(target, 6)
        write_medusa(directory, found.shape, dict(found.tensors), "vllm", {})
        return {"num_nodes": 5, "width": 3}
    extra = {"pard_token": 11} if method == "pard" else {}
    spec = tiny_spec(vocab_size=VOCAB)
    write_draft(directory, spec, tiny_weights(spec, 4), target, target.spec.dtype, {}, extra)
    return {"num_nodes": 4}


def drafted(proposer: Proposer, target: Target) -> set[int]:
    """The tokens of one proposal for several prompts."""
    plan = SessionPlan(max_slots=4, max_positions=64, noise=Stream.TARGET, device=target.spec.device)
    session, reader = proposer.open(plan), target.open(target.plan(4, 64, 2), proposer.spec.feature_layers)
    prompts = [[3 + slot, 5, 9 * slot + 1] for slot in range(4)]
    features = reader.prefill(range(4), [prompt[:-1] for prompt in prompts])
    for slot, prompt in enumerate(prompts):
        session.admit(slot, prompt, SamplingParams(), features[slot])
    trees = session.propose(range(4), [DraftLimit(5, 5)] * 4).trees
    return {token for tree in trees for token in tree.tokens}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["mtp", "medusa", "pard", "draft_model"])
def test_only_ranked_tokens_are_drafted(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    target = tiny_target(vocab_size=VOCAB, dtype=dtype)
    settings = written(method, target, tmp_path)
    with pytest.raises(ConfigError, match=f"draft_vocab={KEPT} needs token_ranking.json"):
        load_proposer(method, target, checkpoint=str(tmp_path), draft_vocab=KEPT, **settings)
    whole = load_proposer(method, target, checkpoint=str(tmp_path), **settings)
    counts_V = torch.zeros(VOCAB, dtype=torch.int64)
    counts_V[torch.arange(8, 40, 3)] = torch.arange(11, 0, -1)
    ranked_N = rank_tokens(target, counts_V)
    write_ranking(tmp_path, ranked_N, target)
    some = load_proposer(method, target, checkpoint=str(tmp_path), draft_vocab=KEPT, **settings)
    allowed = set(ranked_N[:KEPT].tolist())
    found = drafted(some, target)
    assert found
    assert found <= allowed
    assert not drafted(whole, target) <= allowed
    assert_lossless(target, some, [[1, 2, 3], [40]], SamplingParams(max_tokens=10, ignore_eos=True), max_batch=2)


def test_the_rows_of_a_borrowed_head_are_counted_and_equal() -> None:
    target = tiny_target(vocab_size=VOCAB, dtype=torch.float32)
    ids_K = torch.tensor([2, 3, 60])
    whole, some = output_head(target), output_head(target, ids_K)
    states_RE = torch.randn(5, target.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(some(states_RE), whole(states_RE)[:, ids_K])
    assert whole.num_bytes == 0
    assert some.num_bytes >= 3 * target.spec.hidden_size * 4


def test_heads_with_columns_of_their_own_lose_some() -> None:
    target = tiny_target(vocab_size=VOCAB)
    checkpoint = random_checkpoint(target, 0)
    drafted_K = torch.arange(0, VOCAB, 3)
    head = head_of(checkpoint, target, drafted_K)
    assert head.ids_K is not None
    assert set(head.ids_K.tolist()) == set(checkpoint.ids_K.tolist()) & set(drafted_K.tolist())
    states_RE = torch.randn(4, head.spec.layer.hidden_size, dtype=torch.float64)
    whole_RK = head_of(checkpoint, target).predict(states_RE)
    assert torch.allclose(head.predict(states_RE), whole_RK[:, torch.isin(checkpoint.ids_K, drafted_K)])
    before = medusa.random_checkpoint(target, 3)
    after = medusa.reduced(before, drafted_K)
    logits = [
        medusa_heads(one.shape, one.tensors, target).predict(states_RE[:, :16], [2] * 4)[0] for one in (before, after)
    ]
    known = medusa.reduced(before, torch.arange(VOCAB)).tensors["token_map"]
    assert torch.allclose(logits[1], logits[0][:, torch.isin(known, drafted_K)])
