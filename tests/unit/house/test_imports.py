"""Imports go down through the storeys, without an exception and without a circle, and no folder is crowded.

A class that is named in a registry (`BUDGETS`, `REGISTRY`, the objectives, the commands) is imported when it is first
wanted; a registry is the one place where a lower storey names a higher one.
"""

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from prose import SOURCE, parse

FILES = sorted(SOURCE.rglob("*.py"))
STOREYS = [
    *("errors", "env", "kernels", "records", "params", "draft", "noise", "sampling", "processors"),
    *("cache", "placement", "ops", "models"),
    *("target", "formats", "proposer", "loop", "targets", "requests", "metrics", "verify", "budget", "batch", "engine"),
    "traces",
    *("costs", "adaptive", "proposers", "http", "data", "results", "catalogue", "export", "vllm", "llama_cpp"),
    *("train", "bench"),
    *("planning", "profiling", "quality", "tuning", "doctor", "report", "serve", "testing", "audit"),
    *("outrider", "cli", "__main__"),
]
"""From the ground up: a file or folder imports from those before it. `outrider` is the package's own `__init__.py`."""
MOST_FILES = 18


def module_of(path: Path) -> str:
    parts = ["outrider", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def storey(module: str) -> int:
    return STOREYS.index(module.split(".")[1] if "." in module else "outrider")


@cache
def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, at run time or for its types."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "outrider":
            within = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= within or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "outrider"}
    return found - {module_of(path)}


def test_imports_go_down() -> None:
    wrong = []
    for module, path in MODULES.items():
        face = module == "outrider"  # its imports are for type checkers; names are resolved when they are first used
        for other in imported(path):
            if (other.split(".")[:2] != module.split(".")[:2] or face) and storey(other) >= storey(module):
                wrong.append(f"{module} imports {other}, which stands above it")
    assert wrong == []


def test_no_files_import_each_other() -> None:
    TopologicalSorter({module: imported(path) for module, path in MODULES.items()}).prepare()


def test_every_part_has_a_storey() -> None:
    parts = {module.split(".")[1] if "." in module else module for module in MODULES}
    assert parts == set(STOREYS)


def test_no_folder_is_crowded() -> None:
    folders = Counter(path.parent for path in FILES)
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}
