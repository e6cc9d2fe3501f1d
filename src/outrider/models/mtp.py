"""Multi-token prediction modules: one decoder layer that reads the target's last state and the next token.

DeepSeek-V3 (arXiv 2412.19437, section 2.2) appends modules to a model, each of which predicts one token further. In
MiMo's layout (hidden state first), with the target's embedding and output head, slot t computes

    x   = W_in [ norm_hidden(h_t) ; norm_token(embed(x_{t+1})) ]
    x  += W_o attend(norm(x));   x += W_down (silu(W_gate norm(x)) * W_up norm(x))
    y_t = norm_final(x)          logits of x_{t+2} = W_head y_t

and y_t is the next input state: of the same module one slot on, or of the next module at the same slot
(`proposers/drafting/mtp_modules.py`).

In MiMo and vLLM h_t is the residual stream before the final norm. The target gives states after it; norm_hidden ignores
the length of its input, so h_t / w, with w the final norm's weight, stands for the stream. The embedding at slot 0
counts as zero, as in vLLM.

Worked example: text x0 x1 x2, root x2. Slot 0 reads (h0, zero), slot 1 reads (h1, x2) and predicts x3.

Shapes: R rows, E hidden size, V vocabulary, B slots, M rows of a slot, P rotary positions, D head size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from outrider.cache import CachePlan, KVCache
from outrider.models.block import Block
from outrider.models.draft_network import DraftStep, Reading
from outrider.models.output_head import OutputHead
from outrider.models.recurrent import RecurrentHead, below, run
from outrider.models.rope import KeptRope
from outrider.models.spec import DecoderSpec
from outrider.ops.base import GraphCache, Result
from outrider.placement import Placement

__all__ = ["MtpModule"]


@final
class MtpModule(RecurrentHead):
    """One module, packed for the target's device in the target's dtype.

    Args:
        spec: sizes, rotary scaling and biases of the layer; its `num_layers` is the target's.
        weights: the module's tensors under `prefix` ("model.mtp_layers.0.").
        device, dtype: the target's.
        embedding_VE: the target's; rows are read in their own dtype.
        output: the target's output head, or some of its rows.
        state_norm_E: weight of the target's final norm if the module was trained on states before it, else None.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Tensor],
        prefix: str,
        device: torch.device,
        dtype: torch.dtype,
        embedding_VE: Tensor,
        output: OutputHead,
        state_norm_E: Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.cache_dtype = dtype
        self.embedding_VE = embedding_VE
        self.output = output
        self.ops = output.ops
        activation_dtype = self.ops.activation_dtype
        packer = self.ops.narrow()
        self.block = Block.packed(spec, weights, prefix, packer, device)
        self.input = packer.pack(weights[f"{prefix}input_proj.weight"])
        self.hidden_norm_E, self.token_norm_E, self.final_norm_E = (
            weights[f"{prefix}{name}_layernorm.weight"].to(device, activation_dtype)
            for name in ("hidden", "token", "final")
        )
        self.state_norm_E = None if state_norm_E is None else state_norm_E.to(device, activation_dtype)
        self._rope = KeptRope(spec, device, activation_dtype)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return (self.spec.num_layers,)

    @property
    def ids_K(self) -> Tensor | None:
        return self.output.ids_K

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes, without the output head, which several modules share."""
        return self.block.num_bytes + self.input.num_bytes

    def plan(self, num_slots: int, capacity: int, tail: int) -> CachePlan:
        transposed, dtype = self.ops.transposes_keys, self.cache_dtype
        plan = self.spec.cache_plan(num_slots, capacity, tail, dtype, transposed_keys=transposed)
        return replace(plan, num_layers=1)

    def fuse(self, features_RF: Tensor) -> Tensor:
        states_RE = features_RF.to(self.ops.activation_dtype)
        return states_RE if self.state_norm_E is None else states_RE / self.state_norm_E

    @torch.inference_mode()
    def read(
        self,
        states_RE: Tensor,
        tokens_R: Tensor,
        placement: Placement,
        cache: KVCache,
        *,
        num_predicted: int = 0,
        graph_cache: GraphCache | None = None,
    ) -> Reading:
        def body(both_RE: Tensor, placement: Placement) -> Result:
            out_RE = self._layer(both_RE, placement, cache)
            return Result(self.predict(out_RE[len(out_RE) - num_own :]) if num_own else None, out_RE)

        num_own = num_predicted if self.output.packed is not None else 0  # the target's projection is not ours
        both_RE = self.inputs(states_RE, tokens_R, placement)
        states_RE, logits_NK = run(self.ops, graph_cache, num_own, body, both_RE, placement)
        if num_predicted > num_own:
            logits_NK = self.predict(states_RE[len(states_RE) - num_predicted :])
        return Reading(states_RE, logits_NK)

    @torch.inference_mode()
    def store(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement, cache: KVCache) -> None:
        self._layer(self.inputs(states_RE, tokens_R, placement), placement, cache, stores_only=True)

    def inputs(self, states_RE: Tensor, tokens_R: Tensor, placement: Placement) -> Tensor:
        both_RE = below(self.embedding_VE[tokens_R], states_RE, self.ops.activation_dtype)
        # The embedding at position 0 counts as zero.
        both_RE[: len(tokens_R)] *= placement.positions_BM.reshape(-1, 1) > 0
        return both_RE

    def draft_step(self, cache: KVCache) -> DraftStep | None:
        if self.output.packed is None:
            return None
        return DraftStep(
            ops=self.ops,
            read=lambda both_RE, placement: self._layer(both_RE, placement, cache),
            predict=self.output,
            ids_K=self.ids_K,
            embedding_VE=self.embedding_VE,
            reads_states=True,
        )

    def _layer(self, both_RE: Tensor, placement: Placement, cache: KVCache, *, stores_only: bool = False) -> Tensor:
        """Run the module, by operations alone, so that a back end may record it.

        Args:
            stores_only: leave out what only outputs need.
        """
        ops, eps, (rows, E) = self.ops, self.spec.rms_norm_eps, both_RE.shape
        embedded_RE, states_RE = both_RE[: rows // 2], both_RE[rows // 2 :]
        pair_RF, x_RE, out_RE = both_RE.new_empty(rows // 2, 2 * E), *(torch.empty_like(states_RE) for _ in range(2))
        ops.collect(states_RE, self.hidden_norm_E, eps, pair_RF, 0)
        ops.collect(embedded_RE, self.token_norm_E, eps, pair_RF, E)
        ops.collect(ops.norm_project(pair_RF, None, eps, self.input), None, eps, x_RE, 0)
        qkv_RQ = ops.norm_project(x_RE, self.block.input_norm_E, eps, self.block.qkv)
        rope = self._rope.reaching(0, beyond=cache.plan.rotary_positions)
        kept = cache.keys_LCHSD[0], cache.values_LCHSD[0]
        if stores_only:
            self.block.store(ops, qkv_RQ, rope, *kept, placement)
            return x_RE
        self.block.apply(ops, x_RE, qkv_RQ, rope, *kept, placement)
        ops.collect(x_RE, self.final_norm_E, eps, out_RE, 0)
        return out_RE

    def predict(self, states_RE: Tensor) -> Tensor:
        return self.output(states_RE)
