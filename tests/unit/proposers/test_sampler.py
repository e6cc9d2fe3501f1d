"""The chain sampler: greedy and sampled tokens, probabilities for the ratio tests, reduced vocabularies."""

import torch

from outrider.noise import Stream
from outrider.proposer import SessionPlan
from outrider.proposers.drafting.sampler import ChainSampler, widen
from outrider.sampling import SamplingParams, choose


def plan(noise: Stream) -> SessionPlan:
    return SessionPlan(max_slots=2, max_positions=32, noise=noise, device=torch.device("cpu"))


def test_greedy_columns_are_mapped_to_target_ids() -> None:
    chains = ChainSampler(plan(Stream.TARGET), [4, 9], {}, sampled=False, vocab_size=8, ids_K=torch.tensor([7, 3]))
    assert chains.grow([4, 9], torch.tensor([[0.1, 2.0], [1.0, 0.0]]), [5, 6]).tolist() == [3, 7]
    assert chains.grow([9], torch.tensor([[0.0, 1.0]]), [6]).tolist() == [3]
    assert [tree.tokens for tree in chains.draft().trees] == [[3], [7, 3]]


def test_under_the_coupled_rule_a_sampled_chain_uses_the_targets_noise_at_the_tokens_position() -> None:
    samplings = {0: SamplingParams(temperature=1.0, seed=11)}
    chains = ChainSampler(plan(Stream.TARGET), [0], samplings, sampled=True, vocab_size=50)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    drawn = [int(chains.grow([0], row[None], [20])) for row in logits]
    wanted = choose(logits, torch.tensor([20, 21, 22]), [samplings[0]] * 3)
    assert drawn == wanted.tolist()
    assert chains.draft().probs_BMV is None


def test_under_the_ratio_tests_the_draft_carries_what_it_was_drawn_from() -> None:
    samplings = {0: SamplingParams(temperature=0.7, seed=1), 1: SamplingParams(temperature=1.5, seed=2)}
    ids_K = torch.tensor([1, 4, 6])
    chains = ChainSampler(plan(Stream.DRAFT), [0, 1], samplings, sampled=True, vocab_size=8, ids_K=ids_K)
    logits = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    chains.grow([0, 1], logits, [3, 7])
    chains.grow([1], logits[:1], [7])
    probs_BMV = chains.draft().probs_BMV
    assert probs_BMV is not None
    for slot, sampling in samplings.items():
        want = (logits[slot] / sampling.temperature).softmax(-1)
        assert torch.allclose(probs_BMV[slot, 0, ids_K], want.to(probs_BMV.dtype), atol=1e-6)
        assert probs_BMV[slot, 0, [0, 2, 3, 5, 7]].sum() == 0
    assert probs_BMV[0, 1].sum() == 0


def test_the_same_position_is_drawn_with_other_noise_at_another_depth() -> None:
    sampling = SamplingParams(temperature=1.0, seed=3)
    logits = torch.zeros(1, 1000)
    shallow = ChainSampler(plan(Stream.DRAFT), [0], {0: sampling}, sampled=True, vocab_size=1000)
    first = shallow.grow([0], logits, [11])
    deep = ChainSampler(plan(Stream.DRAFT), [0], {0: sampling}, sampled=True, vocab_size=1000)
    deep.grow([0], logits, [10])
    assert not torch.equal(deep.grow([0], logits, [10]), first)


def test_widen() -> None:
    assert widen(torch.tensor([[5.0]]), torch.tensor([1]), 3).tolist() == [[-torch.inf, 5.0, -torch.inf]]
