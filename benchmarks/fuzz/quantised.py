"""Damaged directories of published quantised weights: compressed-tensors, AWQ and GPTQ."""

import importlib
import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.fuzz.driver import ROOT
from benchmarks.fuzz.mutate import ODD_VALUES, json_text, mutate_bytes, mutate_json
from safetensors.torch import save_file
from torch import Tensor

import outrider

KINDS_OF_WEIGHTS = ("stored", "stored", "bf16", "int8", "int4")


@cache
def _layouts() -> Any:
    """Return the tests' writer of such directories."""
    sys.path.insert(0, str(ROOT / "tests" / "unit" / "formats" / "quantised"))
    return importlib.import_module("published_layouts")


def decode(model: Path, weights: str) -> None:
    """Load a model with a kind of weights and decode two tokens."""
    target = outrider.load_target(str(model), weights=weights)
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_len=40)
    prompt: Any = "hi" if target.tokenizer is not None else [5, 6]
    engine.generate([prompt], outrider.SamplingParams(max_tokens=2))


def quantised(rng: random.Random, directory: Path) -> None:
    """Damage the config, a tensor or the bytes of a quantised directory."""
    layouts = _layouts()
    made = layouts.checkpoint(rng.choice(layouts.CASES), rng.randrange(3), with_head=rng.random() < 0.2)
    part = rng.random()
    if part < 0.5:
        _damage_config(made.config, rng)
    elif part < 0.85:
        for _ in range(rng.choice((1, 1, 2))):
            _damage_tensors(made.tensors, rng)
    directory.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in made.tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_bytes(json_text(made.config, random.Random(1)))
    if part > 0.85:
        victim = rng.choice(sorted(directory.iterdir()))
        victim.write_bytes(mutate_bytes(victim.read_bytes(), rng))
    decode(directory, rng.choice(KINDS_OF_WEIGHTS))


def _damage_config(config: dict[str, Any], rng: random.Random) -> None:
    section = config["quantization_config"]
    if rng.random() < 0.8:
        config["quantization_config"] = mutate_json(section, rng)
    else:
        config[rng.choice(("quantization_config", "torch_dtype", "compression_config"))] = rng.choice(
            (*ODD_VALUES, {"quant_method": "fp8"}, {"quant_method": "awq"}, [section], json.dumps(section))
        )


def _damage_tensors(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """Change one tensor that belongs to a quantised matrix, or which there are."""
    name = rng.choice(sorted(name for name in tensors if "proj" in name))
    found = tensors[name]
    match rng.randrange(9):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = found[: rng.randrange(found.shape[0] + 1)].clone()
        case 2:
            tensors[name] = found.flatten() if rng.random() < 0.5 else found[None]
        case 3:
            stem = name.rpartition(".")[0]
            tensors[rng.choice((f"{stem}.weight", f"{stem}.bias", f"{stem}.input_scale", f"{name}x"))] = found.clone()
        case 4:
            tensors[name] = found.to(rng.choice((torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64)))
        case 5:
            value = rng.choice((0, -1, 2**15 - 1, 127))
            tensors[name] = torch.full(found.shape, value).to(found.dtype) if found.numel() else found
        case 6 if found.is_floating_point():
            tensors[name] = found.clone()
            tensors[name].flatten()[rng.randrange(found.numel())] = rng.choice((float("nan"), float("inf"), 6e4, -1))
        case 7 if found.ndim == 2:
            tensors[name] = found.T.contiguous()
        case _:
            other = rng.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other].clone(), found.clone()
