"""Deployments on SGLang: EAGLE3 for heads, as a chain or a dynamic tree, DFLASH, STANDALONE, NGRAM.

SGLang loads published heads in the native layout as they are; other checkpoints are exported first. Its flags are those
of its documentation (advanced features, speculative decoding); they were not run here.

Example: `eagle3:width=4,depth=5,num_nodes=16` is `--speculative-num-steps 5 --speculative-eagle-topk 4
--speculative-num-draft-tokens 17`, the root included.
"""

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
from outrider.export.dflash import block_flags
from outrider.export.exported import sglang_command, sglang_flags
from outrider.results.rows import PLAIN

__all__ = ["on_sglang"]

ENGINE: Final = "sglang"
ALGORITHMS: Final = {"eagle3": "EAGLE3", "dflash": "DFLASH", "draft_model": "STANDALONE"}
AS_THEY_ARE: Final = ("eagle3", "draft")
"""Layouts that SGLang loads."""
REASONS: Final = {
    "suffix": "it has no suffix decoding",
    "pard": "it has no parallel drafting with a mask token",
    "peagle": "it has no parallel drafting with a mask token",
    "medusa": "it has no Medusa",
    "mtp": "it does not load modules in the MiMo layout beside a target",
}


def on_sglang(task: Task) -> Deployment:
    """Return the command that serves a method on SGLang."""
    name, config = task.spec.name, task.config
    if name == PLAIN:
        return _served(task, {})
    if name == "ngram":
        return _lookup(task)
    if name == "hybrid":
        return task.refused(ENGINE, "it drafts with one method, not with a lookup and a head", head_of(task))
    if name not in ALGORITHMS:
        return task.refused(ENGINE, REASONS.get(name, "it has no such method"), LOOKUP)
    chain = chain_of(task)
    if chain is not None and (name != "eagle3" or config.tree is not None):
        fixed = "it grows trees from the head's probabilities, not fixed ones"
        return task.refused(ENGINE, fixed if name == "eagle3" else "it drafts chains there, not trees", chain)
    if name == "draft_model" and config.layers is not None:
        return task.refused(ENGINE, "a draft of the target's own layers is not exported for it", LOOKUP)
    if layout_of(task) == "dspark":
        return task.refused(ENGINE, "networks with a Markov head are not written here in its layout", LOOKUP)
    if head_config(task).get("norm_before_residual") is True:
        return task.refused(ENGINE, "it ignores norm_before_residual=true, so this head would draft wrongly", LOOKUP)
    return _drafted(task)


def _lookup(task: Task) -> Deployment:
    config = task.config
    flags = {
        "speculative-algorithm": "NGRAM",
        "speculative-num-draft-tokens": config.num_nodes + 1,
        "speculative-ngram-min-match-window-size": config.min_n,
        "speculative-ngram-max-match-window-size": config.max_n,
        "speculative-ngram-max-bfs-breadth": config.num_candidates,
    }
    return _served(task, flags, "SGLang looks n-grams up in a trie of all requests, ours in the request's own text")


def _drafted(task: Task) -> Deployment:
    name, config = task.spec.name, task.config
    depth, model = num_drafted(task), config.checkpoint
    commands: tuple[str, ...] = ()
    if layout_of(task) not in AS_THEY_ARE:
        command, model = prepared(task, ENGINE, depth)
        commands = (command,)
    num_nodes = config.num_nodes if config.width > 1 else None
    flags = sglang_flags(ALGORITHMS[name], model, depth, config.width, num_nodes)
    if name == "dflash":
        flags = block_flags(model, depth + 1)
    notes = (note for note, holds in notes_on(config).items() if holds)
    found = _served(task, flags, *notes)
    return Deployment(engine=ENGINE, method=found.method, commands=(*commands, *found.commands), notes=found.notes)


def _served(task: Task, flags: dict[str, Any], *notes: str) -> Deployment:
    command = sglang_command(plain_name(task.target), flags)
    return Deployment(engine=ENGINE, method=task.method, commands=(command,), notes=notes)
