"""A method in a package of its own: found through its entry point, checked by the public contract."""

import tomllib
from pathlib import Path

import pytest

import outrider
from outrider.errors import ConfigError
from outrider.proposers import proposer_class
from outrider.testing import check_contract, tiny_target

EXAMPLE = Path(__file__).parents[2] / "examples" / "outrider-bigram"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What installing the example does: its module on the path, its entry points beside it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "outrider_bigram-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    entries = project["entry-points"]["outrider.proposers"]
    lines = [f"{name} = {path}" for name, path in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[outrider.proposers]", *lines, ""]))
    (tmp_path / "outrider_bigram.py").write_text((EXAMPLE / "outrider_bigram.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_registered_and_lossless() -> None:
    assert "bigram" in outrider.proposer_names()
    check_contract(proposer_class("bigram"), num_cases=2, target=tiny_target(max_positions=48))


@pytest.mark.usefixtures("installed")
def test_settings_are_checked() -> None:
    target = tiny_target()
    assert outrider.load_proposer("bigram", target, num_nodes=5).spec.max_nodes == 5
    with pytest.raises(ConfigError, match="no setting 'num_node'; did you mean 'num_nodes'"):
        outrider.load_proposer("bigram", target, num_node=5)


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "outrider_bigram.py").read_text().splitlines()) < 100
