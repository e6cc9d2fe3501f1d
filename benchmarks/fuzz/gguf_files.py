"""Damaged GGUF files: bytes, header, metadata, tensors and parts of a tiny model."""

import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from benchmarks.fuzz.checkpoints import SPECIAL, intact, use
from benchmarks.fuzz.mutate import ODD_VALUES, mutate_bytes, mutate_text
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KEYS: dict[str, Any] = {
    "llama.context_length": 64,
    "llama.embedding_length": 16,
    "llama.block_count": 2,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.dimension_count": 4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.merges": ["a b"],
}
OTHER_KEYS = (
    *("general.type", "general.architecture", "llama.rope.scaling.type", "llama.rope.scaling.factor"),
    *("llama.logit_scale", "llama.expert_count", "llama.attention.sliding_window", "llama.vocab_size"),
    *("split.count", "split.no", "tokenizer.chat_template", "tokenizer.ggml.padding_token_id", "llama.unknown"),
)


@cache
def _tensors() -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in load_file(intact("llama") / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        if stem in NAMES:
            found[f"{NAMES[stem]}.{kind}"] = tensor.numpy()
        else:
            _, _, layer, rest = stem.split(".", 3)
            found[f"blk.{layer}.{NAMES[rest]}.{kind}"] = tensor.numpy()
    return found


def _keys() -> dict[str, Any]:
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    kinds = [3] * len(SPECIAL) + [1] * (len(letters) - len(SPECIAL))
    return KEYS | {"tokenizer.ggml.tokens": letters, "tokenizer.ggml.token_type": kinds}


def _write(path: Path, keys: dict[str, Any], tensors: dict[str, np.ndarray], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Store what the format can hold of a value."""
    writer.kv_data[0].pop(key, None)
    match value:
        case bool():
            writer.add_bool(key, value)
        case int() if 0 <= value < 2**32:
            writer.add_uint32(key, value)
        case int() if -(2**63) <= value < 2**63:
            writer.add_int64(key, value)
        case float() if abs(value) < 1e38 or value != value or value in (float("inf"), float("-inf")):
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value.encode("utf-8", "replace").decode())
        case list() if value and all(isinstance(one, str) for one in value):
            writer.add_array(key, value)
        case list() if value and all(type(one) is int and abs(one) < 2**31 for one in value):
            writer.add_array(key, value)
        case _:
            writer.add_string(key, "odd")


def gguf_file(rng: random.Random, directory: Path) -> None:
    """Damage one GGUF file, or one in parts."""
    os.environ["OUTRIDER_CACHE"] = str(directory / "cache")
    keys, tensors, file = _keys(), dict(_tensors()), directory / "model.gguf"
    match rng.randrange(6):
        case 0 | 1:
            for _ in range(rng.choice((1, 1, 2, 3))):
                key = rng.choice((*keys, *OTHER_KEYS))
                if rng.random() < 0.3:
                    keys.pop(key, None)
                else:
                    keys[key] = rng.choice((*ODD_VALUES, 5, 16, 64, "yarn", "linear", "adapter", ["a"], [1, 2]))
            use(_write(file, keys, tensors, rng.choice(("llama", "llama", "llama", "qwen2", "gemma"))))
        case 2:
            data = _write(file, keys, tensors).read_bytes()
            header = min(len(data), 8000)
            file.write_bytes(mutate_bytes(data[:header], rng) + data[header:])
            use(file)
        case 3:
            data = _write(file, keys, tensors).read_bytes()
            file.write_bytes(mutate_text(data, rng))
            use(file)
        case 4:
            _damage(tensors, rng)
            use(_write(file, keys, tensors))
        case _:
            use(_parts(rng, directory, keys, tensors))


def _damage(tensors: dict[str, np.ndarray], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    found = tensors[name].copy()
    match rng.randrange(5):
        case 0:
            found.reshape(-1)[rng.randrange(found.size)] = rng.choice((float("nan"), float("inf"), 3.4e38))
            tensors[name] = found
        case 1:
            del tensors[name]
        case 2:
            tensors[name] = found[:-1]
        case 3:
            tensors[rng.choice(("rope_freqs.weight", "blk.0.attn_q.bias", "blk.7.attn_q.weight", "x"))] = found
        case _:
            tensors[name] = found.astype(rng.choice((np.float16, np.float64, np.int8, np.int32)))


def _parts(rng: random.Random, directory: Path, keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    names, files = sorted(tensors), []
    for number in range(2):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        if rng.random() < 0.3:
            split[rng.choice(sorted(split))] = rng.choice((0, 1, 2, 3, 99))
        here = {name: tensors[name] for name in names[number::2]}
        file = directory / f"model-{number + 1:05d}-of-00002.gguf"
        files.append(_write(file, (keys if number == 0 else {}) | split, here))
    if rng.random() < 0.3:
        rng.choice(files).unlink()
    return rng.choice(files)
