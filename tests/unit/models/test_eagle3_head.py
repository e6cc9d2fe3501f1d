"""The EAGLE-3 head against its formulas, written out densely."""

from dataclasses import replace

import pytest
import torch

from dense_head import Dense
from outrider.cache import KVCache
from outrider.formats.eagle3 import Eagle3Checkpoint
from outrider.models.eagle3 import Eagle3Spec, default_layer_ids
from outrider.placement import place_tokens
from outrider.proposers.eagle3 import head_of, random_checkpoint
from outrider.testing import tiny_target


@pytest.mark.parametrize("seed", range(12))
def test_committed_and_drafted_rows_equal_the_dense_formulas(seed: int) -> None:
    """Seeds draw every variant: norms, reduced vocabulary, head norms, two or three fused states, further layers."""
    target = tiny_target(seed % 2)
    checkpoint = random_checkpoint(target, seed)
    head = head_of(checkpoint, target)
    dense = Dense(checkpoint, target.shared_weights().embedding_VE)
    generator = torch.Generator().manual_seed(seed)
    features_TF = torch.randn(5, checkpoint.spec.features, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, target.spec.vocab_size, (8,), generator=generator).tolist()
    cache = KVCache(head.plan(3, 20, 8))

    states_TE = head.fuse(features_TF)
    out_TE = head.read(states_TE, torch.tensor(tokens[:5]), place_tokens(cache, [1], [5]), cache).states_RE
    cache.extend([1], [5])
    fused_TE = dense.fuse(features_TF)
    for row in range(5):
        want_E = dense.read(fused_TE[row], tokens[row])
        assert (out_TE[row] - want_E).abs().max() < 1e-10
    state_1E, want_E = out_TE[-1:], want_E
    for step in range(3):
        want_E = dense.read(want_E, tokens[5 + step])
        state_1E = head.read(
            state_1E, torch.tensor(tokens[5 + step : 6 + step]), place_tokens(cache, [1], [1], [step]), cache
        ).states_RE
        assert (state_1E[0] - want_E).abs().max() < 1e-10
        assert (head.predict(state_1E)[0] - dense.predict(want_E)).abs().max() < 1e-9


def test_the_default_layers_are_the_published_ones_and_fit_small_targets() -> None:
    assert default_layer_ids(28) == (2, 14, 25)
    assert default_layer_ids(32) == (2, 16, 29)
    assert default_layer_ids(36) == (2, 18, 33)
    assert [default_layer_ids(n) for n in (1, 2, 3, 4, 6)] == [(0, 0, 0), (0, 1, 1), (0, 1, 2), (1, 2, 2), (2, 3, 3)]


@pytest.mark.parametrize(("seed", "num_layers"), [(0, 1), (5, 2), (6, 3)])
def test_memory_counts_what_is_not_shared(seed: int, num_layers: int) -> None:
    target = tiny_target()
    checkpoint = random_checkpoint(target, seed)
    assert checkpoint.spec.layer.num_layers == num_layers
    matrices = sum(tensor.numel() for tensor in checkpoint.tensors.values() if tensor.dim() == 2)
    assert head_of(checkpoint, target).num_bytes == 8 * matrices
    own = {**checkpoint.tensors, "embed_tokens.weight": torch.zeros(31, 16)}
    with_own = Eagle3Checkpoint(spec=checkpoint.spec, tensors=own, ids_K=checkpoint.ids_K, provenance={})
    assert head_of(with_own, target).num_bytes == 8 * (matrices + 31 * 16)


def test_published_shapes() -> None:
    """Qwen2.5-7B: as published for the native layout."""
    target = tiny_target()
    layer = random_checkpoint(target, 0).spec.layer
    big = replace(
        layer, vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_heads=28, num_kv_heads=4, head_dim=128
    )
    shapes = Eagle3Spec(layer=big, draft_vocab_size=16000, target_hidden_size=3584).shapes()
    assert shapes == {
        "fc.weight": (3584, 10752),
        "midlayer.input_layernorm.weight": (3584,),
        "midlayer.hidden_norm.weight": (3584,),
        "midlayer.self_attn.q_proj.weight": (3584, 7168),
        "midlayer.self_attn.k_proj.weight": (512, 7168),
        "midlayer.self_attn.v_proj.weight": (512, 7168),
        "midlayer.self_attn.o_proj.weight": (3584, 3584),
        "midlayer.post_attention_layernorm.weight": (3584,),
        "midlayer.mlp.gate_proj.weight": (18944, 3584),
        "midlayer.mlp.up_proj.weight": (18944, 3584),
        "midlayer.mlp.down_proj.weight": (3584, 18944),
        "norm.weight": (3584,),
        "lm_head.weight": (16000, 3584),
    }
