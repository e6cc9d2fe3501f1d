"""Parts of a deployment that several engines share: chains in place of trees, heads, their files, the target's name.

Example: the chain of `eagle3:width=3,num_nodes=9` is `eagle3:num_nodes=6`, as deep as the tree.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from outrider.catalogue.drafters import drafters_of
from outrider.catalogue.published import base_name, published
from outrider.catalogue.target_files import cached_snapshot
from outrider.errors import OutriderError
from outrider.export.deployment import Task
from outrider.export.eagle3 import chain_depth
from outrider.formats.locate import CONFIG, EMBEDDED, HUB_ID, fetched_file, locate
from outrider.proposers.method_spec import MethodSpec
from outrider.records.json_fields import read_json

__all__ = [
    "LOOKUP",
    "chain_of",
    "head_config",
    "head_of",
    "layout_of",
    "notes_on",
    "num_drafted",
    "plain_name",
    "prepared",
]

LOOKUP: Final = MethodSpec("ngram", "ngram", {})
"""The method that every engine has."""
MOST_HEADS: Final = 5
"""Medusa heads of a checkpoint whose config is not at hand, as published."""
BLOCK: Final = 16
"""Slots of a DFlash block whose config is not at hand, as published."""
MODULES: Final = 3
"""Tokens that prediction modules draft unless their settings say so."""


def chain_of(task: Task) -> MethodSpec | None:
    """Return the method with a chain of the same depth in place of its tree; None if it drafts chains."""
    spec, config = task.spec, task.config
    match spec.name:
        case "ngram" if config.num_candidates > 1:
            dropped: dict[str, Any] = {"num_candidates": None}
        case "suffix" if config.mode == "tree":
            dropped = {"mode": None}
        case "eagle3" if config.width > 1 or config.tree is not None:
            dropped = {"width": None, "tree": None, "depth": None, "num_nodes": chain_depth(config)}
        case "draft_model" | "dflash" if config.width > 1:
            dropped = {"width": None}
        case "mtp" if config.width > 1:
            dropped = {"width": None, "depth": None, "num_nodes": config.depth or config.num_nodes}
        case "medusa" if config.width > 1 or config.tree is not None:
            dropped = {"width": 1, "tree": None, "num_nodes": num_drafted(task)}
        case _:
            return None
    changed = {key: value for key, value in (spec.settings | dropped).items() if value is not None}
    return MethodSpec(spec.name, spec.name, changed)


def head_of(task: Task) -> MethodSpec:
    """Return the head of a hybrid alone."""
    config = task.config
    settings = {"checkpoint": config.checkpoint, "num_nodes": config.num_nodes}
    return MethodSpec(
        config.drafter, config.drafter, {key: value for key, value in settings.items() if value is not None}
    )


def num_drafted(task: Task) -> int:
    """Return how many tokens a method with weights drafts in a chain."""
    config = task.config
    match task.spec.name:
        case "eagle3":
            return chain_depth(config)
        case "medusa":
            known = head_config(task)
            heads = known.get("num_heads", known.get("medusa_num_heads", MOST_HEADS))
            return min(int(config.num_nodes), heads if isinstance(heads, int) else MOST_HEADS)
        case "mtp":
            return int(config.num_nodes or config.depth or MODULES)
        case "dflash":
            known = head_config(task)
            slots = config.block_size or known.get("block_size", BLOCK)
            return min(int(config.num_nodes), slots - 1 if isinstance(slots, int) else BLOCK - 1)
    return int(config.num_nodes)


def head_config(task: Task) -> Mapping[str, Any]:
    """Return the config of a method's checkpoint, empty where it is not on this machine."""
    name = task.config.checkpoint
    try:
        if name is None:
            shipped = (one for one in drafters_of(task.target) if one.kind == "shipped")
            name = next((one.name for one in shipped if one.method == task.spec.name), None)
        return {} if name is None else _config(str(name))
    except OutriderError:
        return {}


def _config(name: str) -> Mapping[str, Any]:
    if Path(name).is_dir():
        return read_json(Path(name) / CONFIG)
    if name.partition("/")[0] in EMBEDDED:
        return read_json(locate(name) / CONFIG)
    cached = cached_snapshot(name) if HUB_ID.fullmatch(name) else None
    return {} if cached is None else read_json(cached / CONFIG)


def notes_on(config: Any) -> Mapping[str, bool]:
    """Return what other engines do not take over from a method's settings, and whether it is set."""
    return {
        "it drafts the most probable tokens, where ours are drawn": bool(config.sampled),
        "it drafts from all columns of the head, ours from the most frequent": bool(config.draft_vocab),
        "its head reads all of the text, ours a window of it": getattr(config, "window", None) is not None,
    }


def layout_of(task: Task) -> str | None:
    """Return the catalogue's layout of a method's checkpoint; None for a checkpoint that it does not list."""
    name = task.config.checkpoint
    return next((one.layout for one in published() if one.drafter == name), None)


def prepared(task: Task, to: str, num_nodes: int) -> tuple[str, str]:
    """Return the command that exports a method's head for an engine, and the directory that it writes."""
    name = task.config.checkpoint
    output = f"exports/{base_name(name) if name else task.spec.name}-{to}"
    source = shlex.quote(str(name or task.spec.name))
    target = shlex.quote(task.target)
    command = f"outrider export {source} --target {target} --to {to} --num-nodes {num_nodes} --output {output}"
    return command, output


def plain_name(target: str) -> str:
    """Return the target as an engine is told it: a hub id, or a directory of plain weights.

    The embedded target's weights are those of its GGUF file, which were fetched; the hub has others.
    """
    if target not in EMBEDDED:
        return target
    return EMBEDDED[target].hub_id if fetched_file(target) is None else str(locate(target))
