"""An audit of correct methods passes, with every planted fault caught; one that could see nothing says so."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from outrider.audit import audit
from outrider.audit.cells import Bench, cells_of
from outrider.audit.config import AuditConfig
from outrider.audit.layers.texts import Texts
from outrider.audit.report import AuditReport, Finding, Layer, combined, detectable_rate
from outrider.audit.requests import Requests
from outrider.draft import Tree
from outrider.errors import ConfigError
from outrider.processors.penalties import Penalties
from outrider.proposer import DraftLimit, Proposer
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.targets.native import NativeTarget
from outrider.testing import Scripted, tiny_target

SMALL = AuditConfig(num_prompts=3, max_new_tokens=24, batches=(1, 3))


@pytest.fixture(scope="module")
def target() -> NativeTarget:
    return tiny_target(max_positions=128)


def half_right(target: NativeTarget, config: AuditConfig = SMALL) -> Proposer:
    """Drafts trees: two tokens of the target's own text and a wrong sibling, where it knows the text, else a guess."""
    bench = Bench(config, target, Requests.of(config, target))
    texts: dict[SamplingParams, tuple[int, ...]] = {}
    for cell in cells_of(config, target, "none"):
        for one, params in zip(Texts(bench).plain(cell), bench.params(cell), strict=True):
            texts[params] = (*one.prompt, *one.tokens)

    def script(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        text = texts[sampling]
        coming = text[len(tokens) :] if text[: len(tokens)] == tuple(tokens) else ()
        if len(coming) < 2 or limit.num_nodes < 4 or limit.max_depth < 3:
            return Tree.chain([0][: min(limit)])
        wrong = (coming[0] + 1) % 31
        return Tree([wrong, coming[0], coming[1], wrong], [-1, -1, 1, 2])

    return Scripted(script, 4)


def layer(report: AuditReport, name: str) -> Layer:
    [found] = [one for one in report.layers if one.name == name]
    return found


def findings(report: AuditReport, verdict: str) -> list[Finding]:
    return [finding for one in report.layers for finding in one.findings if finding.verdict == verdict]


def test_a_correct_method_passes_and_every_fault_that_found_an_occasion_is_caught(target: NativeTarget) -> None:
    report = audit(SMALL, target, {"trees": half_right(target)})
    assert (report.verdict, report.status) == ("PASS", 0)
    # 2 temperatures; plain at 2 batch sizes, 2 processors at one; 3 answers
    texts = layer(report, "text")
    assert len(texts.findings) == 2 * (2 + 2)
    assert texts.count("num_answers") == 24
    assert report.num_compared == texts.count("num_compared") > 300
    assert (report.num_ties, report.num_violations) == (0, 0)
    controls = [one for one in layer(report, "controls").findings if "trees" in one.name]
    assert len(controls) == 6
    assert all(one.counts["is_caught"] == 1 for one in controls), controls


def test_plain_decoding_passes_without_a_draft(target: NativeTarget) -> None:
    report = audit(SMALL, target, {"none": NoProposer()})
    assert report.verdict == "PASS"
    [short] = [one for one in layer(report, "controls").findings if "T=0: a cache" in one.name]
    assert short.detail.startswith("no occasion")


def test_drafts_that_are_never_accepted_leave_it_open(target: NativeTarget) -> None:
    config = replace(SMALL, processors=("none",), temperatures=(0.0,), max_new_tokens=12)
    bench = Bench(config, target, Requests.of(config, target))
    written = {token for one in Texts(bench).plain(cells_of(config, target, "m")[0]) for token in one.tokens}
    unwritten = min({*range(31)} - written)

    def wrong(tokens: Sequence[int], sampling: SamplingParams, limit: DraftLimit) -> Tree:
        return Tree.chain([unwritten][: min(limit)])

    report = audit(config, target, {"wrong": Scripted(wrong, 4)})
    assert (report.verdict, report.status) == ("INCONCLUSIVE", 4)
    assert [one.name for one in findings(report, "INCONCLUSIVE")] == ["wrong, drafts"]
    assert "none of" in report.sentence


def test_low_precision_is_explained_by_noise_or_fails() -> None:
    spec_target = tiny_target(dtype=torch.float32, max_positions=128)
    report = audit(SMALL, spec_target, {"trees": half_right(spec_target)})
    assert report.verdict == "PASS"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (lambda tokens, sampling, limit: 1 / 0, "propose(slots=[0]"),
        (lambda tokens, sampling, limit: Tree.chain([10**6]), "outside the vocabulary"),
        (lambda tokens, sampling, limit: Tree.chain([1] * 9), "its limit is 4"),
        (lambda tokens, sampling, limit: Tree([1, 2], [1, 0]), "C8"),
    ],
)
def test_a_proposer_that_raises_or_returns_garbage_breaks_the_contract(
    script: object, said: str, target: NativeTarget
) -> None:
    report = audit(SMALL, target, {"mine": Scripted(script, 4)})  # type: ignore[arg-type]
    assert (report.verdict, report.status) == ("FAIL", 3)
    assert said in layer(report, "contract").sentence


def test_a_proposer_that_hangs_is_stopped_and_named(target: NativeTarget) -> None:
    def hang(tokens: Sequence[int], sampling: SamplingParams, limit: object) -> Tree:
        while True:
            pass

    report = audit(replace(SMALL, time_limit=8.0), target, {"mine": Scripted(hang, 4)})
    assert report.verdict == "FAIL"
    assert "propose(" in report.sentence
    assert "did not return within 8 s" in report.sentence


def test_a_method_that_returns_no_draft_breaks_the_contract(target: NativeTarget) -> None:
    class Nothing(Scripted):  # type: ignore[misc]
        def open(self, plan: object) -> object:  # type: ignore[override]
            return None

    report = audit(SMALL, target, {"mine": Nothing(lambda *given: Tree([], []))})
    assert "returned None; return a Session" in layer(report, "contract").sentence


def test_processors_are_part_of_what_is_judged(target: NativeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that forgets what was counted: only cells with penalties can see it."""
    fork = Penalties.fork

    def forgetful(self: Penalties) -> Penalties:
        copy = fork(self)
        copy.__dict__.update({name: type(value)() for name, value in vars(copy).items() if isinstance(value, dict)})
        return copy

    monkeypatch.setattr(Penalties, "fork", forgetful)
    config = replace(SMALL, batches=(2,), temperatures=(0.0,))
    report = audit(config, target, {"trees": half_right(target, config)})
    assert report.verdict == "FAIL"
    assert {one.name.rpartition(", ")[2] for one in findings(report, "FAIL")} == {"penalties"}


def test_cells_are_all_combinations_if_thorough(target: NativeTarget) -> None:
    config = AuditConfig(verification=("coupled", "block"), thorough=True)
    assert len(cells_of(config, target, "m")) == 2 * 2 * 2 * 3  # no forms without a tokenizer
    # every processor at one batch size, and the law of the block rule at T=0.7 at one as well
    assert len(cells_of(replace(config, thorough=False), target, "m")) == 2 * 2 * (2 + 2) - 1


def test_verdicts() -> None:
    assert combined([]) == combined(["PASS"]) == "PASS"
    assert combined(["PASS", "INCONCLUSIVE"]) == "INCONCLUSIVE"
    assert combined(["INCONCLUSIVE", "FAIL", "PASS"]) == "FAIL"
    rate = detectable_rate(1500)
    assert rate is not None
    assert (1 - rate) ** 1500 == pytest.approx(0.05)
    assert detectable_rate(0) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verification": ("coupld",)}, "did you mean 'coupled'"),
        ({"batches": (0,)}, "batches=0 must be between 1 and 256"),
        ({"temperatures": (0.001,)}, "temperatures=0.001 must be 0"),
        ({"methods": ()}, "methods is empty"),
        ({"alpha": 0.5}, "alpha=0.5 must be between"),
        ({"max_new_tokens": 200}, "leaves no room"),
    ],
)
def test_bad_settings(change: dict[str, object], said: str, target: NativeTarget) -> None:
    with pytest.raises(ConfigError, match=said):
        audit(replace(AuditConfig(), **change), target)  # type: ignore[arg-type]
