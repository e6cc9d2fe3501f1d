"""`outrider audit --endpoint` on servers of our own: one that drafts passes; one that alters a token fails."""

import json
from pathlib import Path

import pytest
from server_calls import Serving

from outrider import verify
from outrider.cli import main
from outrider.target import Target


@pytest.fixture
def words(tiny_dir: Path, tmp_path: Path) -> list[str]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc abc abc", "one two one")), "utf-8")
    size = ("--max-new-tokens", "24", "--dtype", "float64")
    return ["audit", "--target", str(tiny_dir), "--prompts", str(path), *size]


@pytest.mark.parametrize("has_baseline", [True, False])
def test_a_drafting_server_passes(
    has_baseline: bool, serving: Serving, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafting, page = serving(), tmp_path / "audit.html"
    more = ("--baseline", f"{serving(method='none').url}/v1") if has_baseline else ()
    assert main([*words, "--endpoint", f"{drafting.url}/v1", *more, "--page", str(page)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["verdict"], found["unit"], found["num_ties"], found["num_violations"]) == (
        "PASS",
        "characters",
        0,
        0,
    )
    assert found["num_compared"] > 24
    assert [line.split()[:2] for line in lines[1:3]] == [["PASS", "server"], ["PASS", "controls"]]
    assert "a changed character" in page.read_text("utf-8")


def test_a_server_that_alters_a_token_fails(
    serving: Serving,
    words: list[str],
    target: Target,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bonus that is always token 40 behind an accepted path; plain decoding accepts nothing."""
    walk = verify.walk

    def late(tree: verify.Tree, own: object) -> verify.AcceptedPath:
        path = walk(tree, own)  # type: ignore[arg-type]
        return path._replace(bonus=40) if path.rows else path

    monkeypatch.setattr(verify, "walk", late)
    assert main([*words, "--endpoint", f"{serving().url}/v1"]) == 3
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["verdict"] == "FAIL"
    assert "by our plain decoding" in found["sentence"]
