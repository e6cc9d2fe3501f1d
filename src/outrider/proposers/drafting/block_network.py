"""Networks that draft blocks, packed for a target; what a checkpoint does not hold is the target's.

Example: `network_of(random_checkpoint(target, 0), target)` is a small network of random weights.

Shapes: K columns, E hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor

from outrider.formats.blocks.dflash import DFlashCheckpoint
from outrider.models.blocks.dflash import DFlashNetwork, DFlashSpec, default_layer_ids
from outrider.models.blocks.markov import MarkovHead
from outrider.models.blocks.selector import CandidateSelector
from outrider.models.output_head import OutputHead
from outrider.models.spec import DecoderSpec, RopeSpec
from outrider.target import Target
from outrider.targets.output_head import output_head

__all__ = ["markov_of", "network_of", "output_of", "random_checkpoint", "selector_of"]


def network_of(checkpoint: DFlashCheckpoint, target: Target) -> DFlashNetwork:
    """Pack a network for a target's device and dtype; an embedding that the checkpoint lacks is the target's."""
    own = checkpoint.tensors.get("embed_tokens.weight")
    return DFlashNetwork(
        checkpoint.spec,
        checkpoint.tensors,
        embedding_VE=target.shared_weights().embedding_VE if own is None else own.to(target.spec.dtype),
        mask_E=checkpoint.tensors.get("mask_embedding"),
        owns_embedding=own is not None,
        dtype=target.spec.dtype,
        device=target.spec.device,
    )


def output_of(checkpoint: DFlashCheckpoint, network: DFlashNetwork, target: Target, ids_K: Tensor | None) -> OutputHead:
    """Return the output head: the checkpoint's own or the target's, with the columns of `ids_K` alone if given."""
    mask_id, own_KE = checkpoint.spec.mask_id, checkpoint.tensors.get("lm_head.weight")
    if own_KE is None:
        return output_head(target, None if ids_K is None else ids_K[ids_K != mask_id])
    kept_K = checkpoint.ids_K != mask_id
    if ids_K is not None:
        kept_K &= torch.isin(checkpoint.ids_K, ids_K)
    packed = network.ops.narrow().pack(own_KE[kept_K].to(target.spec.device, target.spec.dtype))
    return OutputHead(network.ops, target.project, packed, checkpoint.ids_K[kept_K].to(target.spec.device))


def markov_of(checkpoint: DFlashCheckpoint, network: DFlashNetwork, output: OutputHead) -> MarkovHead | None:
    """Return the bias from token to token at the output's columns; None without one."""
    if not checkpoint.spec.markov_rank:
        return None
    columns_K = output.ids_K
    if columns_K is not None and checkpoint.has_head:  # rows are those of its own output head
        columns_K = torch.searchsorted(checkpoint.ids_K, columns_K.cpu())
    return MarkovHead(checkpoint.tensors, columns_K, network.ops, network.dtype, network.device)


def selector_of(checkpoint: DFlashCheckpoint, network: DFlashNetwork, output: OutputHead) -> CandidateSelector | None:
    """Return the candidate selector of DFlash-2 at the output's columns; None without one."""
    spec = checkpoint.spec
    if not spec.selector_rank:
        return None
    return CandidateSelector(
        checkpoint.tensors, spec.selector_top_k, output.ids_K, network.ops, network.dtype, network.device
    )


def random_checkpoint(target: Target, seed: int) -> DFlashCheckpoint:
    """Make a network of random weights that fits the target, its variant and vocabulary drawn from `seed`."""
    found, generator = target.spec, torch.Generator().manual_seed(seed)
    num_layers = 1 + seed % 3
    decoder = DecoderSpec(
        family="qwen3",
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=2 * found.hidden_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=1 + seed % 2,
        head_dim=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=found.max_positions,
        rope=RopeSpec(original_max_position_embeddings=found.max_positions),
        qk_norm=seed % 4 != 1,
        windows=tuple(7 if (seed + layer) % 4 == 3 else None for layer in range(num_layers)),
    )
    owns, is_second = seed % 3 == 2, seed % 11 == 10 and seed % 7 != 6
    # as files can say it: sliding layers, no layer, or every layer
    causal = [tuple(window is not None for window in decoder.windows), (False,) * num_layers, (True,) * num_layers]
    spec = DFlashSpec(
        decoder=decoder,
        block_size=4 + seed % 3,
        mask_id=(7 * seed + 3) % found.vocab_size,
        layer_ids=default_layer_ids(found.num_layers, 1 + seed % 2),
        target_hidden_size=found.hidden_size,
        draft_vocab_size=found.vocab_size * 2 // 3 if owns and not is_second else found.vocab_size,
        drafts_at_root=seed % 5 == 1 and not is_second,
        causal=causal[seed % 5 % 3],
        markov_rank=3 if seed % 7 == 6 else 0,
        confidence_inputs=found.hidden_size + 3 if seed % 7 == 6 else 0,
    )
    if is_second:
        spec = replace(
            spec, conv_kernel_size=2 + seed % 2, conv_group_size=4, selector_rank=3, selector_top_k=4 + seed % 3
        )
        spec = replace(spec, embedding_scale=0.5, output_scale=2.0, softcap=3.0) if seed % 2 else spec
    shapes: dict[str, tuple[int, ...]] = spec.shapes()
    if owns:
        shapes |= {"lm_head.weight": (spec.draft_vocab_size, found.hidden_size), "mask_embedding": (found.hidden_size,)}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = 1 + 0.1 * noise if name.endswith("norm.weight") else 0.5 * noise
    ids_K = torch.randperm(found.vocab_size, generator=generator)[: spec.draft_vocab_size].sort().values
    return DFlashCheckpoint(spec=spec, tensors=tensors, ids_K=ids_K, provenance={})
