"""The trainable decoder of draft models: Llama, Qwen2, Qwen3 and Mistral in plain torch modules.

The parameters carry their Hugging Face names, so that `state_dict` is a checkpoint, and the arithmetic is that of the
native decoder (`outrider.models.decoder`), with two freedoms that training needs: any attention mask, and any
positions.

    x  = embed(token)
    x += W_o attend(W_qkv norm(x), mask)
    x += W_down (silu(W_gate norm(x)) * W_up norm(x))            for every layer
    state = norm(x);  logits = W_head state

Embedding and head are the network's own, or the target's: then they are frozen, are no parameters, and only the row of
a mask token, if there is one, is learnt beside them (`model.mask_embedding`).

Worked example: `DraftNetwork(spec, None)` for a tied spec has exactly the parameters `spec.weight_shapes()`.

Shapes: B rows of the batch, L positions, H heads, D head size, E hidden size, V vocabulary.
"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from outrider.errors import ConfigError
from outrider.formats.hf_draft import EMBEDDING, HEAD, MASK
from outrider.models.spec import DecoderSpec
from outrider.train.objective import Teacher
from outrider.train.objectives.layers import Attention, Mlp, RMSNorm, Rotation, rotation

__all__ = ["DraftNetwork"]


@final
class Layer(nn.Module):
    """One decoder layer; with a window, a row sees no key that many positions or more behind it."""

    def __init__(self, spec: DecoderSpec, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = Mlp(spec)

    def forward(self, x_BLE: Tensor, turned: Rotation, mask_BLL: Tensor, ages_BLL: Tensor) -> Tensor:
        if self.window is not None:
            mask_BLL = mask_BLL & (ages_BLL < self.window)
        q, k, v = self.self_attn.heads(self.input_layernorm(x_BLE), turned)
        num_repeats = q.shape[2] // k.shape[2]
        k, v = (part.repeat_interleave(num_repeats, dim=2) for part in (k, v))  # every fast kernel takes these
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed_BHLD = scaled_dot_product_attention(q, k, v, mask_BLL[:, None])
        x_BLE = x_BLE + self.self_attn.output(mixed_BHLD.transpose(1, 2))
        out: Tensor = x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))
        return out


@final
class Trunk(nn.Module):
    """The part under `model.` in a checkpoint."""

    def __init__(self, spec: DecoderSpec, *, own_embedding: bool, own_mask: bool) -> None:
        super().__init__()
        if own_embedding:
            self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        if own_mask:
            self.mask_embedding = nn.Parameter(torch.zeros(spec.hidden_size))
        self.layers = nn.ModuleList(Layer(spec, window) for window in spec.windows)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


@final
class DraftNetwork(nn.Module):
    """The decoder.

    Args:
        shared: the target whose embedding and head are used; None for its own.
        mask_id: the token that stands for an unknown one, or None.
    """

    def __init__(self, spec: DecoderSpec, shared: Teacher | None, mask_id: int | None = None) -> None:
        super().__init__()
        if spec.post_norms:
            raise ConfigError(
                f"a drafter of the family {spec.family} cannot be trained here; train a head (eagle3, medusa, mtp), "
                "or start from a llama, qwen2 or qwen3 model with the same tokenizer"
            )
        self.spec = spec
        self.shared = shared
        self.mask_id = mask_id
        self.model = Trunk(spec, own_embedding=shared is None, own_mask=shared is not None and mask_id is not None)
        if shared is None and not spec.tie_word_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    @property
    def head_VE(self) -> Tensor:
        """The output head."""
        if self.shared is not None:
            return self.shared.head_VE
        return self.model.embed_tokens.weight if self.spec.tie_word_embeddings else self.lm_head.weight

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, mask_BLL: Tensor) -> Tensor:
        """Return the final states [B, L, E]. `mask_BLL` is True where a row sees a column; no row may be empty."""
        x_BLE = self._embed(tokens_BL)
        turned = rotation(self.spec, positions_BL, self.model.norm.weight.dtype)
        ages_BLL = positions_BL[:, :, None] - positions_BL[:, None, :]
        for layer in self.model.layers:
            x_BLE = layer(x_BLE, turned, mask_BLL, ages_BLL)
        states_BLE: Tensor = self.model.norm(x_BLE)
        return states_BLE

    def _embed(self, tokens_BL: Tensor) -> Tensor:
        if self.shared is None:
            embedded: Tensor = self.model.embed_tokens(tokens_BL)
            return embedded
        x_BLE = embedding(tokens_BL, self.shared.embedding_VE)
        if self.mask_id is None:
            return x_BLE
        return torch.where((tokens_BL == self.mask_id)[..., None], self.model.mask_embedding, x_BLE)

    def tensors(self, *, complete: bool) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by Hugging Face name; `complete` adds shared ones, the mask in its row."""
        own = dict(self.state_dict())
        if self.shared is None or not complete:
            return own
        own[EMBEDDING] = self.shared.embedding_VE
        if self.mask_id is not None:
            own[EMBEDDING] = own[EMBEDDING].clone()
            own[EMBEDDING][self.mask_id] = own.pop(MASK)
        if not self.complete_spec.tie_word_embeddings:
            own[HEAD] = self.shared.head_VE
        return own

    @property
    def complete_spec(self) -> DecoderSpec:
        """Spec of the complete form: with a shared embedding and a mask, the head is stored apart."""
        if self.shared is None:
            return self.spec
        tied = self.shared.head_VE is self.shared.embedding_VE and self.mask_id is None
        return replace(self.spec, tie_word_embeddings=tied)
