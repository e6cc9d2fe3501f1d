"""GGUF files for llama.cpp: the published one where a model is a GGUF file, else written by its converter, once.

    stored    the file as it was published; of another directory, bf16
    bf16      llama.cpp's converter
    int8      Q8_0, made from that by `llama-quantize`
    int4      Q4_0, made likewise

Files lie in the cache under a name made from their source's files, and are complete under their names.

Example: `target_file(llama, "smollm2-135m", "stored", "bfloat16")` is the published Q4_1 file.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from filelock import FileLock

from outrider.errors import CheckpointError
from outrider.formats.locate import cache_directory, gguf_file, locate
from outrider.llama_cpp.environment import Llama
from outrider.models.weight_kinds import WeightsChoice
from outrider.records.files import replacing

__all__ = ["OUTTYPES", "converted", "quantised", "target_file"]

OUTTYPES: Final = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f32"}
KINDS: Final = {"int8": "Q8_0", "int4": "Q4_0"}


def target_file(llama: Llama, name: str, weights: WeightsChoice, dtype: str) -> Path:
    """Return the file of a target, with the weights that our engine would compute with.

    Raises:
        CheckpointError: if it cannot be converted.
        ConfigError: if this llama.cpp has no converter.
    """
    published = gguf_file(name)
    if published is not None and weights == "stored":
        return published
    whole = converted(llama, locate(name), OUTTYPES[dtype] if weights == "stored" else "bf16")
    return quantised(llama, whole, KINDS[weights]) if weights in KINDS else whole


def converted(llama: Llama, directory: Path, outtype: str, *, target: Path | None = None) -> Path:
    """Return the GGUF file of a Hugging Face directory.

    Args:
        outtype: bf16, f16 or f32.
        target: directory of the target, whose tokenizer a head takes.

    Raises:
        CheckpointError: if llama.cpp cannot convert such a model.
    """
    script = llama.converter
    file = cache_directory() / "gguf" / f"{key_of(directory)}-{outtype}.gguf"
    with _lock(file):
        if file.exists():
            return file
        command = [sys.executable, str(script), str(directory), "--outtype", outtype]
        command += [] if target is None else ["--target-model-dir", str(target)]
        with replacing(file) as part:
            _run([*command, "--outfile", str(part)], f"llama.cpp cannot convert {directory}", llama.packages)
    return file


def quantised(llama: Llama, source: Path, kind: str) -> Path:
    """Return a file's weights in another type, such as Q8_0.

    Raises:
        CheckpointError: if `llama-quantize` fails.
    """
    file = source.with_name(f"{source.stem.rpartition('-')[0]}-{kind.lower()}.gguf")
    with _lock(file):
        if not file.exists():
            with replacing(file) as part:
                program = str(llama.program("llama-quantize"))
                _run([program, str(source), str(part), kind], f"llama-quantize failed on {source}", None)
    return file


def key_of(directory: Path) -> str:
    """Return eight hexadecimal digits that change with the weights.

    Raises:
        CheckpointError: for a directory without safetensors files.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no safetensors file; give the directory of a model")
    text = "|".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _lock(file: Path) -> FileLock:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_suffix(".lock"))


def _run(command: list[str], fault: str, packages: Path | None) -> None:
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])] if packages else []
    more = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | more)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise CheckpointError(f"{fault} ({last.strip()[:200]}); give a model that it reads, or leave the engine out")
