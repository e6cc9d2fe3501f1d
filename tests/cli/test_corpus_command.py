"""`outrider corpus`, end to end on a byte-level tokenizer: what is read, what is left out, what is refused."""

import json
from pathlib import Path

import pytest

from outrider import load_target
from outrider.cli import main
from outrider.proposers.corpus.store import Corpus
from outrider.testing.directory import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("corpus") / "model")


def texts(path: Path, model: Path) -> list[str]:
    tokenizer = load_target(str(model)).tokenizer
    return [tokenizer.decode(document.tolist()) for document in Corpus.open(path).documents()]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    below = tmp_path / "src"
    (below / ".hidden").mkdir(parents=True)
    (below / ".hidden" / "secret.txt").write_text("no")
    (below / "b.py").write_text("print(2)\n")
    (below / "a.py").write_text("print(1)\n")
    (below / "logs.jsonl").write_text('{"level": 3}\n')
    (below / "image.png").write_bytes(b"\x89PNG\x00\xff")
    rows = ["plain", {"text": "of a record"}, {"messages": [{"role": "user", "content": "hi"}] * 2}]
    rows.append({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "an answer"}]})
    (tmp_path / "traffic.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return tmp_path


def test_files_directories_and_lines_become_documents(
    files: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = files / "some.corpus"
    arguments = [str(files / "traffic.jsonl"), str(files / "src"), "--target", str(model), "--output", str(output)]
    assert main(["corpus", "build", *arguments]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["num_skipped"] == 1
    assert "1 files" in said.err
    expected = ["plain", "of a record", "an answer", "print(1)\n", "print(2)\n", '{"level": 3}\n']
    assert texts(output, model) == expected
    (files / "later.md").write_text("a later text")
    assert main(["corpus", "build", str(files / "later.md"), "--add", *arguments[2:]]) == 0
    assert texts(output, model) == [*expected, "a later text"]
    assert main(["corpus", "build", str(files / "later.md"), *arguments[2:]]) == 0
    assert texts(output, model) == ["a later text"]
    assert main(["corpus", "show", str(output)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_tokens"] == len("a later text")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.txt"], "nowhere.txt is no file and no directory"),
        (["src/image.png"], "is not text in UTF-8"),
        (["src/logs.jsonl"], 'line 1 is neither a string nor an object with "text" or "messages"'),
        (["empty.txt"], "hold no token"),
        ([], "nothing to build from"),
        (["src/a.py", "--max-tokens", "1"], "max_tokens=1 must be between 2"),
        (["src/a.py", "--add", "--output", "src/b.py"], "b.py is damaged and cannot be read as a corpus"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_file(
    files: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(files)
    (files / "empty.txt").write_text("")
    output = [] if "--output" in arguments else ["--output", "some.corpus"]
    assert main(["corpus", "build", *arguments, *output, "--target", str(model)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1]
    assert not Path("some.corpus").exists()
    assert Path("src/b.py").read_text() == "print(2)\n"
