"""What an installed wheel holds is enough: every file that code opens lies in the package, and the heads are fetched.

The package is laid out as `pyproject.toml` tells the build to do, and used in another process from an empty directory.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

USE = """
import json, logging, sys
from pathlib import Path
import outrider
from outrider.bench.methods import at_hand
from outrider.proposers.method_spec import method_specs
from outrider.env import data_directory
from outrider.bench.preset import configured, read_preset
from outrider.planning.models import model_spec
from outrider.records.presets import preset_file
from outrider.data.workloads import CATEGORIES, load_category
from outrider.cli import main
from outrider.testing import tiny_target

presets = sorted(path.stem for path in data_directory("recipes").glob("*.toml"))
left_out = {}
for round in ("without", "with"):
    for name in presets:
        kept, notes = at_hand(method_specs(configured(read_preset(name)).methods), tiny_target())
        left_out[f"{round} {name}"] = [[choice.label for choice in kept], list(notes)]
    if round == "without":
        assert main(["fetch", "heads", "--from", sys.argv[1]]) == 0
for category in CATEGORIES:
    assert load_category(category)
for folder, ours in (("hardware", "h100"), ("drafters", "published")):
    assert preset_file(folder, ours, "file").is_file()
assert model_spec("qwen2.5-7b").num_layers == 28
print(json.dumps({"package": outrider.__file__, "left_out": left_out}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and what is put beside its modules."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    site = tmp_path_factory.mktemp("site-packages")
    skipped = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / Path(package).name, ignore=skipped)
    for source, place in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / place, ignore=skipped)
    return site


def test_an_installed_package_runs_in_an_empty_directory(site: Path, tmp_path: Path) -> None:
    archive = tmp_path / "heads.zip"
    made = subprocess.run(
        [sys.executable, ROOT / "dev/archive_heads.py", ROOT / "checkpoints", archive],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "heads.zip: " in made.stdout
    assert "sha256" in made.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "OUTRIDER_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", USE, archive], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert Path(found["package"]).is_relative_to(site)
    assert len([line for line in lines if line.startswith("smollm2-135m/")]) == 5
    for name, (kept, notes) in found["left_out"].items():
        assert kept
        assert all("runs/" in note and "docs/guides/train.md" in note for note in notes) or name.startswith("without")
        assert all("outrider fetch heads" in note or "docs/guides/train.md" in note for note in notes)
    quick = found["left_out"]["without quick"]
    assert quick[0] == ["none", "ngram", "suffix"]
    assert len(quick[1]) == 1
    assert found["left_out"]["with quick"][1] == []
