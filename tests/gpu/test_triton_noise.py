"""The drawn token of every row is that of the reference, bit for bit in the noise."""

import pytest
import torch

from outrider.noise import Stream, gumbel, position_keys

pytest.importorskip("triton", reason="triton is not installed; it comes with PyTorch for CUDA")
from outrider.kernels.noise_triton import pick


@pytest.mark.parametrize("vocab_size", [31, 2048, 5000])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_draws_are_those_of_the_reference(device: str, vocab_size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits_RV = torch.randn(12, vocab_size, generator=generator) / temperature
    logits_RV[3, : vocab_size // 2] = -torch.inf
    seeds_R = torch.randint(-(2**62), 2**62, (12,), generator=generator)
    keys_R2 = position_keys(seeds_R, torch.arange(12), Stream.TARGET)
    want_R = (logits_RV.double() + gumbel(keys_R2, vocab_size)).argmax(-1)
    got_R = pick(logits_RV.to(device), keys_R2.to(device))
    assert got_R.tolist() == want_R.tolist()
    assert len(set(want_R.tolist())) > 6
