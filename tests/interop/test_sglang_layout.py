"""What SGLang's loaders want, by name and shape, and whether an export has it: SGLang itself does not run here.

Its EAGLE-3 class takes a tensor where the name, or "model." before it, is one of its parameters, and drops any other
without a word; so every parameter must be named, and nothing else. Its draft models are complete causal models.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outrider.data.texts import Corpus
from outrider.export.exported import Export, Exported, export_checkpoint
from outrider.models.spec import DecoderSpec
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.train.objective import Objective, Teacher
from outrider.train.objectives import OBJECTIVES

FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory = write_tiny_model(tmp_path_factory.mktemp("target"), dtype=torch.bfloat16)
    return load_target(str(directory), dtype="float32", device="cpu")


def exported(name: str, target: Target, tmp_path: Path, **settings: Any) -> tuple[Exported, Path, str]:
    module, _, attribute = OBJECTIVES[name].partition(":")
    cls: type[Objective] = getattr(import_module(module), attribute)
    counts_V = torch.arange(target.spec.vocab_size) % 20
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    objective = cls.create(Teacher.of(target, "cpu"), cls.Config(**settings), corpus, seed=3)
    source, output = tmp_path / "trained", tmp_path / "exported"
    source.mkdir()
    output.mkdir()
    objective.save(source, torch.bfloat16)
    export = Export(checkpoint=source, target=target, output=output, engine="sglang", num_nodes=4)
    found = export_checkpoint(export)
    return found, output, found.command(export)


def eagle_parameters(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of SGLang's `LlamaForCausalLMEagle3`, without the embedding, which it takes from the target."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    layer = "model.midlayer."
    return {
        "model.fc.weight": (hidden, 3 * config["target_hidden_size"]),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["draft_vocab_size"], hidden),
        f"{layer}input_layernorm.weight": (hidden,),
        f"{layer}hidden_norm.weight": (hidden,),
        f"{layer}post_attention_layernorm.weight": (hidden,),
        f"{layer}self_attn.qkv_proj.weight": (queries + 2 * keys, 2 * hidden),
        f"{layer}self_attn.o_proj.weight": (hidden, queries),
        f"{layer}mlp.gate_up_proj.weight": (2 * inner, hidden),
        f"{layer}mlp.down_proj.weight": (hidden, inner),
    }


def test_an_eagle_head_has_every_parameter_and_no_other(target: Target, tmp_path: Path) -> None:
    _, output, _ = exported("eagle3", target, tmp_path, draft_vocab=100)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(output / "model.safetensors")
    d2t_K, t2d_V = tensors.pop("d2t"), tensors.pop("t2d")
    wanted = eagle_parameters(config)
    rows: dict[str, int] = {}
    for name, tensor in tensors.items():
        for part, fused in FUSED.items():
            name = name.replace(f".{part}.", f".{fused}.")
        name = name if name in wanted else f"model.{name}"
        assert name in wanted, f"SGLang would drop {name}"
        assert tensor.shape[1:] == wanted[name][1:]
        rows[name] = rows.get(name, 0) + len(tensor)
    assert rows == {name: shape[0] for name, shape in wanted.items()}
    hot_K = d2t_K + torch.arange(len(d2t_K))
    assert int(hot_K.max()) < target.spec.vocab_size
    assert t2d_V[hot_K].all()
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["tie_word_embeddings"] is False
    assert config["num_hidden_layers"] == 1
    assert config["draft_vocab_size"] == len(d2t_K)
    assert not config.get("norm_before_residual")


def test_a_draft_model_is_a_complete_causal_model(target: Target, tmp_path: Path) -> None:
    _, output, _ = exported("draft", target, tmp_path, layers="0,1")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    spec = DecoderSpec.from_config_file(output)
    tensors = load_file(output / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == spec.weight_shapes()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == target.spec.vocab_size


FLAGS = ("algorithm", "draft-model-path", "num-steps", "eagle-topk", "num-draft-tokens")


@pytest.mark.parametrize(("name", "algorithm"), [("eagle3", "EAGLE3"), ("draft", "STANDALONE")])
def test_the_launch_flags(name: str, algorithm: str, target: Target, tmp_path: Path) -> None:
    found, output, command = exported(name, target, tmp_path, **({"draft_vocab": 100} if name == "eagle3" else {}))
    assert tuple(found.speculative) == tuple(f"speculative-{flag}" for flag in FLAGS)
    assert list(found.speculative.values()) == [algorithm, output, 4, 1, 5]
    head = f"python -m sglang.launch_server --model-path {target.spec.source} --speculative-algorithm {algorithm} "
    assert command.startswith(head)
