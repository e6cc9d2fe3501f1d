"""Deployments on vLLM: `vllm serve` with the configuration that the export of the method's name writes.

vLLM loads published EAGLE-3 heads, DFlash networks, draft models and PARD models as they are; other checkpoints are
exported first.

Example: suffix decoding keeps its cache of earlier answers here, which benchmarks switch off.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from outrider.export.deploy_parts import (
    LOOKUP,
    chain_of,
    head_config,
    head_of,
    layout_of,
    notes_on,
    num_drafted,
    plain_name,
    prepared,
)
from outrider.export.deployment import Deployment, Task
from outrider.export.exported import Exported, vllm_command
from outrider.export.serving import SERVED
from outrider.results.rows import PLAIN

__all__ = ["on_vllm"]

ENGINE: Final = "vllm"
AS_THEY_ARE: Final = ("eagle3", "speculators", "peagle", "dflash", "dspark", "pard", "draft")
"""Layouts that vLLM loads."""
PARALLEL: Final = {"pard": "draft_model", "peagle": "eagle3"}
"""Methods that are others' with parallel drafting there."""
KEPT_ANSWERS: Final = "suffix_decoding_max_cached_requests"


def on_vllm(task: Task) -> Deployment:
    """Return the command that serves a method on vLLM."""
    name = task.spec.name
    if name == PLAIN:
        return _served(task, Exported(speculative={}))
    if name == "hybrid":
        return task.refused(ENGINE, "it drafts with one method, not with a lookup and a head", head_of(task))
    if name not in SERVED:
        return task.refused(ENGINE, "it has no such method", LOOKUP)
    chain = chain_of(task)
    if chain is not None:
        return task.refused(ENGINE, "it drafts chains, not trees", chain)
    if name in ("ngram", "suffix"):
        return _lookup(task)
    return _head(task)


def _lookup(task: Task) -> Deployment:
    lookup: Callable[[Any], Exported] = import_module(f"outrider.export.{task.spec.name}").lookup
    exported = lookup(task.config)
    if KEPT_ANSWERS in exported.speculative:
        # a deployed server may learn from earlier answers; -1 (all) is ours alone
        kept = task.config.max_cached_requests
        keeps = {KEPT_ANSWERS: type(task.config)().max_cached_requests if kept < 0 else kept}
        notes = (*(note for note in exported.notes if "earlier answers" not in note), "it needs arctic-inference")
        exported = replace(exported, speculative={**exported.speculative, **keeps}, notes=notes)
    return _served(task, exported)


def _head(task: Task) -> Deployment:
    name, config = task.spec.name, task.config
    if name == "draft_model" and config.layers is not None:
        return task.refused(ENGINE, "a draft of the target's own layers is written by `outrider bench` alone", LOOKUP)
    known = head_config(task)
    own = known.get("outrider")
    state = own.get("state", "residual") if isinstance(own, dict) else "residual"
    if name == "mtp" and known and state != "normed":
        reason = "it feeds modules the state after the final norm, and these read the one before it"
        return task.refused(ENGINE, reason, LOOKUP)
    depth, model = num_drafted(task), config.checkpoint
    commands: tuple[str, ...] = ()
    if layout_of(task) not in AS_THEY_ARE:
        command, model = prepared(task, ENGINE, depth)
        commands = (command,)
    kind = "dspark" if layout_of(task) == "dspark" else PARALLEL.get(name, name)
    speculative = {"method": kind, "model": model, "num_speculative_tokens": depth}
    speculative |= {"parallel_drafting": True} if name in PARALLEL else {}
    modules = known.get("num_nextn_predict_layers", 1)
    flags = {"hf-overrides": json.dumps({"num_nextn_predict_layers": modules})} if name == "mtp" else {}
    notes = {
        **notes_on(config),
        "vLLM has Medusa up to version 0.32": name == "medusa",
    }
    exported = Exported(
        speculative=speculative, flags=flags, notes=tuple(note for note, holds in notes.items() if holds)
    )
    return _served(task, exported, *commands)


def _served(task: Task, exported: Exported, *before: str) -> Deployment:
    command = vllm_command(plain_name(task.target), exported.speculative, exported.flags)
    return Deployment(engine=ENGINE, method=task.method, commands=(*before, command), notes=exported.notes)
