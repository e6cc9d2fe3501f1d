"""Bugs planted in the production code: the audit fails, and names the layer that saw them."""

import pytest
from planting import Plant, plant

from outrider import load_proposer, placement, verify
from outrider.audit import audit
from outrider.audit import enumerate as enumeration
from outrider.audit.config import AuditConfig
from outrider.audit.report import AuditReport
from outrider.cache import KVCache
from outrider.targets import native
from outrider.testing import tiny_target

BUGS: dict[str, tuple[str, Plant]] = {
    "argmax instead of a sample as the bonus": (
        "rule",
        plant(
            verify,
            enumeration,
            name="reject_tree",
            old="chance.pick(p_V, position + len(path))",
            new="int(p_V.argmax())",
        ),
    ),
    "the cache is cropped one short": (
        "text",
        plant(KVCache, name="commit", old="1 + len(path) for path in paths", new="max(1, len(path)) for path in paths"),
    ),
    "RoPE one off for drafted nodes": (
        "text",
        plant(
            placement,
            native,
            name="place_real_rows",
            old="positions_BM=positions_BM,",
            new="positions_BM=positions_BM + torch.arange(draft.num_rows).clamp(max=1),",
        ),
    ),
}


def audited(rule: str = "coupled") -> AuditReport:
    target = tiny_target(max_positions=128)
    config = AuditConfig(
        verification=(rule,),
        temperatures=(0.0,),
        processors=("none",),
        batches=(1, 3),
        num_prompts=6,
        max_new_tokens=32,
    )
    return audit(config, target, {"ngram": load_proposer("ngram", target)})


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_fails_the_audit_in_its_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, bug = BUGS[name]
    bug(monkeypatch)
    report = audited("rejection" if layer == "rule" else "coupled")
    assert report.verdict == "FAIL"
    assert [one.name for one in report.layers if one.verdict == "FAIL"] == [layer], report.sentence


def test_without_a_bug_it_passes() -> None:
    assert audited().verdict == audited("rejection").verdict == "PASS"
