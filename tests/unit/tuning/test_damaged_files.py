"""Files of a tuning run that are damaged: each is refused with a remedy that works, or made again; none is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from outrider.data.workloads import Conversation
from outrider.errors import RunError
from outrider.records.provenance import Manifest, collect_manifest
from outrider.sampling import SamplingParams
from outrider.tuning.prices.predict import Pick
from outrider.tuning.replays.kept import ANY, Answers, Replays, RunFiles
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Reach, walked
from outrider.tuning.replays.texts import Text
from outrider.tuning.schedule import Shortlist

TEXT = Text("a", 0, KnownText((1, 2), (3, 4, 5)), SamplingParams(max_tokens=3))
PROMPTS = [Conversation(id=id, category="x", turns=("t",)) for id in "ab"]
REACH = Reach((2, 1, 0), (1, 0, 0))
FILES = ("answers.json", "counted.json", "replays.json", "shortlist.json")


def manifest() -> Manifest:
    return collect_manifest(seed=0, settings={}, workload_hash="w", template_hash=None)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(tmp_path / "run", manifest())
    made.counted(PROMPTS, 1)
    made.keep_answers(Answers(tokens={"a": {0: TEXT.known.answer}}, complete=True, prefill_s=0.5))
    replays = Replays()
    replays.reaches = {"m": {TEXT.key: REACH}}
    replays.walks = {"t": {ANY: {TEXT.key: walked(TEXT, REACH, 2)}}}
    made.keep_replays(replays)
    made.keep_shortlist(Shortlist((Pick("ngram:num_nodes=2", "auto"),), 0.5).to_plain())
    return made


def read(files: RunFiles) -> tuple[list[str], frozenset[str], Replays, Shortlist | None]:
    kept = files.shortlist()
    return (
        list(files.answers().tokens),
        frozenset(one.id for one in files.counted(PROMPTS, 2)),
        files.replays({TEXT.key: TEXT}),
        None if kept is None else Shortlist.from_plain(kept),
    )


def test_what_is_kept_is_read(files: RunFiles) -> None:
    ids, prompts, replays, chosen = read(files)
    assert (ids, prompts) == (["a"], {"a"})
    assert replays.reaches == {"m": {TEXT.key: REACH}}
    assert [step.num_emitted for step in replays.walks["t"][ANY][TEXT.key]] == [2, 1]
    assert chosen == Shortlist((Pick("ngram:num_nodes=2", "auto"),), 0.5)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"[", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"id": 1}', b'{"ids": "a"}']
)
def test_a_file_of_another_content_is_refused_and_deleting_it_helps(name: str, content: bytes, files: RunFiles) -> None:
    path = files.directory / name
    path.write_bytes(content)
    with pytest.raises(RunError) as refused:
        read(files)
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith("; delete it and run the same command again")
    path.unlink()
    read(files)


REPLAYS: list[dict[str, Any]] = [
    {"reaches": {"m": [["a", 0, [2, 1], [1, 0]]]}, "walks": {}},  # a position is missing
    {"reaches": {"m": []}, "walks": {}},
    {"reaches": {"m": [["b", 0, [2, 1, 0], [1, 0, 0]]]}, "walks": {}},  # another prompt
    {"reaches": {}, "walks": {"t": {"0": [["a", 0, [[2, 2, 1, 2]]]]}}},  # a token is missing
    {"reaches": {}, "walks": {"t": {"0": [["a", 0, [[1, 1, 2, 3]]]]}}},  # more accepted than drafted
    {"reaches": {}, "walks": {"t": {}}},
]


@pytest.mark.parametrize("plain", REPLAYS)
def test_replays_along_other_answers_are_made_again(plain: dict[str, Any], files: RunFiles) -> None:
    (files.directory / "replays.json").write_text(json.dumps(plain))
    found = files.replays({TEXT.key: TEXT})
    assert (found.reaches, found.walks) == ({}, {})


@pytest.mark.parametrize(
    "plain",
    [
        {"reaches": {"m": [["a", 0, [2, 1, -1], [1, 0, 0]]]}, "walks": {}},
        {"reaches": {"m": [["a", 0, [2, 1, 0.5], [1, 0, 0]]]}, "walks": {}},
        {"reaches": {"m": 7}, "walks": {}},
        {"reaches": {"m": [["a", [], [2, 1, 0], [1, 0, 0]]]}, "walks": {}},
        {"reaches": {}, "walks": {"t": {"x": []}}},
        {"reaches": {}, "walks": {"t": {"0": [["a", 0, [[1, 2]]]]}}},
        {"reaches": {}, "walks": {"t": 7}},
        {"reaches": {}},
    ],
)
def test_replays_of_another_shape_are_refused(plain: dict[str, Any], files: RunFiles) -> None:
    (files.directory / "replays.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"replays\.json.*; delete it and run the same command again$"):
        files.replays({TEXT.key: TEXT})


@pytest.mark.parametrize(
    "plain",
    [
        {"choices": [["nosuch", "auto"]], "share": 0.5},
        {"choices": [["ngram", "sometimes"]], "share": 0.5},
        {"choices": [["ngram"]], "share": 0.5},
        {"choices": [["ngram", "auto"]], "share": 0},
        {"choices": [["ngram", "auto"]], "share": 1e400},
        {"choices": "ngram", "share": 0.5},
        {"share": 0.5},
    ],
)
def test_a_shortlist_that_cannot_be_measured_is_refused(plain: dict[str, Any], files: RunFiles) -> None:
    (files.directory / "shortlist.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"shortlist\.json.*; delete it and run the same command again$"):
        read(files)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]"])
def test_a_damaged_manifest_names_itself(content: bytes, files: RunFiles) -> None:
    (files.directory / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match=r"manifest\.json cannot be read \(.*\); give a new --run-dir"):
        RunFiles(files.directory, manifest())


def test_prompts_that_count_are_those_of_the_run_so_far(files: RunFiles) -> None:
    """Neither another limit nor an edit of the file that is written for the user changes them."""
    (files.directory / "prompts.jsonl").write_text('{"id": "b"}\n')
    assert [one.id for one in files.counted(PROMPTS, 2)] == ["a"]
    [line] = (files.directory / "prompts.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "a"


def test_counted_prompts_that_were_edited_are_refused(files: RunFiles) -> None:
    path = files.directory / "counted.json"
    path.write_text(path.read_text().replace('["a"]', '["b"]'))
    with pytest.raises(RunError, match=r"counted\.json was changed.*; delete it and run the same command again$"):
        files.counted(PROMPTS, 1)
    path.unlink()
    assert len(files.counted(PROMPTS, 2)) == 2
