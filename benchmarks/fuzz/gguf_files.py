"""Damaged GGUF files: bytes, header, metadata, tensors and parts of tiny models, plain and of every quantised type."""

import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from benchmarks.fuzz.checkpoints import SPECIAL, intact, use
from benchmarks.fuzz.mutate import ODD_VALUES, mutate_bytes, mutate_text
from benchmarks.fuzz.quantised import KINDS_OF_WEIGHTS, decode
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from outrider.formats.gguf.blocks import BLOCK_TYPES

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


def _write(
    path: Path,
    keys: dict[str, Any],
    tensors: dict[str, np.ndarray],
    architecture: str = "llama",
    kinds: dict[str, str] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        kind = (kinds or {}).get(name)
        writer.add_tensor(name, values, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


WIDE = {
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.block_count": 1,
    "llama.rope.dimension_count": 64,
}
SHAPES = {
    "token_embd": (260, 256),
    "output": (260, 256),
    "blk.0.attn_q": (256, 256),
    "blk.0.attn_k": (128, 256),
    "blk.0.attn_v": (128, 256),
    "blk.0.attn_output": (256, 256),
    "blk.0.ffn_gate": (512, 256),
    "blk.0.ffn_up": (512, 256),
    "blk.0.ffn_down": (256, 512),
}
NOT_STORED = ("IQ2_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "Q8_K", "I8", "BF16")
"""Types that are converted or refused."""


def gguf_quantised(rng: random.Random, directory: Path) -> None:
    """Damage a file whose matrices are of quantised types, each of its own or all of one."""
    os.environ["OUTRIDER_CACHE"] = str(directory / "cache")
    tensors, kinds = dict[str, np.ndarray](), dict[str, str]()
    only = rng.choice((None, rng.choice(sorted(BLOCK_TYPES))))
    for name, shape in SHAPES.items():
        kinds[f"{name}.weight"] = kind = only or rng.choice(NOT_STORED if rng.random() < 0.02 else sorted(BLOCK_TYPES))
        tensors[f"{name}.weight"] = _blocks(kind, shape, rng)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = np.ones(256, np.float32)
    keys = _keys() | WIDE
    file = directory / "model.gguf"
    part = rng.randrange(5)
    if part == 0:
        keys[rng.choice((*WIDE, *KEYS, *OTHER_KEYS))] = rng.choice((*ODD_VALUES, 5, 32, 128, 1024))
    elif part == 1:
        name = rng.choice(sorted(kinds))
        tensors[name] = tensors[name][: rng.randrange(1, len(tensors[name]))]
    data = _write(file, keys, tensors, kinds=kinds).read_bytes()
    if part == 2:
        header = 8000
        data = mutate_bytes(data[:header], rng) + data[header:]
    elif part == 3:
        data = data[:12_000] + mutate_bytes(data[12_000:], rng)  # blocks alone: their scales may be anything
    file.write_bytes(data)
    decode(file, rng.choice(KINDS_OF_WEIGHTS))


def _blocks(kind: str, shape: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Return random blocks with small scales where they are float16 numbers."""
    rows, columns = shape
    features, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random_bytes = np.random.default_rng(rng.getrandbits(32)).integers
    data = random_bytes(0, 256, (rows, columns // features, num_bytes), np.uint8)
    for dtype, place, *_ in (BLOCK_TYPES[kind].layout.fields or {}).values() if kind in BLOCK_TYPES else ():
        if dtype == np.float16:
            data[..., place + 1] = 0x20 | data[..., place + 1] & 0x83  # between 2^-7 and 2^-6
    if kind == "MXFP4":
        data[..., 0] = 120
    return data.reshape(rows, -1)


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "hi"]
PIECE_KEYS: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1],
    "tokenizer.ggml.scores": [*[0.0] * 259, -1.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_space_prefix": False,
}


def gguf_pieces(rng: random.Random, directory: Path) -> None:
    """Damage the SentencePiece tokenizer of a GGUF file: its pieces, scores, kinds and settings."""
    os.environ["OUTRIDER_CACHE"] = str(directory / "cache")
    keys = {key: value for key, value in KEYS.items() if key != "tokenizer.ggml.merges"} | PIECE_KEYS
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(sorted(PIECE_KEYS))
        value = keys.get(key)
        if isinstance(value, list) and value and rng.random() < 0.7:
            keys[key] = _damaged_list(value, rng)
        elif rng.random() < 0.3:
            keys.pop(key, None)
        else:
            keys[key] = rng.choice((*ODD_VALUES, "gpt2", "bert", "t5"))
    use(_write(directory / "model.gguf", keys, dict(_tensors())))


def _damaged_list(values: list[Any], rng: random.Random) -> list[Any]:
    odd = {str: ("", "▁", "<0x00>", "</s>", "\x1b[2J", "é" * 300, "\x00"), int: (0, 1, 3, 4, 5, 6, 7, 99, -1)}
    others = odd.get(type(values[0]), (0.0, -1e38, 3e38, float("nan"), float("inf"), -float("inf")))
    values = list(values)
    at = rng.randrange(len(values))
    match rng.randrange(5):
        case 0:
            del values[at]
        case 1:
            values = values[:at]
        case 2:
            values.append(values[at])
        case 3:
            rng.shuffle(values)
        case _:
            values[at] = rng.choice(others)
    return values


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
        case list() if value and all(type(one) is float for one in value):
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
