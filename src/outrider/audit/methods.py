"""The audit of methods on one target: layer by layer, from settings to a report.

    rule       acceptance rules, enumerated
    contract   the class of each method on a tiny target, and every draft on the audited one
    text       answers, token by token
    law        answers of rules that keep only the law, and the drafts that these rules rely on
    controls   faults that are planted into the same engine and must be seen

Every comparison is a piece that outlives an interruption (`kept.py`).

Example: `audit_methods(AuditConfig(methods=("ngram",))).verdict` is "PASS".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

from outrider.audit.cells import Bench, Cell, cells_of
from outrider.audit.config import AuditConfig
from outrider.audit.faults import Fault, Tally, faults_of
from outrider.audit.kept import Kept, directory_of, keeping
from outrider.audit.layers.contract import contract_controls, kept_contract
from outrider.audit.layers.law import ORDERS, Sample, catches, law_layer, sampled
from outrider.audit.layers.rules import rule_controls, rule_layer
from outrider.audit.layers.texts import Texts
from outrider.audit.report import AuditReport, Finding, Layer, combined, detectable_rate
from outrider.audit.requests import Requests
from outrider.audit.settings import loaded_target, plain_settings
from outrider.errors import OutriderError, RunError
from outrider.proposer import Proposer
from outrider.proposers import proposer_class
from outrider.proposers.auto import check_method, named_or_picked
from outrider.proposers.method_spec import MethodSpec, load_method, with_heads
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import Manifest, collect_manifest, template_hash
from outrider.target import Target
from outrider.testing import ContractError

__all__ = ["audit_methods"]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """Result of a cell: a comparison of texts, a sample, or the rule of the contract that was broken in it."""

    finding: Finding | None = None
    sample: Sample | None = None
    broken: str | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.finding, self.sample, self.broken)) != 1:
            raise RunError("a cell's result is damaged: it must be one thing")


@dataclass
class Work:
    """The findings and samples so far, and the progress.

    num_tests   most tests of a law that the whole audit can make
    """

    texts: Texts
    kept: Kept
    listen: Listener
    total: int = 0
    num_tests: int = 0
    done: int = 0
    findings: dict[str, list[Finding]] = field(default_factory=lambda: {"contract": [], "text": [], "controls": []})
    samples: dict[str, Sample] = field(default_factory=dict)

    def begin(self, words: str) -> None:
        """Say what comes next."""
        self.listen(Progress(self.done, self.total, words))
        self.done += 1


def audit_methods(
    config: AuditConfig,
    target: Target | None = None,
    proposers: Mapping[str, Proposer] | None = None,
    *,
    listen: Listener = unheard,
    started: Callable[[Path], None] = lambda directory: None,
    ended: Callable[[AuditReport], None] = lambda report: None,
) -> AuditReport:
    """Check that methods are lossless on a target; the arguments are those of `outrider.audit.audit`.

    Raises:
        OutriderError: if the target or a method cannot be loaded, or a setting does not fit them.
    """
    start = monotonic()
    for text in config.methods if proposers is None else ():
        check_method(text)
    config.check_places()
    is_own = target is None and proposers is None
    target = target or loaded_target(config, listen)
    specs = {} if proposers is not None else _specs(config, target)
    loaded = dict(proposers or {name: load_method(spec, target) for name, spec in specs.items()})
    classes = {name: proposer_class(spec.name) for name, spec in specs.items()}
    bench = Bench(config, target, Requests.of(config, target))
    manifest = collect_manifest(
        seed=config.seed,
        settings=plain_settings(config),
        workload_hash=bench.requests.identity,
        template_hash=template_hash(target.tokenizer),
    )
    pairs = [(spec, classes[name]) for name, spec in specs.items()]
    with keeping(directory_of(manifest, target, pairs) if is_own else None, started) as kept:
        work = Work(Texts(bench, kept), kept, listen)
        layers = _layers(config, loaded, classes, work)
        report = _report(config, target, manifest, tuple(loaded), layers, monotonic() - start)
        ended(report)
    return report


def _specs(config: AuditConfig, target: Target) -> dict[str, MethodSpec]:
    """Return the methods with the checkpoints that they run with, by the name that they were asked for with."""
    picks = [named_or_picked(text, target) for text in config.methods]
    return dict(zip((pick.text for pick in picks), with_heads([pick.spec for pick in picks], target), strict=True))


def _layers(
    config: AuditConfig, proposers: Mapping[str, Proposer], classes: Mapping[str, type[Proposer]], work: Work
) -> list[Layer]:
    cells = {name: cells_of(config, work.texts.bench.target, name) for name in proposers}
    work.total = sum(len(found) + len(_controlled(found)) + 1 for found in cells.values()) + 1
    num_laws = sum(not cell.is_exact for found in cells.values() for cell in found)
    work.num_tests = 2 * len(ORDERS) * num_laws  # of texts and of drafts
    work.begin("acceptance rules, enumerated")
    rules = rule_layer(config.verification)
    work.findings["controls"] += [*rule_controls(config.verification), *contract_controls()]
    for name, proposer in proposers.items():
        work.begin(f"{name}: the contract")
        if name in classes:
            work.findings["contract"].append(_contract(name, classes[name], config, work.kept))
        _audit_method(name, proposer, cells[name], work)
    return [rules, *_evidence(work, config.alpha)]


def _contract(name: str, kind: type[Proposer], config: AuditConfig, kept: Kept) -> Finding:
    make = partial(kept_contract, name, kind, config.time_limit, 3 if config.thorough else 1)
    return kept.piece(f"{name}, contract", Finding, make)


def _audit_method(name: str, proposer: Proposer, cells: list[Cell], work: Work) -> None:
    """Compare all cells of a method, then plant faults; a broken contract ends it."""
    drafted = accepted = 0.0
    for cell in cells:
        work.begin(cell.name)
        found = work.kept.piece(cell.name, CellResult, partial(_result, proposer, cell, work))
        if found.broken is not None:
            work.findings["contract"].append(Finding(name=cell.name, verdict="FAIL", detail=found.broken))
            return
        if found.finding is not None:
            work.findings["text"].append(found.finding)
            drafted += found.finding.counts["num_drafted"]
            accepted += found.finding.counts["num_accepted"]
        if found.sample is not None:
            work.samples[cell.name] = found.sample
            drafted, accepted = drafted + found.sample.num_drafted, accepted + found.sample.num_accepted
    if not accepted and proposer.spec.max_nodes:
        said = f"none of {drafted:.0f} drafted tokens was accepted, so acceptance was not tried; give other prompts"
        work.findings["controls"].append(Finding(name=f"{name}, drafts", verdict="INCONCLUSIVE", detail=said))
    for cell in _controlled(cells):
        work.begin(f"{cell.name}: planted faults")
        for fault_name, fault in faults_of(cell).items():
            planted = f"{cell.name}: {fault_name}"
            make = partial(_planted, planted, fault, proposer, cell, work)
            work.findings["controls"].append(work.kept.piece(planted, Finding, make))


def _result(proposer: Proposer, cell: Cell, work: Work) -> CellResult:
    bench = work.texts.bench
    try:
        if cell.is_exact:
            return CellResult(finding=work.texts.compared(proposer, cell))
        return CellResult(sample=sampled(bench, proposer, cell, bench.config.num_law_tokens))
    except ContractError as error:
        return CellResult(broken=str(error))


def _controlled(cells: list[Cell]) -> list[Cell]:
    """Return one cell of each rule and temperature, at the largest batch size; without processors, where there is."""
    return list({(cell.rule, cell.temperature): cell for cell in sorted(cells, key=_simplicity)}.values())


def _simplicity(cell: Cell) -> tuple[bool, int]:
    return cell.processing == "none", cell.batch


def _planted(name: str, fault: Fault, proposer: Proposer, cell: Cell, work: Work) -> Finding:
    """Return whether a planted fault is caught. One that found no occasion proves nothing, and fails nothing."""
    tally, bench = Tally(), work.texts.bench
    how: str | None
    try:
        if cell.is_exact:
            how = "the text differs" if work.texts.differs(proposer, cell, fault.plant(tally)) else None
        else:
            how = catches(bench, proposer, cell, fault.plant(tally), bench.config.alpha / max(1, work.num_tests))
    except (ContractError, OutriderError) as error:
        how = f"it ends with {error}"
    if not tally.occasions:
        detail = "no occasion: nothing that it would change happened"
    elif how is not None:
        detail = f"caught after {tally.occasions} changes: {how}"
    else:
        detail = f"{tally.occasions} changes were not caught; give more prompts or longer answers"
    is_caught = how is not None and tally.occasions > 0
    return Finding(
        name=name,
        verdict="PASS" if is_caught or not tally.occasions else "INCONCLUSIVE",
        detail=detail,
        counts={"num_occasions": tally.occasions, "is_caught": is_caught},
    )


def _evidence(work: Work, alpha: float) -> list[Layer]:
    found, layers = work.findings, []
    if found["contract"]:
        layers.append(Layer.of("contract", found["contract"], _kept(found["contract"])))
    if found["text"]:
        layer = Layer.of("text", found["text"], "")
        compared, answers, ties = (layer.count(f"num_{name}") for name in ("compared", "answers", "ties"))
        explained = f", {ties} numerical ties explained by measured noise" if ties else ""
        equal = f"{compared} tokens of {answers} answers are plain decoding's{explained}"
        layers.append(Layer.of("text", found["text"], equal))
    if work.samples:
        layers.append(law_layer(work.samples, alpha))
    caught = sum(finding.detail.startswith("caught") for finding in found["controls"])
    return [*layers, Layer.of("controls", found["controls"], f"{caught} planted faults, all caught")]


def _kept(findings: list[Finding]) -> str:
    drafted, accepted = (
        sum(int(one.counts.get(f"num_{name}", 0)) for one in findings) for name in ("drafted", "accepted")
    )
    methods = "1 method" if len(findings) == 1 else f"{len(findings)} methods"
    return f"kept by {methods}; {accepted} of {drafted} drafted tokens were accepted there"


def _report(
    config: AuditConfig,
    target: Target,
    manifest: Manifest,
    methods: tuple[str, ...],
    layers: list[Layer],
    seconds: float,
) -> AuditReport:
    verdict = combined([layer.verdict for layer in layers])
    texts = [layer for layer in layers if layer.name == "text"]
    compared, ties, violations = (
        sum(layer.count(f"num_{name}") for layer in texts) for name in ("compared", "ties", "violations")
    )
    distances = [
        finding.counts["seen_distance"] for layer in layers for finding in layer.findings if layer.name == "law"
    ]
    rate, distance = detectable_rate(compared), max(distances, default=None)
    worst = next((layer for layer in layers if layer.verdict == verdict != "PASS"), None)
    seen = [] if rate is None else [f"a fault in 1 of {1 / rate:.0f} tokens"]
    seen += [] if distance is None else [f"a law at a distance of {distance:.2g}"]
    would = f"; {' and '.join(seen)} would have been seen with 95 %" if seen else ""
    said = f"the text is the target's own{would}" if worst is None else f"{worst.name}: {worst.sentence}"
    return AuditReport(
        verdict=verdict,
        sentence=said,
        target=f"{target.spec.name} ({target.spec.numbers})",
        methods=methods,
        num_compared=compared,
        num_ties=ties,
        num_violations=violations,
        rate=rate,
        distance=distance,
        layers=tuple(layers),
        manifest=manifest,
        seconds=seconds,
    )
