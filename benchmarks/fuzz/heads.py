"""Damaged drafters: one file of a tiny head or draft model is changed, then it is loaded and drafts a few tokens.

Whatever was changed, a drafter that is taken must leave the text alone; so every text is compared with plain decoding.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.fuzz import checkpoints
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json
from safetensors.torch import load_file, save_file
from torch import Tensor

import outrider
from outrider.formats.blocks import dflash as blocks
from outrider.formats.eagle3 import write_native, write_speculators
from outrider.formats.hf_draft import write_draft
from outrider.formats.medusa import write_medusa
from outrider.formats.mtp import write_mtp
from outrider.formats.store import provenance
from outrider.formats.weights import read_weights
from outrider.models.spec import DecoderSpec
from outrider.proposers import dflash as dflash_networks
from outrider.proposers import eagle3 as eagle3_heads
from outrider.proposers import medusa as medusa_heads
from outrider.proposers import mtp as mtp_modules
from outrider.sampling import SamplingParams
from outrider.target import Target

NUM_TOKENS = 6
PROMPT = (5, 77, 130, 9, 200)
Writer = Callable[[Path, int], None]


@cache
def target() -> Target:
    """Return the target of all heads, loaded once in a process."""
    return outrider.load_target(str(checkpoints.intact()), dtype="float32")


@cache
def text() -> tuple[int, ...]:
    """Return what the target writes on its own."""
    return written(outrider.load_proposer("none", target()))


def written(proposer: outrider.Proposer) -> tuple[int, ...]:
    """Return what the target writes with a drafter."""
    engine = outrider.Engine(target(), proposer, max_len=32)
    [answer] = engine.generate([list(PROMPT)], SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True))
    return answer.tokens


def _eagle3(directory: Path, seed: int) -> None:
    checkpoint = eagle3_heads.random_checkpoint(target(), seed)
    if seed % 2:
        write_native(directory, checkpoint, torch.float32)
    else:
        write_speculators(directory, checkpoint, torch.float32, verifier="x", architectures=["LlamaForCausalLM"])


def _medusa(directory: Path, seed: int) -> None:
    checkpoint = medusa_heads.random_checkpoint(target(), seed)
    shape = checkpoint.shape
    layout = "fasterdecoding" if shape.output != "one" and not shape.is_reduced else "vllm"
    if layout == "vllm" and shape.output == "target":
        return _medusa(directory, seed + 1)
    facts = provenance(target(), tree=[[0], [1], [0, 0]])
    write_medusa(directory, shape, checkpoint.tensors, layout, facts)  # type: ignore[arg-type]
    return None


def _mtp(directory: Path, seed: int) -> None:
    state = "normed" if seed % 2 else "residual"
    write_mtp(directory, mtp_modules.random_checkpoint(target(), 1 + seed % 2, state, seed), torch.float32)  # type: ignore[arg-type]


def _dflash(directory: Path, seed: int) -> None:
    checkpoint, layers = dflash_networks.random_checkpoint(target(), seed), target().spec.num_layers
    if seed % 2:
        blocks.write_native(directory, checkpoint, layers, torch.float32)
    else:
        blocks.write_speculators(
            directory,
            checkpoint,
            torch.float32,
            verifier="x",
            architectures=["LlamaForCausalLM"],
            target_layers=layers,
        )


def _draft_model(directory: Path, seed: int) -> None:
    if seed % 2:
        shutil.copytree(checkpoints.intact(), directory, dirs_exist_ok=True)
        return
    source = checkpoints.intact()
    spec = DecoderSpec.from_config_file(source)
    own = {name: tensor for name, tensor in read_weights(source).items() if "embed" not in name and "head" not in name}
    write_draft(directory, spec, own, target(), torch.float32, {}, {"pard_token": 7})


@cache
def intact(kind: str, seed: int) -> Path:
    """Return an undamaged drafter, made once in a process."""
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    writers: dict[str, Writer] = {
        "dflash": _dflash,
        "draft_model": _draft_model,
        "eagle3": _eagle3,
        "medusa": _medusa,
        "mtp": _mtp,
    }
    writers[kind](directory, seed)
    return directory


def _damage_tensors(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """Change one tensor, or which there are."""
    name = rng.choice(sorted(tensors))
    found = tensors[name]
    match rng.randrange(9):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = found.flatten()[: rng.randrange(found.numel() + 1)].clone()
        case 2:
            tensors[name] = torch.cat([found, found])
        case 3:
            tensors[name + rng.choice(("x", ".bias", "\u001b[2J", "\n"))] = tensors.pop(name)
        case 4 if found.is_floating_point():
            tensors[name] = found.clone()
            tensors[name].flatten()[rng.randrange(found.numel())] = rng.choice((float("nan"), float("inf"), -1e38))
        case 5 if not found.is_floating_point():
            tensors[name] = torch.randint(
                -400, 400, found.shape, generator=torch.Generator().manual_seed(rng.getrandbits(30))
            )
        case 6:
            tensors[name] = found.to(rng.choice((torch.float16, torch.int64, torch.uint8, torch.int8, torch.bool)))
        case 7:
            tensors[name] = found[None]
        case _:
            other = rng.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other].clone(), found.clone()


def _damage(directory: Path, rng: random.Random) -> None:
    """Change the config, the weights, or the bytes of a file."""
    file = next(iter(sorted(directory.glob("*.safetensors"))))
    part = rng.random()
    if part < 0.55:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        (directory / "config.json").write_bytes(json_text(mutate_json(config, rng), rng))
    elif part < 0.85:
        tensors = load_file(file)
        for _ in range(rng.choice((1, 1, 2))):
            if tensors:
                _damage_tensors(tensors, rng)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    else:
        victim = rng.choice(sorted(path for path in directory.iterdir() if path.is_file()))
        victim.write_bytes(mutate_bytes(victim.read_bytes(), rng))


def _kind(kind: str, methods: tuple[str, ...]) -> Callable[[random.Random, Path], None]:
    def run(rng: random.Random, directory: Path) -> None:
        shutil.copytree(intact(kind, rng.randrange(6)), directory, dirs_exist_ok=True)
        _damage(directory, rng)
        proposer = outrider.load_proposer(rng.choice(methods), target(), checkpoint=str(directory), num_nodes=2)
        assert written(proposer) == text(), "a damaged drafter changed the text"

    return run


dflash = _kind("dflash", ("dflash",))
eagle3 = _kind("eagle3", ("eagle3",))
medusa = _kind("medusa", ("medusa",))
mtp = _kind("mtp", ("mtp",))
draft_model = _kind("draft_model", ("draft_model", "pard"))
