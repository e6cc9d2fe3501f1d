"""The audit of methods on one target: layer by layer, from settings to a report.

    rule       acceptance rules, enumerated
    contract   the class of each method on a tiny target, and every draft on the audited one
    text       answers, token by token
    law        answers of rules that keep only the law
    controls   faults that are planted into the same engine and must be seen

Example: `audit(AuditConfig(methods=("ngram",))).verdict` is "PASS".
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from outrider.audit.cells import Bench, Cell, cells_of
from outrider.audit.config import AuditConfig
from outrider.audit.faults import Fault, Tally, faults_of
from outrider.audit.layers.contract import contract_controls, kept_contract
from outrider.audit.layers.law import ORDERS, Sample, holm, sampled
from outrider.audit.layers.rules import rule_controls, rule_layer
from outrider.audit.layers.texts import Texts
from outrider.audit.report import AuditReport, Finding, Layer, combined, detectable_rate
from outrider.audit.requests import Requests
from outrider.errors import OutriderError
from outrider.proposer import Proposer
from outrider.proposers import proposer_class
from outrider.proposers.auto import check_method, named_or_picked
from outrider.proposers.method_spec import load_method
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import collect_manifest, template_hash
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing import ContractError

__all__ = ["audit_methods", "loaded_target", "plain_value"]


@dataclass
class Work:
    """The findings and samples so far, and the progress.

    num_tests   tests of a law that the whole audit makes
    """

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
) -> AuditReport:
    """Check that methods are lossless on a target.

    Args:
        target: the loaded target, where the caller has it; else the settings name it.
        proposers: proposers by name, in place of `config.methods`; the contract of their classes is not run.
        listen: told of the progress.

    Raises:
        OutriderError: if the target or a method cannot be loaded, or a setting does not fit them.
    """
    start = monotonic()
    for text in config.methods if proposers is None else ():
        check_method(text)
    config.check_places()
    target = target or loaded_target(config, listen)
    loaded, classes = _methods(config, target) if proposers is None else (dict(proposers), {})
    bench = Bench(config, target, Requests.of(config, target))
    texts = Texts(bench)
    cells = {name: cells_of(config, target, name) for name in loaded}
    work = Work(listen)
    work.total = sum(len(found) + len(_controlled(found)) + 1 for found in cells.values()) + 1
    work.num_tests = len(ORDERS) * sum(not cell.is_exact for found in cells.values() for cell in found)
    work.begin("acceptance rules, enumerated")
    rules = rule_layer(config.verification)
    work.findings["controls"] += [*rule_controls(config.verification), *contract_controls()]
    for name, proposer in loaded.items():
        work.begin(f"{name}: the contract")
        if name in classes:
            num_cases = 3 if config.thorough else 1
            work.findings["contract"].append(kept_contract(name, classes[name], config.time_limit, num_cases))
        _audit_method(name, proposer, cells[name], texts, work)
    layers = [rules, *_layers(work, config.alpha)]
    return _report(config, target, bench.requests, tuple(loaded), layers, monotonic() - start)


def loaded_target(config: AuditConfig, listen: Listener) -> Target:
    """Return the target that the settings name."""
    return load_target(
        config.target,
        dtype=config.dtype,
        weights=config.weights,
        device=config.device,
        backend=config.backend,
        trust_remote_code=config.trust_remote_code,
        listen=listen,
    )


def _methods(config: AuditConfig, target: Target) -> tuple[dict[str, Proposer], dict[str, type[Proposer]]]:
    """Return the proposers to audit, and their classes, by name."""
    picks = [named_or_picked(text, target) for text in config.methods]
    loaded = {pick.text: load_method(pick.spec, target) for pick in picks}
    return loaded, {pick.text: proposer_class(pick.spec.name) for pick in picks}


def _audit_method(name: str, proposer: Proposer, cells: list[Cell], texts: Texts, work: Work) -> None:
    """Compare all cells of a method, then plant faults; a broken contract ends it."""
    drafted = accepted = 0.0
    for cell in cells:
        work.begin(cell.name)
        try:
            if cell.is_exact:
                finding = texts.compared(proposer, cell)
                work.findings["text"].append(finding)
                counts = finding.counts["num_drafted"], finding.counts["num_accepted"]
            else:
                sample = work.samples[cell.name] = sampled(texts.bench, proposer, cell)
                counts = sample.num_drafted, sample.num_accepted
        except ContractError as error:
            work.findings["contract"].append(Finding(name=cell.name, verdict="FAIL", detail=str(error)))
            return
        drafted, accepted = drafted + counts[0], accepted + counts[1]
    if not accepted and proposer.spec.max_nodes:
        said = f"none of {drafted:.0f} drafted tokens was accepted, so acceptance was not tried; give other prompts"
        work.findings["controls"].append(Finding(name=f"{name}, drafts", verdict="INCONCLUSIVE", detail=said))
    level = texts.bench.config.alpha / max(1, work.num_tests)
    for cell in _controlled(cells):
        work.begin(f"{cell.name}: planted faults")
        for fault_name, fault in faults_of(cell).items():
            work.findings["controls"].append(_planted(fault_name, fault, proposer, cell, texts, level))


def _controlled(cells: list[Cell]) -> list[Cell]:
    """Return one cell of each rule and temperature, at the largest batch size; without processors, where there is."""
    return list({(cell.rule, cell.temperature): cell for cell in sorted(cells, key=_simplicity)}.values())


def _simplicity(cell: Cell) -> tuple[bool, int]:
    return cell.processing == "none", cell.batch


def _planted(name: str, fault: Fault, proposer: Proposer, cell: Cell, texts: Texts, level: float) -> Finding:
    """Return whether a planted fault is caught. One that found no occasion proves nothing, and fails nothing.

    Args:
        level: chance at which a law counts as another, in the strictest of all tests.
    """
    tally = Tally()
    try:
        if cell.is_exact:
            caught, how = texts.differs(proposer, cell, fault.plant(tally)), "the text differs"
        else:
            chance = min(sampled(texts.bench, proposer, cell, fault.plant(tally)).chances)
            caught, how = chance <= level, f"chance gives such a text with at most {chance:.1g}"
    except (ContractError, OutriderError) as error:
        caught, how = True, f"it ends with {error}"
    if not tally.occasions:
        detail = "no occasion: nothing that it would change happened"
    elif caught:
        detail = f"caught after {tally.occasions} changes: {how}"
    else:
        detail = f"{tally.occasions} changes were not caught; give more prompts or longer answers"
    return Finding(
        name=f"{cell.name}: {name}",
        verdict="INCONCLUSIVE" if tally.occasions and not caught else "PASS",
        detail=detail,
        counts={"num_occasions": tally.occasions, "is_caught": float(caught and tally.occasions > 0)},
    )


def _law_layer(samples: Mapping[str, Sample], alpha: float) -> Layer:
    """Return the verdict on all samples together."""
    rejected = holm([chance for sample in samples.values() for chance in sample.chances], alpha)
    findings = []
    for place, (name, sample) in enumerate(samples.items()):
        wrong = any(rejected[place * len(ORDERS) : (place + 1) * len(ORDERS)])
        said = "is not the target's" if wrong else "agrees with the target's"
        findings.append(
            Finding(
                name=name,
                verdict="FAIL" if wrong else "PASS",
                detail=f"the law of {sample.num_tokens} tokens {said}: D={max(sample.distances):.3f}, which chance "
                f"exceeds with at most {min(sample.chances):.2g}",
                counts={"num_tokens": sample.num_tokens, "chance": min(sample.chances)},
            )
        )
    tokens = sum(sample.num_tokens for sample in samples.values())
    budget = f"false alarms of all {len(rejected)} tests together: at most {alpha:g}"
    return Layer.of("law", findings, f"{tokens} sampled tokens have the target's law ({budget})")


def _layers(work: Work, alpha: float) -> Iterator[Layer]:
    found = work.findings
    if found["contract"]:
        yield Layer.of("contract", found["contract"], _kept(found["contract"]))
    if found["text"]:
        layer = Layer.of("text", found["text"], "")
        compared, answers, ties = (layer.count(f"num_{name}") for name in ("compared", "answers", "ties"))
        explained = f", {ties} numerical ties explained by measured noise" if ties else ""
        equal = f"{compared} tokens of {answers} answers are plain decoding's{explained}"
        yield Layer.of("text", found["text"], equal)
    if work.samples:
        yield _law_layer(work.samples, alpha)
    caught = sum(finding.detail.startswith("caught") for finding in found["controls"])
    yield Layer.of("controls", found["controls"], f"{caught} planted faults, all caught")


def _kept(findings: list[Finding]) -> str:
    drafted, accepted = (
        sum(int(one.counts.get(f"num_{name}", 0)) for one in findings) for name in ("drafted", "accepted")
    )
    return f"kept by {len(findings)} methods; {accepted} of {drafted} drafted tokens were accepted there"


def _report(
    config: AuditConfig,
    target: Target,
    requests: Requests,
    methods: tuple[str, ...],
    layers: list[Layer],
    seconds: float,
) -> AuditReport:
    verdict = combined([layer.verdict for layer in layers])
    texts = [layer for layer in layers if layer.name == "text"]
    compared, ties, violations = (
        sum(layer.count(f"num_{name}") for layer in texts) for name in ("compared", "ties", "violations")
    )
    rate = detectable_rate(compared)
    worst = next((layer for layer in layers if layer.verdict == verdict != "PASS"), None)
    seen = "" if rate is None else f"; a fault in 1 of {1 / rate:.0f} tokens would have been seen with 95 %"
    said = f"the text is the target's own{seen}" if worst is None else f"{worst.name}: {worst.sentence}"
    manifest = collect_manifest(
        seed=config.seed,
        settings={name: plain_value(value) for name, value in asdict(config).items()},
        workload_hash=requests.identity,
        template_hash=template_hash(target.tokenizer),
    )
    return AuditReport(
        verdict=verdict,
        sentence=said,
        target=f"{target.spec.name} ({target.spec.weights}, {str(target.spec.dtype).removeprefix('torch.')})",
        methods=methods,
        num_compared=compared,
        num_ties=ties,
        num_violations=violations,
        rate=rate,
        layers=tuple(layers),
        manifest=manifest,
        seconds=seconds,
    )


def plain_value(value: Any) -> Any:
    """Return a setting as JSON can hold it."""
    return [str(one) for one in value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
