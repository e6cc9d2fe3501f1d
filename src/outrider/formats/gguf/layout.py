"""Names, shapes and row order of a GGUF model's tensors in Hugging Face terms.

`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`. A `llama` file stores the rows of each query and key
head interleaved, for rotary planes (0, 1), (2, 3), ...; Hugging Face pairs row i with row i + D/2. With D/2 planes:
[plane, half] -> [half, plane].

Example: of a head with D = 4, a `llama` file holds the rows (0, 2, 1, 3) of the Hugging Face matrix.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from outrider.errors import CheckpointError
from outrider.formats.gguf import gemma3, llama4, phi3
from outrider.formats.gguf.experts import QWEN3_MOE
from outrider.formats.gguf.file import GgufFile
from outrider.formats.gguf.gemma3 import GEMMA3
from outrider.formats.gguf.llama4 import EXPERTS_NAME, LLAMA4
from outrider.formats.gguf.phi3 import DIVISORS, PHI3
from outrider.formats.gguf.tensors import EXPERTS
from outrider.formats.gguf.tokenizer import end_ids
from outrider.formats.weights import StoredTensor, Weights
from outrider.models.spec import DecoderSpec

__all__ = ["check_tensors", "generation_config", "halves_first", "hugging_face_names", "rotated_heads"]

ROPE_FREQUENCIES: Final = "rope_freqs.weight"
TOP_NAMES: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPERT_NAMES: Final = dict(zip(EXPERTS, ("gate_proj", "up_proj", "down_proj"), strict=True))
ROUTER: Final = {"ffn_gate_inp": "mlp.gate"}


def hugging_face_names(source: GgufFile) -> dict[str, str]:
    """Return the file's name of every weight by its Hugging Face name; a table of rotary divisors is no weight.

    Raises:
        CheckpointError: for a tensor that no supported architecture has.
    """
    own = {GEMMA3: gemma3.LAYER_NAMES, QWEN3_MOE: ROUTER, PHI3: phi3.LAYER_NAMES, LLAMA4: llama4.LAYER_NAMES}
    inner = LAYER_NAMES | own.get(source.architecture, {})
    others = {ROPE_FREQUENCIES, *(DIVISORS.values() if source.architecture == PHI3 else ())}
    experts = EXPERTS_NAME if source.architecture == LLAMA4 else "mlp.experts"
    return {
        _hugging_face_name(name, inner, experts, source.path): name for name in source.tensors if name not in others
    }


def _hugging_face_name(name: str, layer_names: Mapping[str, str], experts: str, path: Path) -> str:
    stem, _, kind = name.rpartition(".")
    block, _, inner = stem.removeprefix("blk.").partition(".")
    if stem in TOP_NAMES and kind == "weight":
        return f"{TOP_NAMES[stem]}.weight"
    expert_part, _, number = inner.partition(".")
    if stem.startswith("blk.") and block.isdecimal() and expert_part in EXPERT_NAMES and number.isdecimal():
        return f"model.layers.{block}.{experts}.{number}.{EXPERT_NAMES[expert_part]}.{kind}"
    if stem.startswith("blk.") and block.isdecimal() and inner in layer_names and kind in ("weight", "bias"):
        return f"model.layers.{block}.{layer_names[inner]}.{kind}"
    raise CheckpointError(
        f"{path} holds tensor {name}, which no supported architecture has; use the original checkpoint"
    )


def check_tensors(source: GgufFile, names: Mapping[str, str], spec: DecoderSpec) -> None:
    """Refuse a file with a missing, extra or misshapen tensor.

    Raises:
        CheckpointError: naming the tensor.
    """
    shapes = spec.weight_shapes()
    missing = [name for name in shapes if name not in names]
    if missing:
        raise CheckpointError(
            f"{source.path} has no tensor {missing[0]} ({len(missing)} are missing in all); download it again"
        )
    given = {name: source.tensors[stored] for name, stored in names.items()}
    stored = {
        name: StoredTensor(name=name, file=tensor.file, dtype=tensor.kind, shape=tensor.shape)
        for name, tensor in given.items()
    }
    Weights(stored).check(shapes)


def generation_config(source: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `generation_config.json`: special tokens, and every id that ends a text."""
    ends = end_ids(source.metadata)
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config[key] is not None}
    return ids | ({"eos_token_id": ends} if ends else {})


def rotated_heads(source: GgufFile, name: str, config: Mapping[str, Any]) -> int | None:
    """Return the number of heads whose rows the tensor `name` (the file's name) stores interleaved, None for none."""
    key = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    return int(config[key]) if source.architecture == "llama" and key else None


def halves_first(rows: Tensor, num_heads: int) -> Tensor:
    """Reverse the interleaving of each head's rows: [head, plane, half] -> [head, half, plane]."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
