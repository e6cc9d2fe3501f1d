"""Damaged model directories: one file of a tiny checkpoint is changed, then it is loaded and decodes two tokens."""

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_text
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import outrider

FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROPES = (
    {"rope_type": "linear", "factor": 2.0},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer with three special tokens and a chat template."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], bos_token=SPECIAL[0])
    fast.chat_template = CHATML
    fast.save_pretrained(directory)


@cache
def intact(family: str = "llama") -> Path:
    """Return a tiny checkpoint of a family with a tokenizer; made once in a process."""
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{family}-"))
    write_tokenizer(directory)
    torch.manual_seed(0)
    config = FAMILIES[family](
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(torch.float32).save_pretrained(directory)
    return directory


def copy_of(family: str, directory: Path) -> Path:
    """Return a copy of a tiny checkpoint in `directory`."""
    shutil.copytree(intact(family), directory, dirs_exist_ok=True)
    return directory


def use(model: Path, backend: str = "auto") -> None:
    """Load a model and decode two tokens of a text, as `outrider generate` does."""
    target = outrider.load_target(str(model), dtype="float32", backend=backend)
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_len=40)
    engine.generate(["hi" if target.tokenizer is not None else [5, 6]], outrider.SamplingParams(max_tokens=2))


def config(rng: random.Random, directory: Path) -> None:
    """Damage `config.json`."""
    model = copy_of(rng.choice(sorted(FAMILIES)), directory)
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if rng.random() < 0.4:
        fields.pop("rope_parameters", None)
        fields |= {"rope_theta": 10_000.0, "rope_scaling": dict(rng.choice(ROPES))}
    (model / "config.json").write_bytes(json_text(mutate_json(fields, rng), rng))
    use(model)


def _damage_json(rng: random.Random, directory: Path, name: str) -> Path:
    model = copy_of("llama", directory)
    found = json.loads((model / name).read_text(encoding="utf-8"))
    (model / name).write_bytes(json_text(mutate_json(found, rng), rng))
    return model


def tokenizer(rng: random.Random, directory: Path) -> None:
    """Damage `tokenizer.json`, by its sections as often as by its vocabulary."""
    model = copy_of("llama", directory)
    file = model / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = fields["model"].pop("vocab")
    fields = mutate_json(fields, rng)
    if isinstance(fields, dict) and isinstance(fields.get("model"), dict):
        fields["model"].setdefault("vocab", mutate_json(vocabulary, rng) if rng.random() < 0.3 else vocabulary)
    file.write_bytes(json_text(fields, rng))
    use(model)


def tokenizer_config(rng: random.Random, directory: Path) -> None:
    """Damage `tokenizer_config.json` or `special_tokens_map.json`."""
    name = rng.choice(("tokenizer_config.json", "special_tokens_map.json"))
    model = copy_of("llama", directory)
    if name == "special_tokens_map.json":
        known = {"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[2], "special": True}, "extra": [SPECIAL[1]]}
        (model / name).write_text(json.dumps(known), encoding="utf-8")
    found = json.loads((model / name).read_text(encoding="utf-8"))
    (model / name).write_bytes(json_text(mutate_json(found, rng), rng))
    use(model)


def generation_config(rng: random.Random, directory: Path) -> None:
    """Damage `generation_config.json`, for either back end."""
    use(_damage_json(rng, directory, "generation_config.json"), rng.choice(("native", "hf")))


def hf_config(rng: random.Random, directory: Path) -> None:
    """Damage the `config.json` of a model that only `transformers` runs."""
    use(_damage_json(rng, directory, "config.json"), "hf")


def index(rng: random.Random, directory: Path) -> None:
    """Damage the index of a checkpoint in shards, or lose, swap and rename shards."""
    model = copy_of("llama", directory)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names, place = sorted(weights), {}
    for number in range(3):
        shard = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {name: weights[name] for name in names[number::3]}
        save_file(part, model / shard)
        place |= dict.fromkeys(part, shard)
    content: Any = {"metadata": {"total_size": 1}, "weight_map": place}
    match rng.randrange(4):
        case 0:
            (model / rng.choice(sorted(set(place.values())))).unlink()
        case 1:
            first, second = rng.sample(sorted(set(place.values())), 2)
            (model / first).replace(model / second)
        case 2:
            name = rng.choice(names)
            content["weight_map"][name] = rng.choice(("../x.safetensors", "/etc/passwd", "", ".", "a\0b", "x" * 5000))
        case _:
            content = mutate_json(content, rng)
    (model / "model.safetensors.index.json").write_bytes(json_text(content, rng))
    use(model)


def weights(rng: random.Random, directory: Path) -> None:
    """Damage a safetensors file: its bytes, its header, its tensors."""
    model = copy_of(rng.choice(sorted(FAMILIES)), directory)
    file = model / "model.safetensors"
    data = file.read_bytes()
    match rng.randrange(4):
        case 0:
            file.write_bytes(mutate_bytes(data, rng))
        case 1:
            size = int.from_bytes(data[:8], "little")
            header = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), rng)).encode("utf-8", "surrogatepass")
            file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        case 2:
            (file).write_bytes(mutate_text(data, rng))
        case _:
            tensors = load_file(file)
            _damage_tensors(tensors, rng)
            save_file(tensors, file)
    use(model, rng.choice(("auto", "hf")))


def _damage_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    found = tensors[name]
    match rng.randrange(6):
        case 0:
            found.view(-1)[rng.randrange(found.numel())] = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))
        case 1:
            del tensors[name]
        case 2:
            tensors[name] = found[:-1].clone() if rng.random() < 0.5 else found[None].clone()
        case 3:
            tensors[rng.choice((f"{name}_scale", "model.layers.0.self_attn.q_proj.bias", "x", "\x1b[31m"))] = (
                found.clone()
            )
        case 4:
            tensors[name] = found.to(rng.choice((torch.float16, torch.int64, torch.float8_e4m3fn, torch.bool)))
        case _:
            tensors[f"{name}x"] = tensors.pop(name)


def directory_of_other_files(rng: random.Random, directory: Path) -> None:
    """Take files away from a model directory, and put others in."""
    model = copy_of("llama", directory)
    for file in rng.sample(sorted(model.iterdir()), rng.randrange(1, 4)):
        file.unlink()
    others = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "a.gguf",
        "params.json",
        "README.md",
    )
    for name in rng.sample(others, rng.randrange(3)):
        (model / name).write_bytes(rng.choice((b"", b"{}", b'{"base_model_name_or_path": "a/b"}', b"\xff\xfe", b"[1]")))
    if rng.random() < 0.2:
        use(rng.choice(sorted(model.iterdir()) or [model]))
    use(model)
