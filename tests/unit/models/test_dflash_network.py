"""The DFlash network with its cache against the dense formulas."""

from dataclasses import replace

import pytest
import torch

from dense_block import block_states
from outrider.cache import KVCache
from outrider.models.blocks.dflash import default_layer_ids
from outrider.proposers.drafting.block_network import network_of, random_checkpoint
from outrider.testing import tiny_target


@pytest.mark.parametrize("seed", [*range(15), 21, 32])
def test_blocks_of_two_slots_equal_the_dense_formulas(seed: int) -> None:
    """Seeds draw every variant: windows, causal layers, head norms, layers, states, a mask embedding, DFlash-2."""
    target = tiny_target(seed % 2)
    checkpoint = random_checkpoint(target, seed)
    spec, network = checkpoint.spec, network_of(checkpoint, target)
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(network.plan(3, 24, spec.block_size))
    texts = [torch.empty(0, spec.features, dtype=torch.float64) for _ in range(2)]
    embedding_VE = target.shared_weights().embedding_VE
    for counts in ([7, 0], [3, 5], [0, 0], [1, 9]):
        more = [torch.randn(count, spec.features, generator=generator, dtype=torch.float64) for count in counts]
        texts = [torch.cat([text, new]) for text, new in zip(texts, more, strict=True)]
        roots_2 = torch.randint(0, target.spec.vocab_size, (2,), generator=generator)
        tokens_BM = torch.full((2, spec.block_size), spec.mask_id)
        tokens_BM[:, 0] = roots_2
        found_BME = network.draft(cache, [2, 0], counts, network.fuse(torch.cat(more)), tokens_BM)
        for place, (text, root) in enumerate(zip(texts, roots_2.tolist(), strict=True)):
            mask_E = checkpoint.tensors.get("mask_embedding", embedding_VE[spec.mask_id])
            embedded_ME = torch.stack([embedding_VE[root], *[mask_E] * (spec.block_size - 1)])
            want_ME = block_states(spec, checkpoint.tensors, text, embedded_ME)
            assert (found_BME[place] - want_ME).abs().max() < 1e-10
    assert cache.lengths == [14, 0, 11]


@pytest.mark.parametrize("seed", [0, 3])
def test_reading_context_beforehand_changes_nothing(seed: int) -> None:
    target = tiny_target()
    network = network_of(random_checkpoint(target, seed), target)
    spec = network.spec
    context_RE = network.fuse(torch.randn(6, spec.features, dtype=torch.float64))
    tokens_BM = torch.arange(spec.block_size)[None]
    at_once, piecewise = (KVCache(network.plan(1, 24, spec.block_size)) for _ in range(2))
    want_BME = network.draft(at_once, [0], [6], context_RE, tokens_BM)
    network.read(piecewise, [0], [4], context_RE[:4])
    network.read(piecewise, [0], [2], context_RE[4:])
    found_BME = network.draft(piecewise, [0], [0], context_RE[:0], tokens_BM)
    assert torch.allclose(found_BME, want_BME, atol=1e-12)


def test_the_default_layers_are_the_published_ones_and_fit_small_targets() -> None:
    # published for 24 layers as ids of states after layers: 1 6 11 16 21
    assert default_layer_ids(24, 5) == (2, 7, 12, 17, 22)
    for depth in range(1, 8):
        assert all(1 <= layer <= max(1, depth - 1) for layer in default_layer_ids(depth, 3))


def test_published_shapes() -> None:
    """Qwen2.5-0.5B: as published for the authors' layout."""
    found = random_checkpoint(tiny_target(), 0).spec
    decoder = replace(
        found.decoder, hidden_size=896, intermediate_size=4864, num_layers=5, num_heads=14, num_kv_heads=2, head_dim=64
    )
    decoder = replace(decoder, windows=(None,) * 5)
    spec = replace(found, decoder=decoder, layer_ids=default_layer_ids(24, 5), target_hidden_size=896)
    shapes = spec.shapes()
    assert len(shapes) == 3 + 5 * 11
    assert shapes["fc.weight"] == (896, 5 * 896)
    assert shapes["hidden_norm.weight"] == shapes["norm.weight"] == (896,)
    assert shapes["layers.4.self_attn.k_proj.weight"] == (128, 896)
    assert shapes["layers.4.self_attn.q_norm.weight"] == (64,)
