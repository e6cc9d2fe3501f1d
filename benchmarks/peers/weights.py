"""The weights every peer reads: one target and one small draft model, as Hugging Face directories.

All peers that speculate with a second model get the same one: a trained model given with `--draft`, or the target's own
first layers with its norm and head. Such a cut costs nothing and is a poor guesser; it shows what each peer pays for
drafting, not what a good draft model would bring. Our checkpoints leave out what they share with the target, and are
completed here. They lie in `.peers/models/` under names made from their source, and are written once.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from outrider.bench.external import kept_layers
from outrider.errors import CheckpointError
from outrider.formats.locate import locate
from outrider.llama_cpp.files import key_of

CUT_LAYERS = 3
EMBEDDING = "model.embed_tokens.weight"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Directories of the target and the draft model."""

    model: Path
    draft: Path
    draft_source: str


def prepare(root: Path, target: str, draft: str | None) -> Weights:
    """Find or write the weights.

    Raises:
        CheckpointError: if the draft model is no causal language model with the target's vocabulary.
    """
    model, models = locate(target), root / "models"
    models.mkdir(parents=True, exist_ok=True)
    source = f"trained, {draft}" if draft else f"the target's first {CUT_LAYERS} layers"
    small = models / f"draft-{key_of(model)}-{key_of(locate(draft)) if draft else CUT_LAYERS}"
    if not small.exists():
        scratch = small.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        _complete(locate(draft), model, scratch) if draft else _cut(model, scratch)
        scratch.rename(small)
    return Weights(model=model, draft=small, draft_source=source)


def _cut(model: Path, into: Path) -> None:
    import torch
    import transformers

    whole = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
    )
    kept_layers(whole, range(CUT_LAYERS)).save_pretrained(into)
    _tokenizer(model, into)


def _complete(draft: Path, model: Path, into: Path) -> None:
    """Write a draft checkpoint with the target's embedding and head, where it lacks them."""
    config = json.loads((draft / "config.json").read_text())
    if "layers.0.self_attn.q_proj.weight" not in " ".join(tensors := load_file(draft / "model.safetensors")):
        raise CheckpointError(f"{draft} is not a causal language model; give a draft model, not a head")
    whole = load_file(model / "model.safetensors")
    tied = json.loads((model / "config.json").read_text()).get("tie_word_embeddings", False)
    shared = [EMBEDDING] if tied else [EMBEDDING, "lm_head.weight"]
    tensors |= {name: whole[name] for name in shared if name not in tensors}
    into.mkdir(parents=True)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    kept = {key: value for key, value in config.items() if key != "outrider"}
    (into / "config.json").write_text(json.dumps(kept, indent=2))
    _tokenizer(model, into)


def _tokenizer(model: Path, into: Path) -> None:
    for name in BESIDE:
        if (model / name).exists():
            shutil.copy(model / name, into / name)
