"""Deployments on llama.cpp's server, `llama-server`: a lookup, a draft model or an EAGLE-3 head, each as a chain.

Target and drafter are GGUF files; what is none is converted by `convert_hf_to_gguf.py` of llama.cpp first. Flags are
those of docs/speculative.md there; older versions call `--spec-draft-n-max` `--draft-max`.

Example: prompt lookup with `num_nodes=8, min_n=2` is `--spec-type ngram-simple --spec-ngram-simple-size-n 2
--spec-ngram-simple-size-m 8`.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from outrider.catalogue.published import base_name
from outrider.export.deploy_parts import (
    LOOKUP,
    chain_of,
    head_of,
    layout_of,
    notes_on,
    num_drafted,
    plain_name,
    prepared,
)
from outrider.export.deployment import Deployment, Task
from outrider.export.exported import with_flags
from outrider.export.llama import KINDS, REASONS, lookup_flags
from outrider.formats.locate import EMBEDDED, HUB_ID, fetched_file
from outrider.results.rows import PLAIN

__all__ = ["on_llama"]

ENGINE: Final = "llama.cpp"
CONVERTER: Final = "convert_hf_to_gguf.py"
ORIGINAL: Final = "TARGET_DIRECTORY"
"""Placeholder in a command, where the target is known as a GGUF file alone."""
AS_THEY_ARE: Final = ("eagle3", "speculators", "draft")
"""Layouts that llama.cpp converts."""


def on_llama(task: Task) -> Deployment:
    """Return the commands that convert what is no GGUF file, and serve a method on llama.cpp."""
    name, config = task.spec.name, task.config
    if name == "hybrid":
        return task.refused(ENGINE, REASONS[name], head_of(task))
    if name not in (PLAIN, "ngram", *KINDS):
        return task.refused(ENGINE, REASONS.get(name, "it has no such method"), LOOKUP)
    chain = chain_of(task)
    if chain is not None:
        return task.refused(ENGINE, "it drafts chains, not trees", chain)
    if name == "draft_model" and config.layers is not None:
        return task.refused(ENGINE, "a draft of the target's own layers is no model that it can load", LOOKUP)
    file, before = _target(task.target)
    if name in KINDS:
        return _drafted(task, file, before)
    flags: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    if name == "ngram":
        flags = lookup_flags(config)
        told = f"llama.cpp looks up {config.min_n} tokens, ours {config.min_n} to {config.max_n}"
        notes = (told,) if config.min_n < config.max_n else ()
    commands = (*before, _server(file, flags))
    return Deployment(engine=ENGINE, method=task.method, commands=commands, notes=(*notes, *_needs(before)))


def _drafted(task: Task, file: str, before: tuple[str, ...]) -> Deployment:
    name, depth = task.spec.name, num_drafted(task)
    source = str(task.config.checkpoint or "")
    if source.endswith(".gguf"):
        commands: tuple[str, ...] = ()
        draft = source
    else:
        if layout_of(task) in AS_THEY_ARE:
            directory = f"exports/{base_name(source)}"
            first = f"hf download {source} --local-dir {directory}"
        else:
            first, directory = prepared(task, "vllm", depth)
        draft = f"{base_name(source or name)}-draft.gguf"
        beside = f" --target-model-dir {shlex.quote(_directory(task.target))}" if name == "eagle3" else ""
        commands = (first, f"python {CONVERTER} {directory}{beside} --outtype bf16 --outfile {draft}")
    flags = {"spec-type": KINDS[name], "model-draft": draft, "spec-draft-n-max": depth}
    notes = {
        **notes_on(task.config),
        "llama.cpp reads heads that fuse three states": name == "eagle3",
        f"{ORIGINAL} is the directory of the target's original weights": any(ORIGINAL in one for one in commands),
    }
    told = (note for note, holds in notes.items() if holds)
    return Deployment(
        engine=ENGINE,
        method=task.method,
        commands=(*before, *commands, _server(file, flags)),
        notes=(*told, *_needs((*before, *commands))),
    )


def _needs(commands: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on the converter where a command calls it."""
    is_called = any(CONVERTER in command for command in commands)
    return (f"{CONVERTER} is a script of llama.cpp, which needs sentencepiece",) if is_called else ()


def _server(file: str, flags: Mapping[str, Any]) -> str:
    return with_flags(f"llama-server --model {shlex.quote(file)}", flags)


def _target(target: str) -> tuple[str, tuple[str, ...]]:
    """Return the target's GGUF file, and the commands that make it."""
    if target in EMBEDDED:
        known = fetched_file(target)
        return (str(known), ()) if known is not None else _target(EMBEDDED[target].hub_id)
    if target.endswith(".gguf"):
        return target, ()
    file = f"{base_name(target)}.gguf"
    convert = f"python {CONVERTER} {shlex.quote(_directory(target))} --outtype bf16 --outfile {file}"
    fetch = (f"hf download {target} --local-dir {_directory(target)}",) if _is_published(target) else ()
    return file, (*fetch, convert)


def _directory(target: str) -> str:
    """Return the directory of the target's original weights."""
    name = plain_name(target)
    if name.endswith(".gguf"):
        return ORIGINAL
    return f"models/{base_name(name)}" if _is_published(name) else name


def _is_published(name: str) -> bool:
    """Return whether a name is a hub id, and no directory on this machine."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()
