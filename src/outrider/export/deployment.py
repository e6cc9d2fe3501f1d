"""A method as commands: to run it here, and to serve it on vLLM, SGLang or llama.cpp.

An engine that lacks a method refuses it with the reason, and `nearest` is what it can do instead. Nothing is written
and nothing is loaded: where a head must be exported first, that is one of the commands.

    tree of an EAGLE-3 head   vLLM and llama.cpp draft its chain; SGLang drafts the tree
    hybrid                    other engines draft with its head alone
    suffix decoding           vLLM has it; the others look n-grams up

Example: `deployment(method_specs(["ngram"])[0], "Qwen/Qwen3-8B", "vllm").command` is
`vllm serve Qwen/Qwen3-8B --speculative-config '{"method": "ngram", ...}'`.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final, Literal, NamedTuple

from outrider.errors import ConfigError, nearest
from outrider.proposers import configure, proposer_class
from outrider.proposers.method_spec import MethodSpec, written
from outrider.results.rows import PLAIN

__all__ = ["ENGINES", "Deployment", "Task", "deployment"]

ENGINES: Final[Mapping[str, str]] = {
    "outrider": "outrider.export.deployment:on_outrider",
    "vllm": "outrider.export.deploy_vllm:on_vllm",
    "sglang": "outrider.export.deploy_sglang:on_sglang",
    "llama.cpp": "outrider.export.deploy_llama:on_llama",
}
"""Engine -> function that deploys a method there."""
PROMPT: Final = "Why is the sky blue?"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The way to run a method on an engine.

    method     the method with its settings, as on a command line
    commands   shell commands in their order; the last one runs or serves it; empty where the engine cannot
    lines      lines of Python that run it; for Outrider alone
    recipe     the content of a preset for `outrider bench`; for Outrider alone
    notes      differences from Outrider, a sentence each
    refused    the reason why the engine cannot; None if it can
    nearest    deployment of the nearest method that it has
    """

    engine: str
    method: str
    commands: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    recipe: str | None = None
    notes: tuple[str, ...] = ()
    refused: str | None = None
    nearest: "Deployment | None" = None

    @property
    def command(self) -> str | None:
        """The command that runs or serves the method; None if it is refused."""
        return self.commands[-1] if self.commands else None

    @property
    def shown(self) -> tuple[str, ...]:
        """Lines for a person; what is no command begins with #."""
        return tuple(self._shown())

    def _shown(self) -> Iterator[str]:
        if self.refused is not None:
            yield f"# {self.engine} cannot run {self.method}: {self.refused}"
        if self.nearest is not None:
            yield f"# nearest: {self.nearest.method}"
            yield from self.nearest.shown
        yield from (f"# {note}" for note in self.notes)
        yield from self.commands


class Task(NamedTuple):
    """A method for a target.

    target   name of the target, as `load_target` takes it
    budget   "auto" where drafting should stop by itself, else "fixed"
    """

    spec: MethodSpec
    target: str
    budget: Literal["fixed", "auto"] = "fixed"

    @property
    def config(self) -> Any:
        """The settings of the method."""
        return configure(self.spec.name, self.spec.settings)

    @property
    def method(self) -> str:
        """The method as written on a command line."""
        return written(self.spec)

    def refused(self, engine: str, reason: str, instead: MethodSpec | None) -> Deployment:
        """Return a refusal, with the deployment of another method as the nearest."""
        other = None if instead is None else deployment(instead, self.target, engine, budget=self.budget)
        return Deployment(engine=engine, method=self.method, refused=reason, nearest=other)


def deployment(
    spec: MethodSpec, target_name: str, engine: str, *, budget: Literal["fixed", "auto"] = "fixed"
) -> Deployment:
    """Return how to run a method for a target on an engine.

    Args:
        engine: "outrider", "vllm", "sglang" or "llama.cpp".
        budget: as of `outrider.Engine`; other engines have none, which a note says.

    Raises:
        ConfigError: for an unknown engine.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'{nearest(engine, ENGINES)}")
    module, _, function = ENGINES[engine].partition(":")
    deploy: Callable[[Task], Deployment] = getattr(import_module(module), function)
    task = Task(spec, target_name, budget)
    if engine != "outrider" and proposer_class(spec.name).scripted:
        return task.refused(engine, "it is an instrument of Outrider's benchmark, and no method", None)
    found = deploy(task)
    if engine == "outrider" or found.command is None:
        return found
    notes = {
        f"{engine} has no adaptive budget: it drafts as much at every load": budget == "auto" and spec.name != PLAIN,
        f"give {engine} the original checkpoint if it does not read this GGUF file": target_name.endswith(".gguf")
        and engine != "llama.cpp",
    }
    return replace(found, notes=(*found.notes, *(note for note, holds in notes.items() if holds)))


def on_outrider(task: Task) -> Deployment:
    """Return commands, Python lines and a preset for Outrider itself."""
    spec, target, budget = task
    method = shlex.quote(task.method)
    options = f" --target {shlex.quote(target)}"
    adaptive = budget == "auto"
    arguments = "".join(f", {key}={value!r}" for key, value in spec.settings.items())
    return Deployment(
        engine="outrider",
        method=task.method,
        commands=(
            f"outrider bench{options} --methods {method}" + (" --budget auto" if adaptive else ""),
            f"outrider generate {shlex.quote(PROMPT)}{options} --method {method}"
            + (" --budget auto" if adaptive else ""),
        ),
        lines=(
            "import outrider",
            "",
            f"target = outrider.load_target({target!r})",
            f"proposer = outrider.load_proposer({spec.name!r}, target{arguments})",
            f"engine = outrider.Engine(target, proposer, max_batch=4{', budget=' + repr(budget) if adaptive else ''})",
            f"print(engine.generate([{PROMPT!r}])[0].text)",
        ),
        recipe=_recipe(task),
    )


def _recipe(task: Task) -> str:
    """Return a preset of `outrider bench`, as TOML."""
    methods = json.dumps([task.method])  # JSON's strings are TOML's too
    budgets = f'budgets = ["{task.budget}"]\n' if task.budget != "fixed" else ""
    return f'title = "tuned"\ntarget = {json.dumps(task.target)}\nmethods = {methods}\n{budgets}'
