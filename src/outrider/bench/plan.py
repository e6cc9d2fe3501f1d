"""Everything that a run needs before its directory is opened: what a user could have got wrong is found here.

    config -> target, workload (prompts, cells), methods, contenders of this process, manifest, notes

Contenders behind a server need the run's directory for exports and logs, so `RunPlan.runner` adds them.

Example: `RunPlan.of(BenchConfig(methods=("none",), categories=("chat",))).workload.cells`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from time import perf_counter
from typing import Any, Literal

from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender
from outrider.bench.engine_contender import EngineContender
from outrider.bench.external import external_contenders
from outrider.bench.methods import LoadedMethod, contamination_note, contamination_of, load_methods
from outrider.bench.notes import Notes
from outrider.bench.runner import Runner
from outrider.bench.serving.contenders import Engines, serving_contenders
from outrider.bench.workload import Workload, read_workload, rules_of
from outrider.budget import BudgetChoice
from outrider.data.workloads import workload_hash
from outrider.errors import ConfigError
from outrider.llama_cpp.environment import find_llama
from outrider.proposers.method_spec import MethodSpec, method_specs
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import Manifest, collect_manifest, template_hash
from outrider.results.rows import SERVING
from outrider.results.store import RunStore
from outrider.target import Target
from outrider.targets import target_of
from outrider.targets.deferred import DeferredTarget
from outrider.targets.placing import device_named
from outrider.vllm.environment import find_vllm

__all__ = ["RunPlan"]

FIXED: tuple[BudgetChoice, ...] = ("fixed",)
STATES: tuple[Literal["cold", "warm"], ...] = ("cold", "warm")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run before its first unit.

    methods        methods that take part
    contenders     contenders of this process, plain decoding first; none where only servers answer
    traced         those of them whose answers can be traced: one for each method and budget
    engines        engines whose servers the run starts
    contamination  records of training about the benchmark's prompts, by method
    notes          notes for readers of the results; serving contenders add theirs
    start          time at which loading began
    """

    config: BenchConfig
    target: Target
    workload: Workload
    methods: tuple[MethodSpec, ...]
    contenders: tuple[Contender, ...]
    traced: tuple[EngineContender, ...]
    engines: Engines
    contamination: Mapping[str, Mapping[str, Any]]
    manifest: Manifest
    notes: Notes
    start: float

    @classmethod
    def of(cls, config: BenchConfig, listen: Listener = unheard) -> "RunPlan":
        """Load everything that these settings name.

        Args:
            listen: told of the progress of loading the target.

        Raises:
            OutriderError: for settings that cannot be run.
        """
        start = perf_counter()
        method_specs(config.methods)  # an unknown name is an error before anything is loaded
        engines, absent = _engines(config)
        target = _load_target(config, listen)
        workload = read_workload(config, target)
        notes = Notes(config.title, *absent, *workload.notes)
        loaded = load_methods(config, target, notes)
        ours = _contenders(config, loaded, target, workload)
        others = external_contenders(config, target, workload.warm_up, notes) if ours else []
        methods = tuple(one.spec for one in loaded)
        contamination = contamination_of(methods)
        notes.texts += [f"{one.label}: {one.settings}" for one in methods if one.settings]
        notes.texts += [contamination_note(label, overlap) for label, overlap in contamination.items()]
        return cls(
            config=config,
            target=target,
            workload=workload,
            methods=methods,
            contenders=(*ours, *others),
            traced=tuple(one for one in ours if one.name.state == STATES[0]),
            engines=engines,
            contamination=contamination,
            manifest=_manifest(config, target, workload),
            notes=notes,
            start=start,
        )

    def runner(self, store: RunStore, listen: Listener) -> Runner:
        """Return the runner, with the serving contenders beside those of this process."""

        def tell(words: str) -> None:
            listen(Progress(len(store.units), runner.num_units, words))

        config, max_len = self.config, self.workload.max_len
        served = serving_contenders(
            config, self.methods, self.target, self.workload.warm_up, max_len, store.directory, tell, self.engines
        )
        self.notes.texts += served.notes
        groups: list[Sequence[Contender]] = [self.contenders, *served.contender_groups]
        runner = Runner(
            target=self.target,
            contender_groups=_together(groups) if config.together else groups,
            cells=self.workload.cells,
            rules_of=lambda cell: rules_of(config, max_len, cell.temperature, cell.repeat),
            verified=lambda temperature: temperature == 0 or config.verification == "coupled",
            store=store,
            listen=listen,
            excused=frozenset(config.optional) & frozenset(SERVING),
            start_up_s=perf_counter() - self.start,
        )
        return runner


def _engines(config: BenchConfig) -> tuple[Engines, list[str]]:
    """Return the engines whose servers a run starts, and a note for each optional one that is not there."""
    notes, found = Notes(), Engines()
    for engines, find in ((("vllm", "vllm-custom"), _with_vllm), (("llama.cpp",), _with_llama)):
        wanted = [engine for engine in engines if engine in config.engines]
        excused = (ConfigError,) if wanted and {*wanted} <= {*config.optional} else ()
        with notes.leaving_out(", ".join(wanted), *excused):
            found = find(found) if wanted else found
    return found, notes.texts


def _with_vllm(engines: Engines) -> Engines:
    return engines._replace(vllm=find_vllm())


def _with_llama(engines: Engines) -> Engines:
    return engines._replace(llama=find_llama())


def _together(groups: Sequence[Sequence[Contender]]) -> list[Sequence[Contender]]:
    """Return one group, whose contenders take turns."""
    return [[one for group in groups for one in group]]


def _load_target(config: BenchConfig, listen: Listener) -> Target:
    """Return the target; its weights are loaded only where this process computes with them."""
    device_named(config.device)
    if "outrider" in config.engines:
        return target_of(config, listen)
    return DeferredTarget(
        config.target, dtype=config.dtype, weights=config.weights, trust_remote_code=config.trust_remote_code
    )


def _contenders(
    config: BenchConfig, methods: Sequence[LoadedMethod], target: Target, workload: Workload
) -> list[EngineContender]:
    """Return our contenders, plain decoding first."""
    contenders: list[EngineContender] = []
    for spec, proposer in methods:
        if proposer is None:
            continue
        budgets = config.budgets if proposer.spec.max_nodes else FIXED
        states = STATES if config.warm and proposer.spec.learns else STATES[:1]
        for budget, state in product(budgets, states):
            contenders.append(
                EngineContender(
                    target,
                    proposer,
                    spec.label if budget == "fixed" else f"{spec.label} {budget}",
                    state=state,
                    budget=budget,
                    verification=config.verification,
                    max_len=workload.max_len,
                    warm_up=workload.warm_up,
                    temperatures=config.temperatures,
                )
            )
    return contenders


def _manifest(config: BenchConfig, target: Target, workload: Workload) -> Manifest:
    conversations = [one for members in workload.conversations.values() for one in members]
    return collect_manifest(
        seed=config.seed,
        settings=asdict(config),
        workload_hash=workload_hash(conversations),
        template_hash=template_hash(target.tokenizer),
    )
