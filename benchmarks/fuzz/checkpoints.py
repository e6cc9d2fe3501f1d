"""Damaged model directories: one file of a tiny checkpoint is changed, then it is loaded and decodes two tokens."""

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from benchmarks.fuzz.mutate import json_text, mutate_json
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
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(directory)
    return directory


def copy_of(family: str, directory: Path) -> Path:
    """Return a copy of a tiny checkpoint in `directory`."""
    shutil.copytree(intact(family), directory, dirs_exist_ok=True)
    return directory


def use(model: Path) -> None:
    """Load a model and decode two tokens of a text, as `outrider generate` does."""
    target = outrider.load_target(str(model), dtype="float32")
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_len=40)
    engine.generate(["hi" if target.tokenizer is not None else [5, 6]], max_new_tokens=2)


def config(rng: random.Random, directory: Path) -> None:
    """Damage `config.json`."""
    model = copy_of(rng.choice(sorted(FAMILIES)), directory)
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if rng.random() < 0.4:
        fields.pop("rope_parameters", None)
        fields |= {"rope_theta": 10_000.0, "rope_scaling": dict(rng.choice(ROPES))}
    (model / "config.json").write_bytes(json_text(mutate_json(fields, rng), rng))
    use(model)
