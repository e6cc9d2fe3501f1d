"""The EAGLE-3 head against its formulas, written out densely."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outrider.cache import KVCache
from outrider.formats.eagle3 import Eagle3Checkpoint
from outrider.models.eagle3 import Eagle3Spec, default_layer_ids
from outrider.models.rope import rope_tables
from outrider.placement import place_tokens
from outrider.proposers.eagle3 import head_of, random_checkpoint
from outrider.testing import tiny_target


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


class Dense:
    """The head on one text: every row is computed from scratch, over all rows before it."""

    def __init__(self, checkpoint: Eagle3Checkpoint, embedding_VE: Tensor) -> None:
        self.spec, self.weights, self.embedding_VE = checkpoint.spec, checkpoint.tensors, embedding_VE
        self.rows: list[list[Tensor]] = [[] for _ in range(self.spec.layer.num_layers)]  # normed, entering each layer

    def fuse(self, features_TF: Tensor) -> Tensor:
        parts = features_TF.split(self.spec.target_hidden_size, dim=-1)
        if self.spec.fc_norm:
            parts = [
                norm(part, self.weights[f"fc_norm.{feature_layer}.weight"]) for feature_layer, part in enumerate(parts)
            ]
        joined = torch.cat(list(parts), dim=-1)
        if self.spec.norm_before_fc:
            joined = norm(joined, self.weights["input_norm.weight"])
        return joined @ self.weights["fc.weight"].T

    def read(self, state_E: Tensor, token: int) -> Tensor:
        """The next row's output state; it sees every row read before."""
        spec, w = self.spec, self.weights
        embed_E = norm(self.embedding_VE[token], w["midlayer.input_layernorm.weight"])
        hidden_E = norm(state_E, w["midlayer.hidden_norm.weight"])
        x_E = hidden_E if spec.norm_before_residual else state_E
        x_E = self._layer(x_E, torch.cat([embed_E, hidden_E]), "midlayer.", self.rows[0])
        for number in range(1, spec.layer.num_layers):
            normed_E = norm(x_E, w[f"layers.{number}.input_layernorm.weight"])
            x_E = self._layer(x_E, normed_E, f"layers.{number}.", self.rows[number])
        return norm(x_E, w["norm.weight"]) if spec.norm_output else x_E

    def _layer(self, x_E: Tensor, normed_X: Tensor, name: str, rows: list[Tensor]) -> Tensor:
        layer = self.spec.layer
        w = {key.removeprefix(name): weight for key, weight in self.weights.items() if key.startswith(name)}
        rows.append(normed_X)
        rows_LX = torch.stack(rows)
        q, k, v = ((rows_LX @ w[f"self_attn.{part}_proj.weight"].T).unflatten(-1, (-1, 8)) for part in "qkv")
        if layer.qk_norm:
            q, k = norm(q, w["self_attn.q_norm.weight"]), norm(k, w["self_attn.k_norm.weight"])
        tables = rope_tables(layer, len(rows_LX))
        q, k = self._turn(q, *tables), self._turn(k, *tables)
        repeat = layer.num_heads // layer.num_kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        weights_HL = torch.einsum("hd,lhd->hl", q[-1], k).mul(8**-0.5).softmax(-1)
        out_E = torch.einsum("hl,lhd->hd", weights_HL, v).flatten()
        x_E = x_E + w["self_attn.o_proj.weight"] @ out_E
        inner_E = norm(x_E, w["post_attention_layernorm.weight"])
        gate_I = torch.nn.functional.silu(w["mlp.gate_proj.weight"] @ inner_E)
        return x_E + w["mlp.down_proj.weight"] @ (gate_I * (w["mlp.up_proj.weight"] @ inner_E))

    def predict(self, state_E: Tensor) -> Tensor:
        state_E = state_E if self.spec.norm_output else norm(state_E, self.weights["norm.weight"])
        return self.weights["lm_head.weight"] @ state_E

    @staticmethod
    def _turn(x_LHD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
        left, right = x_LHD.chunk(2, dim=-1)
        return x_LHD * cos_LD[:, None] + torch.cat([-right, left], -1) * sin_LD[:, None]


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
