"""The identity of measured costs: the machine and the target they belong to, and the path of their profile.

A forward's time depends on the machine, the threads, the program that runs it and the target's shape, not on the values
of its weights. So two checkpoints of one shape and one kind of weights share a profile, and the name is only for the
reader.

    ~/.cache/outrider/profiles/30x576-q4-1-q8-0-bfloat16-cpu-1f0c24aa.json
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch

from outrider.env import num_usable_cores
from outrider.errors import RunError
from outrider.formats.locate import cache_directory
from outrider.kernels.cpu.isa import chosen
from outrider.kernels.torch_threads import num_threads
from outrider.target import Target

__all__ = ["UNKNOWN", "Identity", "identity_of", "profile_path"]

CPU_DESCRIPTION: Final = Path("/proc/cpuinfo")
UNKNOWN: Final = "unknown"
NEWER: Final = ("weights", "isa")
"""Fields that older files lack; they are read as unknown, which differs from every target's."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The machine and the target that costs were measured on.

    target           its name, for the reader
    kind             the program that runs it
    device           "cpu", or the GPU's name
    num_threads      threads of the kernels that compute; 0 on a GPU
    num_cores        cores that the process may use
    dtype            dtype of the cache, and of plain weights
    weights          kinds of the weights, as "Q4_1, Q8_0"
    isa              instruction set of the integer kernels on the CPU; "" elsewhere
    bytes_per_token  cache bytes per token
    """

    cpu: str
    num_cores: int
    device: str
    num_threads: int
    target: str
    kind: str
    dtype: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    weight_bytes: int
    bytes_per_token: int
    weights: str
    isa: str

    def difference(self, other: "Identity") -> str | None:
        """Return the first field in which `other` may cost differently, as "num_cores 4, not 2"; None if none does."""
        mine, theirs = asdict(self), asdict(other)
        differing = [name for name in mine if name != "target" and mine[name] != theirs[name]]
        return f"{differing[0]} {theirs[differing[0]]}, not {mine[differing[0]]}" if differing else None

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Return the identity that a file holds.

        Raises:
            RunError: naming the first field that is missing or of the wrong kind.
        """
        given = {**dict.fromkeys(NEWER, UNKNOWN), **value} if isinstance(value, dict) else {}
        for name, kind in cls.__annotations__.items():
            fact = given.get(name)
            if type(fact) is not kind or not str(fact).isprintable():
                raise RunError(f"'identity' lacks '{name}'")
        return cls(**{name: given[name] for name in cls.__annotations__})


def identity_of(target: Target) -> Identity:
    """Return the identity of this machine and this target."""
    spec = target.spec
    is_gpu = spec.device.type == "cuda"
    return Identity(
        cpu=_cpu(),
        num_cores=num_usable_cores(),
        device=torch.cuda.get_device_name(spec.device) if is_gpu else spec.device.type,
        num_threads=0 if is_gpu else num_threads(),
        target=spec.name,
        kind=type(target).__name__,
        dtype=str(spec.dtype).removeprefix("torch."),
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        weight_bytes=spec.weight_bytes,
        bytes_per_token=target.plan(1, 2, 1).bytes_per_token,
        weights=spec.weights,
        isa=chosen() if spec.device.type == "cpu" else "",
    )


def profile_path(identity: Identity) -> Path:
    """Return the path where `outrider profile` keeps its result for the engines of this user."""
    facts = {name: value for name, value in asdict(identity).items() if name != "target"}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    numbers = [*identity.weights.split(", "), identity.dtype]
    parts = [f"{identity.num_layers}x{identity.hidden_size}", *dict.fromkeys(numbers), identity.device]
    name = "-".join("".join(letter if letter.isalnum() else "-" for letter in part.lower()) for part in parts)
    return cache_directory() / "profiles" / f"{name}-{key}.json"


def _cpu() -> str:
    """Return the processor's name."""
    if CPU_DESCRIPTION.exists():
        for line in CPU_DESCRIPTION.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
