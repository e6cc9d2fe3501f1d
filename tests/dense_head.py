"""The EAGLE-3 head written out densely: one text, every row from scratch, over all rows before it."""

import torch
from torch import Tensor

from outrider.formats.eagle3 import Eagle3Checkpoint
from outrider.models.rope import rope_tables


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
        x_E = self._layer(x_E, torch.cat([embed_E, hidden_E]), 0)
        for number in range(1, spec.layer.num_layers):
            x_E = self._layer(x_E, norm(x_E, w[f"layers.{number}.input_layernorm.weight"]), number)
        return norm(x_E, w["norm.weight"]) if spec.norm_output else x_E

    def _layer(self, x_E: Tensor, normed_X: Tensor, number: int) -> Tensor:
        layer, rows, window = self.spec.layer, self.rows[number], self.spec.layer.windows[number]
        name = f"layers.{number}." if number else "midlayer."
        w = {key.removeprefix(name): weight for key, weight in self.weights.items() if key.startswith(name)}
        rows.append(normed_X)
        rows_LX = torch.stack(rows)
        q, k, v = (
            (rows_LX @ w[f"self_attn.{part}_proj.weight"].T).unflatten(-1, (-1, layer.head_dim)) for part in "qkv"
        )
        if layer.qk_norm:
            q, k = norm(q, w["self_attn.q_norm.weight"]), norm(k, w["self_attn.k_norm.weight"])
        tables = rope_tables(layer, len(rows_LX))
        q, k = self._turn(q, *tables), self._turn(k, *tables)
        repeat = layer.num_heads // layer.num_kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores_HL = torch.einsum("hd,lhd->hl", q[-1], k).mul(layer.head_dim**-0.5)
        # the row itself is one of the window's positions
        scores_HL[:, : 0 if window is None else max(0, len(rows) - window)] = -torch.inf
        weights_HL = scores_HL.softmax(-1)
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
