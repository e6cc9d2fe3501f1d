"""Architectures that only llama.cpp runs here, from random models that its own converter writes.

Skipped without llama-cpp-python (`pip install 'outrider[llama]'`) or without the converter (`make llama`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, Lfm2Config, MambaConfig, PreTrainedConfig, Qwen3MoeConfig

from outrider import Engine, SamplingParams, load_proposer, load_target
from outrider.draft import Tree
from outrider.errors import ConfigError
from outrider.llama_cpp.environment import Llama, find_llama
from outrider.proposer import DraftLimit
from outrider.target import Target
from outrider.testing import Scripted
from outrider.testing.scripted import Script

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'outrider[llama]' compiles it")

SIZES: dict[str, Any] = {"hidden_size": 64, "vocab_size": 49152, "initializer_range": 0.2}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
ATTENTION = {"intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTION |= {"max_position_embeddings": 512}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3moe": Qwen3MoeConfig(**SIZES, **ATTENTION, **EXPERTS, head_dim=16),
    "gpt-oss": GptOssConfig(
        **SIZES,
        **ATTENTION,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "lfm2": Lfm2Config(
        **SIZES,
        **ATTENTION,
        layer_types=["conv", "full_attention", "conv", "conv"],
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
    ),
    "mamba": MambaConfig(**SIZES, num_hidden_layers=3, state_size=8),
}
DRAFTS = {"qwen3moe": "trees", "gpt-oss": "trees", "lfm2": "chains", "mamba": "chains"}
PROMPTS = [[5, 900, 1400, 5, 900, 1400, 5, 900], [77, 78], [300, 301, 302]]


@pytest.fixture(scope="module")
def llama() -> Llama:
    try:
        return find_llama(Path(os.environ.get("OUTRIDER_LLAMA", Path(__file__).parents[2] / ".llama.cpp")))
    except ConfigError as error:
        pytest.skip(f"no converter: {error}")


@pytest.fixture(params=list(CONFIGS))
def target(request: pytest.FixtureRequest, llama: Llama, smollm2_dir: Path, tmp_path: Path) -> Target:
    """A random model of an architecture, through llama.cpp's converter, on llama.cpp."""
    torch.manual_seed(0)
    directory = tmp_path / request.param
    AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, directory)
    file = tmp_path / f"{request.param}.gguf"
    command = [sys.executable, str(llama.converter), str(directory), "--outtype", "f32", "--outfile", str(file)]
    environment = os.environ | {"PYTHONPATH": str(llama.packages)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return load_target(str(file), dtype="float32", backend="llama_cpp")


def branches(texts: dict[tuple[int, ...], tuple[int, ...]]) -> Script:
    """Drafts the next three tokens of known texts beside a wrong one, which comes first at every other position."""

    def script(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        prompt = next(prompt for prompt in texts if tuple(tokens[: len(prompt)]) == prompt)
        right = list(texts[prompt][len(tokens) - len(prompt) :][:3])
        if not right or limit.num_nodes < 5:
            return Tree([], [])
        wrong = (right[0] + 1) % 49152
        if len(tokens) % 2:
            return Tree([wrong, *right, 7], [-1, -1, *range(1, len(right)), len(right)])
        return Tree([*right, 7, wrong], [*range(-1, len(right)), -1])

    return script


@pytest.mark.model
def test_drafts_change_no_text(target: Target) -> None:
    """Greedy and sampled texts, in a batch of two, equal plain decoding's with trees and with lookups."""
    assert target.spec.drafts == DRAFTS[Path(target.spec.name).stem]
    for params in (SamplingParams(max_tokens=12, ignore_eos=True), SamplingParams(max_tokens=8, temperature=0.8)):
        plain = Engine(target, load_proposer("none", target), max_len=64).generate(PROMPTS, params)
        texts = {tuple(prompt): tuple(one.tokens) for prompt, one in zip(PROMPTS, plain, strict=True)}
        for proposer in (load_proposer("ngram", target), Scripted(branches(texts), max_nodes=5)):
            engine = Engine(target, proposer, max_len=64, max_batch=2)
            assert [one.tokens for one in engine.generate(PROMPTS, params)] == [one.tokens for one in plain]
    assert engine.num_steps < 2 * 8  # three requests of 8 tokens, two at a time: some drafts were accepted
