"""Memory that is free for this process, and allocations that fail in spite of a plan.

On the CPU the least of these counts, since each ends a process in its own way:

    available     memory of the machine that is not in use
    cgroup        the limit of a container or a service, less what it holds (cache of files excluded)
    rlimits       `ulimit -v` and `ulimit -d`, less what this process has mapped

Example: in a container of 2 GiB on a machine of 64 GiB, `free_bytes(torch.device("cpu"))` is below 2**31.
"""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
import torch

from outrider.errors import CapacityError, said
from outrider.records.files import size

__all__ = ["allocating", "free_bytes", "is_out_of_memory"]

CGROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
FILES_OF_V2: Final = ("memory.max", "memory.current", "inactive_file")
FILES_OF_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
WORDS: Final = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""Words of PyTorch, safetensors and the C library, in lower case."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [int(psutil.virtual_memory().available), *_below_rlimits()]
    left = cgroup_left(CGROUPS, MEMBERSHIP)
    return max(0, min(limits if left is None else [*limits, left]))


def _below_rlimits() -> Iterator[int]:
    """Yield what is left of this process's own limits, where it has some."""
    kinds = {resource.RLIMIT_AS: "vms", resource.RLIMIT_DATA: "data"}
    limits = {kind: resource.getrlimit(kind)[0] for kind in kinds}
    if all(limit == resource.RLIM_INFINITY for limit in limits.values()):
        return
    used = psutil.Process().memory_info()._asdict()  # not every system counts both
    for kind, field in kinds.items():
        if limits[kind] != resource.RLIM_INFINITY and field in used:
            yield limits[kind] - int(used[field])


def cgroup_left(root: Path, membership: Path) -> int | None:
    """Return the bytes below the tightest limit of this process's control groups; None where there is no limit."""
    places = [(root, FILES_OF_V2), (root / "memory", FILES_OF_V1)]
    with suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                base, names = places[0] if controllers == "" else places[1]
                # a container sees its own group as the root, a service a path below it
                places += [(base / part, names) for part in _parents(path)]
    found = [left for left in (_left(*place) for place in places) if left is not None]
    return min(found, default=None)


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts)) if parts[0]]


def _left(group: Path, names: tuple[str, str, str]) -> int | None:
    """Return what is left in one group, whose files of the page cache can be given up; None without a limit."""
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in names[:2])
        rows = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return limit - used + sum(int(row[1]) for row in rows if row[0] == names[2])
    except (OSError, ValueError, IndexError):  # no such controller, or the word "max"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: libraries have no exception in common for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and any(word in str(error).lower() for word in WORDS)


@contextmanager
def allocating(what: str, remedy: str, device: torch.device) -> Iterator[None]:
    """Turn a failed allocation into one sentence: "`what` needs more memory than is free (...); `remedy`".

    Raises:
        CapacityError: if an allocation failed; any other exception passes.
    """
    try:
        yield
    except CapacityError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free = size(free_bytes(device))
        raise CapacityError(
            f"{what} needs more memory than the {free} that are free ({said(error)}); {remedy}"
        ) from None
