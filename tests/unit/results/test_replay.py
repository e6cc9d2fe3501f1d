"""Replays compute the logits of plain decoding, in other ways."""

import pytest
import torch

from outrider import Engine, load_proposer
from outrider.results.equality.replay import replay
from outrider.sampling import SamplingParams
from outrider.testing import tiny_target

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


@pytest.mark.parametrize("num_prompt", [1, 4, len(TOKENS)])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_all_ways_agree_and_give_the_next_token_of_plain_decoding(num_prompt: int, num_slots: int) -> None:
    target = tiny_target()
    logits_RV = replay(target, TOKENS, num_prompt, (2, 3, 16), num_slots)
    assert logits_RV.shape[1] == target.spec.vocab_size
    assert len(logits_RV) == (4 if num_slots == 1 else 1 + 4 * num_slots)
    assert float((logits_RV - logits_RV[0]).abs().max()) < 1e-9
    plain = Engine(target, load_proposer("none", target)).generate([TOKENS], SamplingParams(max_tokens=1))
    assert int(logits_RV[0].argmax()) == plain[0].tokens[0]


def test_in_bfloat16_rows_are_bit_exact_on_the_cpu() -> None:
    target = tiny_target(dtype=torch.bfloat16)
    logits_RV = replay(target, TOKENS, 4, (2, 3, 16))
    assert target.spec.batch_invariant
    assert float((logits_RV - logits_RV[0]).abs().max()) == 0


def test_a_text_at_the_context_limit_can_be_replayed() -> None:
    target = tiny_target(max_positions=len(TOKENS) + 1)
    logits_RV = replay(target, TOKENS, 4, (16,))
    assert float((logits_RV - logits_RV[0]).abs().max()) < 1e-9
