"""`outrider audit`: exit status, the JSON line, the lines for people, and bad input."""

import html
import json
import tomllib
from pathlib import Path

import pytest
from invoking import status_of

from outrider import verify
from outrider.cli import main

QUICK = ("--dtype", "float64", "--num-prompts", "3", "--max-new-tokens", "24", "--batches", "2")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = ("abc abc abc abc", "one two one two one", "again and again")
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_a_pass_in_lines_and_in_json(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, page = tmp_path / "audit.json", tmp_path / "audit.html"
    words = ["audit", "--target", str(tiny_model), "--prompts", str(prompts), "--methods", "ngram", *QUICK]
    assert main([*words, "--output", str(output), "--page", str(page)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["schema"], found["verdict"], found["methods"]) == ("outrider.audit/1", "PASS", ["ngram"])
    assert found == json.loads(output.read_text(encoding="utf-8"))
    shown = html.unescape(page.read_text(encoding="utf-8"))
    assert all(f">{finding['name']}<" in shown for layer in found["layers"] for finding in layer["findings"])
    assert not list(tmp_path.glob(".*.part"))
    assert [layer["name"] for layer in found["layers"]] == ["rule", "contract", "text", "controls"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["PASS", "rule"], ["PASS", "contract"], ["PASS", "text"], ["PASS", "controls"]
    ]  # fmt: skip
    assert found["num_compared"] > 100
    texts = next(layer for layer in found["layers"] if layer["name"] == "text")
    assert any("structured" in finding["name"] for finding in texts["findings"])


def test_a_violation_has_a_status_of_its_own(
    tiny_model: Path, prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bonus that is always token 0 behind an accepted path; plain decoding accepts nothing, and has no such fault."""
    walk = verify.walk

    def late(tree: verify.Tree, own: object) -> verify.AcceptedPath:
        path = walk(tree, own)  # type: ignore[arg-type]
        return path._replace(bonus=0) if path.rows else path

    monkeypatch.setattr(verify, "walk", late)
    words = ["audit", "--target", str(tiny_model), "--prompts", str(prompts), "--methods", "ngram", *QUICK]
    assert main([*words, "--processors", "none"]) == 3
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["verdict"] == "FAIL"
    assert {layer["name"] for layer in found["layers"] if layer["verdict"] == "FAIL"} == {"contract", "text"}
    assert "token" in found["sentence"] or "differs" in found["sentence"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "ngran"], "did you mean 'ngram'"),
        (["--batches", "0"], "batches=0"),
        (["--output", "nowhere/audit.json"], "nowhere"),
        (["--page", "nowhere/audit.html"], "nowhere"),
        (["--page", "."], "page=. is a directory"),
        (["--page", "audit.txt", "--output", "audit.txt"], "different names"),
        (["--time-limit", "soon"], "--time-limit"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], said: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("audit", "--target", tiny_model, *words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


EXAMPLE = Path(__file__).parents[2] / "examples" / "outrider-bigram"


def test_a_third_party_method_is_audited_by_name(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "outrider_bigram-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    entries = project["entry-points"]["outrider.proposers"]
    lines = [f"{name} = {path}" for name, path in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[outrider.proposers]", *lines, ""]))
    (tmp_path / "outrider_bigram.py").write_text((EXAMPLE / "outrider_bigram.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "audit",
        "--target",
        str(tiny_model),
        "--prompts",
        str(prompts),
        *QUICK,
        "--processors",
        "none",
        "--temperatures",
        "0",
    ]
    assert main([*words, "--methods", "bigram"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["methods"] == ["bigram"]
