"""The measuring script runs, files every section, and goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_sections_are_filed_and_resumed(tmp_path: Path) -> None:
    """One section is on file already, and is left as it is."""
    filed = {"step_s": 1.0, "read_bytes": 1}
    file = tmp_path / "tiny-cpu.json"
    file.write_text(json.dumps({"schema": "outrider.gpu/1", "sections": {"plain/eager/1/20": filed}}))
    command = [sys.executable, str(SCRIPT), "--device=cpu", "--size=tiny", "--steps=1", f"--output={tmp_path}"]
    done = subprocess.run([*command, "--only=bandwidth,1"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["schema"] == "outrider.gpu/1"
    assert "eagle3/eager/1/20" in done.stderr
    assert "plain/eager/1/20" not in done.stderr
    document = json.loads(file.read_text())
    assert document["provenance"]["hardware"]
    rows = document["sections"]
    assert rows["plain/eager/1/20"] == filed
    assert not [key for key, row in rows.items() if "error" in row]
    methods, modes = ("plain", "eagle3", "pard", "draft_model"), ("graphs", "eager")
    assert {f"{method}/{mode}/1/20" for method in methods for mode in modes} < set(rows)
    assert "plain steps" in file.with_suffix(".txt").read_text()
