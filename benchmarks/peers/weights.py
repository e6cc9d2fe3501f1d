"""The weights every peer reads: one target and one small draft model, as Hugging Face directories and as GGUF files.

All peers that speculate with a second model get the same one: a trained model given with `--draft`, or the target's own
first layers with its norm and head. Such a cut costs nothing and is a poor guesser; it shows what each peer pays for
drafting, not what a good draft model would bring. Our checkpoints leave out what they share with the target, and are
completed here. Draft models lie in `.peers/models/`, GGUF files in the cache of models, under names made from their
source; they are written once.
"""

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from roster import FAILED, LLAMA, executable
from safetensors.torch import load_file, save_file

from outrider.bench.external import kept_layers
from outrider.errors import CheckpointError
from outrider.formats.locate import cache_directory, locate
from outrider.records.files import replacing

CUT_LAYERS = 3
EMBEDDING = "model.embed_tokens.weight"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Directories for most peers, files for llama.cpp; a file is empty where it could not be written."""

    model: Path
    draft: Path
    gguf: Path | None
    draft_gguf: Path | None
    draft_source: str


def prepare(root: Path, target: str, draft: str | None) -> Weights:
    """Find or write the weights; GGUF files only where llama.cpp was built.

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
    files = [_gguf(root, directory) if converter_of(root).exists() else None for directory in (model, small)]
    return Weights(model=model, draft=small, gguf=files[0], draft_gguf=files[1], draft_source=source)


def converter_of(root: Path) -> Path:
    """Return llama.cpp's script that writes GGUF files."""
    return root / LLAMA / "source" / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"


def key_of(directory: Path) -> str:
    """Return eight hexadecimal digits that change with the weights."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no safetensors file; give the directory of a model")
    text = "|".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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


def _gguf(root: Path, directory: Path) -> Path | None:
    """Convert the weights for llama.cpp, once; if that fails, leave the reason beside its build."""
    file = cache_directory() / "peers" / f"{key_of(directory)}-bf16.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert(root, directory, file)
        except CheckpointError as error:
            (root / LLAMA / FAILED).write_text(str(error))
            return None
    return file


def convert(root: Path, directory: Path, file: Path) -> None:
    """Write the weights of a directory as a bf16 GGUF file, with llama.cpp's converter.

    Raises:
        CheckpointError: if it fails.
    """
    command = [str(executable(root / LLAMA)), str(converter_of(root)), str(directory), "--outtype", "bf16"]
    with replacing(file) as part:
        done = subprocess.run([*command, "--outfile", str(part)], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"llama.cpp's converter failed on {directory.name}: {last[:200]}")
