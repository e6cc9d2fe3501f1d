"""A whole benchmark run: from settings to a report.

Loads the target and everything that is to be measured, opens or resumes the run's directory, measures what is missing,
and derives the report from what is on disk. What a user could have got wrong is found before anything is measured.

Example: `benchmark(BenchConfig(methods=("none",), categories=("chat",)), Path("runs/try"))`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product, zip_longest
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any, Literal, NamedTuple

from outrider.bench.at_hand import at_hand
from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender, EngineContender
from outrider.bench.external import external_contenders
from outrider.bench.plan import cells_of
from outrider.bench.runner import BASELINE, Listener, Progress, Runner
from outrider.bench.serving.contenders import serving_contenders
from outrider.budget import BudgetChoice
from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.data.contamination import recorded_contamination
from outrider.data.dialogue import Dialogue, Rules, longest_text
from outrider.data.workloads import Conversation, load_category, load_prompts, workload_hash
from outrider.errors import CheckpointError, ConfigError, OutriderError
from outrider.formats.locate import locate
from outrider.proposer import Proposer
from outrider.proposers.method_spec import MethodSpec, load_method, method_specs
from outrider.records.provenance import Manifest, collect_manifest, template_hash
from outrider.results.derive import ALL, Machine, derive_rows
from outrider.results.equality import equal_share
from outrider.results.rows import PLAIN, Report, to_json
from outrider.results.store import RunStore, choose_directory
from outrider.results.tables.table import markdown
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.targets import load_target
from outrider.targets.deferred import DeferredTarget
from outrider.targets.placing import device_named
from outrider.vllm.environment import find_vllm

__all__ = ["Workload", "benchmark", "read_workload"]

RUNS = Path("runs")
POOL = "mixed"
WARM_UP_PROMPT = 48
FIXED: tuple[BudgetChoice, ...] = ("fixed",)
STATES: tuple[Literal["cold", "warm"], ...] = ("cold", "warm")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The prompts of a run by category.

    whole     categories of which every prompt is taken
    max_len   tokens of the longest conversation, answers included
    notes     which prompts were left out, and why
    """

    conversations: Mapping[str, Sequence[Conversation]]
    whole: frozenset[str]
    max_len: int
    notes: tuple[str, ...]


def benchmark(
    config: BenchConfig,
    run_dir: Path | None = None,
    *,
    name: str = "bench",
    resume: bool = True,
    started: Callable[[Path], None] = lambda directory: None,
    listen: Listener = lambda progress: None,
) -> Report:
    """Measure, or finish measuring, and write the report.

    Args:
        run_dir: the run's directory; None takes the unfinished run with these settings under `runs/`, or a new one.
        name: part of a new directory's name.
        resume: whether an unfinished run may be taken.
        started: told the directory when the run begins.

    Raises:
        OutriderError: for settings that cannot be run, and if the directory cannot be written or is another run's.
    """
    start = perf_counter()
    method_specs(config.methods)  # an unknown name is told before anything is loaded
    vllm = find_vllm() if {"vllm", "vllm-custom"} & {*config.engines} else None
    target = _target(config)
    workload, notes = read_workload(config, target), list[str]()
    warm_up = _warm_up(workload, target)
    loaded = _loaded(config, target, notes)
    choices = [one.choice for one in loaded]
    ours = _contenders(config, loaded, target, workload, warm_up, notes)
    manifest = _manifest(config, target, workload)
    directory = run_dir or choose_directory(RUNS, name, manifest, resume)
    with RunStore(directory, manifest) as store:
        started(directory)
        joined = serving_contenders(
            config,
            choices,
            target,
            warm_up,
            workload.max_len,
            directory,
            tell=lambda what: listen(Progress(len(store.units), runner.num_units, what)),
            vllm=vllm,
        )
        runner = Runner(
            target=target,
            contender_groups=[ours, *joined.contender_groups],
            cells=list(cells_of(config, workload.conversations, workload.whole)),
            rules_of=lambda cell: _rules(config, workload.max_len, cell.temperature, cell.repeat),
            verified=lambda temperature: temperature == 0 or config.verification == "coupled",
            store=store,
            listen=listen,
            start_up_s=perf_counter() - start,
        )
        runner.run()
        settings = [f"{one.label}: {one.settings}" for one in choices if one.settings]
        contamination = _contamination(choices)
        notes = [config.title, *workload.notes, *notes, *settings, *_contamination_notes(contamination), *joined.notes]
        report = replace(_report(config, target, store, runner.start_up_s, notes), overlap=_shares(contamination))
        store.finish(to_json(report), markdown(report))
    return report


def read_workload(config: BenchConfig, target: Target) -> Workload:
    """Read the prompts; one that leaves no room for an answer is left out, with a note.

    Raises:
        ConfigError: if prompts cannot be read, share an id, or none of a category fits.
    """
    own = [one for category in config.categories for one in load_category(category)]
    others = [one for path in config.prompts for one in load_prompts(path)]
    read = own + others
    if repeated := [key for key, times in Counter((one.category, one.id) for one in read).items() if times > 1]:
        raise ConfigError(f"the prompts of category '{repeated[0][0]}' use the id '{repeated[0][1]}' twice")
    if len(_categories(read)) > 1 and ALL in _categories(read):
        raise ConfigError(f"a category of prompts is called '{ALL}', as the sum of all is; give it another name")
    positions = target.spec.max_positions
    limit = min(positions - 1, config.max_prompt_tokens or positions)
    kept = [one for one in read if len(Dialogue(one).ask(0, target.tokenizer)) <= limit]
    workload = {category: [one for one in kept if one.category == category] for category in _categories(read)}
    whole = frozenset(_categories(others) if config.all_prompts else ())
    if config.pooled:
        workload, whole = {POOL: _in_turn(list(workload.values()))}, frozenset({POOL} if whole else ())
    if empty := [category for category, members in workload.items() if not members]:
        raise ConfigError(f"no prompt of '{empty[0]}' has at most {limit} tokens; leave the category out")
    notes = [f"left out: {len(read) - len(kept)} of {len(read)} prompts, of more than {limit} tokens"] * (read != kept)
    notes += _left_out(config, workload)
    rules = _rules(config, positions, 0.0, 0)
    cells = cells_of(config, workload, whole)
    used = [one for cell in cells for group in (*cell.groups, *cell.teaching) for one in group]
    if not used:
        most = max(map(len, workload.values()))
        raise ConfigError(f"no category has {min(config.batches)} prompts, at most {most}; give smaller --batches")
    longest = max(longest_text(one, target.tokenizer, rules) for one in dict.fromkeys(used))
    max_len = max(2, min(longest, positions))
    return Workload(conversations=workload, whole=whole, max_len=max_len, notes=tuple(notes))


def _left_out(config: BenchConfig, workload: Mapping[str, Sequence[Conversation]]) -> list[str]:
    """Return a note for each category and batch size that would not be filled."""
    return [
        f"left out: batch {batch} of '{category}', which has {len(members)} prompts"
        for batch in config.batches
        for category, members in workload.items()
        if len(members) < batch
    ]


def _in_turn(categories: Sequence[Sequence[Conversation]]) -> list[Conversation]:
    """The first of each, the second of each, ...; an id that two categories use is taken once."""
    rounds = zip_longest(*categories)
    return list({one.id: one for members in rounds for one in members if one is not None}.values())


def _categories(conversations: Iterable[Conversation]) -> list[str]:
    return list(dict.fromkeys(one.category for one in conversations))


def _rules(config: BenchConfig, max_len: int, temperature: float, repeat: int) -> Rules:
    return Rules(
        temperature=temperature,
        repeat=repeat,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        max_len=max_len,
        ignore_eos=config.ignore_eos,
    )


def _target(config: BenchConfig) -> Target:
    """Loaded where this process computes with it."""
    device_named(config.device)
    if "outrider" in config.engines:
        return load_target(
            config.target, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
        )
    return DeferredTarget(config.target, dtype=config.dtype, trust_remote_code=config.trust_remote_code)


def _warm_up(workload: Workload, target: Target) -> list[int]:
    """A prompt to warm up with: the beginning of the first one."""
    first = next(iter(workload.conversations.values()))[0]
    return Dialogue(first).ask(0, target.tokenizer)[: min(WARM_UP_PROMPT, workload.max_len // 2)]


class _Loaded(NamedTuple):
    """A method that takes part; the proposer is None where this process drafts nothing."""

    choice: MethodSpec
    proposer: Proposer | None


def _loaded(config: BenchConfig, target: Target, notes: list[str]) -> list[_Loaded]:
    """Return the methods that fit the target; a preset's own that do not are notes, unless nothing else is left."""
    is_ours, found = "outrider" in config.engines, list[_Loaded]()
    is_optional = set(config.methods) <= {PLAIN, *config.optional}
    choices, missing = at_hand(method_specs(config.methods), target, is_optional)
    notes += missing
    first: OutriderError | None = None
    for choice in choices:
        try:
            found.append(_Loaded(choice, load_method(choice, target) if is_ours else None))
        except (ConfigError, CheckpointError) as error:
            if not is_optional:
                raise
            first = first or error
            notes.append(f"left out: {choice.label}, for {error}")
    if first is not None and [one.choice.name for one in found] == [PLAIN] and not config.external:
        raise first
    return found


def _contenders(
    config: BenchConfig,
    loaded: Sequence[_Loaded],
    target: Target,
    workload: Workload,
    warm_up: Sequence[int],
    notes: list[str],
) -> list[Contender]:
    """Those of this process: ours, plain decoding first, and the external ones beside them."""
    contenders: list[Contender] = []
    for choice, proposer in loaded:
        if proposer is None:
            continue
        budgets = config.budgets if proposer.spec.max_nodes else FIXED
        states = STATES if config.warm and proposer.spec.learns else STATES[:1]
        for budget, state in product(budgets, states):
            contenders.append(
                EngineContender(
                    target,
                    proposer,
                    choice.label if budget == "fixed" else f"{choice.label} {budget}",
                    state=state,
                    budget=budget,
                    verification=config.verification,
                    max_len=workload.max_len,
                    warm_up=warm_up,
                    temperatures=config.temperatures,
                )
            )
    return [*contenders, *external_contenders(config, target, warm_up, notes)] if contenders else []


def _manifest(config: BenchConfig, target: Target, workload: Workload) -> Manifest:
    conversations = [one for members in workload.conversations.values() for one in members]
    return collect_manifest(
        seed=config.seed,
        settings=asdict(config),
        workload_hash=workload_hash(conversations),
        template_hash=template_hash(target.tokenizer),
    )


def _report(config: BenchConfig, target: Target, store: RunStore, start_up_s: float, notes: Sequence[str]) -> Report:
    units, spec = list(store.units.values()), target.spec
    is_ours = "outrider" in config.engines
    machine = Machine(spec.weight_bytes, memory_bytes_per_s(spec.device)) if is_ours else None
    bandwidth = (
        "" if machine is None else f"memory reads at {machine.bytes_per_s / 1e9:.1f} GB/s here (a streaming sum)"
    )
    return Report(
        run=str(store.directory),
        target=spec.name,
        dtype=str(spec.dtype).removeprefix("torch."),
        device=str(spec.device) if is_ours else "server",
        commit=store.manifest.commit,
        dirty=store.manifest.dirty,
        startup_s=start_up_s,
        notes=tuple(note for note in (*notes, bandwidth, *_equality_notes(units)) if note),
        rows=tuple(derive_rows(units, machine)),
    )


def _contamination(choices: Sequence[MethodSpec]) -> dict[str, Mapping[str, Any]]:
    """What training wrote down about our prompts, of every method that has a checkpoint here, by label."""
    places = {one.label: locate(one.settings["checkpoint"]) for one in choices if one.settings.get("checkpoint")}
    found = {label: recorded_contamination(place) for label, place in places.items()}
    return {label: overlap for label, overlap in found.items() if overlap is not None}


def _shares(contamination: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    return {label: float(found["share"]) for label, found in contamination.items()} or None


def _contamination_notes(contamination: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [_contamination_note(label, overlap) for label, overlap in contamination.items()]


def _contamination_note(label: str, overlap: Mapping[str, Any]) -> str:
    count, of = len(overlap["prompts"]), overlap["num_prompts"]
    if not count:
        return f"{label}: none of the benchmark's {of} prompts stands in its training texts"
    return f"{label}: {count} of the benchmark's {of} prompts stand in its training texts, so its figures are too good"


def _equality_notes(units: Sequence[UnitResult]) -> list[str]:
    """How far the texts of external baselines agree with plain decoding's."""
    plain = {unit.pair_key: unit for unit in units if unit.engine == BASELINE.engine and unit.method == BASELINE.method}
    shares: dict[str, list[float]] = {}
    for unit in units:
        if unit.engine != BASELINE.engine and unit.pair_key in plain:
            pairs = zip(unit.answers, plain[unit.pair_key].answers, strict=False)
            shares.setdefault(f"{unit.engine} {unit.method}", []).extend(
                equal_share(theirs.tokens, ours.tokens) for theirs, ours in pairs
            )
    return [
        f"{name}: {sum(share == 1 for share in found)} of {len(found)} answers equal our plain decoding's; "
        f"on average the first {mean(found):.0%} of an answer are equal"
        for name, found in shares.items()
    ]
