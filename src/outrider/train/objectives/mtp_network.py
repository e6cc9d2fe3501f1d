"""The trainable form of the prediction modules in `outrider.models.mtp`: plain layers, named as they are published.

`forward` gives the states y that the output head reads, for every slot t of packed texts and every depth j (from 0).

    several modules   module j at slot t: the state of module j - 1 at slot t, x_{t+1+j}, causal over its own keys
    one module        depth j of anchor t stands at slot t + j: its own state of depth j - 1, x_{t+1+j}

With one module, the root is x_{t+1} at run time: the cache then holds the slots up to t, read with the target's states,
and behind them the drafter's own entries, slots t+1 .. t+j. That is the mask of training-time test (`layers.py`):

    anchor 2 at depth 2, slot 4      depth 0: slots 0 1 2      depth 1: slot 3 of anchor 2      depth 2: itself

Shapes: B rows, L slots, E hidden size, K depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from outrider.models.spec import DecoderSpec
from outrider.train.objectives.layers import Attention, Mlp, RMSNorm, Rollout, Rotation, rotation

__all__ = ["MtpInputs", "MtpNetwork"]


@dataclass(frozen=True, eq=False)
class MtpInputs:
    """The inputs of the modules.

    states_BLE     last states of the target
    embeds_KBLE    embedding of x_{t+1+j} for each depth j, any value where the text has ended
    positions_BL   positions of the slots in their texts
    causal_BLL     bool, which slots a slot sees; see `Batch.causal_BLL`
    """

    states_BLE: Tensor
    embeds_KBLE: Sequence[Tensor]
    positions_BL: Tensor
    causal_BLL: Tensor


@final
class MtpLayer(nn.Module):
    """One module: fusion, a decoder layer and a final norm."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.hidden_layernorm = RMSNorm(width, eps)
        self.token_layernorm = RMSNorm(width, eps)
        self.input_proj = nn.Linear(2 * width, width, bias=False)
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = Mlp(spec)
        self.final_layernorm = RMSNorm(width, eps)

    def forward(self, states_BLE: Tensor, embeds_BLE: Tensor, turned: Rotation, rollout: Rollout) -> Tensor:
        pair_BLX = torch.cat([self.hidden_layernorm(states_BLE), self.token_layernorm(embeds_BLE)], -1)
        x_BLE = self.input_proj(pair_BLX)
        heads = self.self_attn.heads(self.input_layernorm(x_BLE), turned)
        x_BLE = x_BLE + self.self_attn.output(rollout.attend(heads))
        x_BLE = x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))
        y_BLE: Tensor = self.final_layernorm(x_BLE.to(states_BLE.dtype))  # the next depth reads it unrounded
        return y_BLE


@final
class MtpNetwork(nn.Module):
    """All modules; `state_dict` has their published names without the leading `model.`."""

    def __init__(self, spec: DecoderSpec, num_modules: int) -> None:
        super().__init__()
        self.spec = spec
        self.mtp_layers = nn.ModuleList(MtpLayer(spec) for _ in range(num_modules))

    def forward(self, inputs: MtpInputs) -> list[Tensor]:
        """Return the states [B, L, E] of every depth; row t of depth j predicts x_{t+2+j}."""
        states_BLE, found, is_one = inputs.states_BLE, [], len(self.mtp_layers) == 1
        rollout = Rollout(inputs.causal_BLL)
        for depth, embeds_BLE in enumerate(inputs.embeds_KBLE):
            slots_BL = inputs.positions_BL + depth if is_one else inputs.positions_BL
            if not is_one:
                rollout = Rollout(inputs.causal_BLL)  # a module sees its own keys only
            started_BLE = embeds_BLE * (slots_BL > 0)[..., None]  # slot 0 has no token before it
            turned = rotation(self.spec, slots_BL, states_BLE.dtype)
            states_BLE = self.mtp_layers[0 if is_one else depth](states_BLE, started_BLE, turned, rollout)
            found.append(states_BLE)
        return found
