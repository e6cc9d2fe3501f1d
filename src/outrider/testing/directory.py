"""A tiny model on disk: random weights, a byte-level tokenizer and a chat template, in Hugging Face's layout.

Every command and loader can be run on it end to end in milliseconds. Its text is gibberish, but deterministic; one
character of ASCII is one token.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from outrider.testing.tiny import tiny_spec, tiny_weights

__all__ = ["write_tiny_model"]

SPECIALS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(
    directory: Path, seed: int = 0, *, max_positions: int = 512, dtype: torch.dtype = torch.float64, **changes: Any
) -> Path:
    """Write a two-layer decoder with 258 tokens; gives the directory.

    Args:
        changes: other sizes, as `tiny_spec` takes them: quantised weights need a `hidden_size` of 32 or a multiple.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {symbol: index for index, symbol in enumerate((*sorted(ByteLevel.alphabet()), *SPECIALS))}
    spec = tiny_spec(vocab_size=len(vocab), max_positions=max_positions, **changes)
    weights = {name: weight.to(dtype).contiguous() for name, weight in tiny_weights(spec, seed).items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "eos_token_id": vocab["<|im_end|>"],
        "bos_token_id": vocab["<|im_start|>"],
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(directory))
    return directory
