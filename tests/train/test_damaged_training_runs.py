"""Files of runs and data sets that were damaged or edited: one sentence names the file, the line and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import play, setup, small

from outrider.cli.commands.train import TrainMethod
from outrider.data.config import SynthesisConfig
from outrider.data.identity import Identity
from outrider.data.shards import Dataset
from outrider.data.synthesis import synthesize
from outrider.errors import ConfigError, RunError
from outrider.train.card import write_card
from outrider.train.checkpoints import newest
from outrider.train.record import checked_settings, read_record
from outrider.train.run_log import curve, evaluations
from writing import tiny_identity, word_generator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    play(setup(small(epochs=1)), directory)
    return directory


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return tiny_identity(tmp_path_factory.mktemp("tiny") / "model")


def texts(identity: Identity, directory: Path, num_prompts: int = 6) -> Any:
    config = SynthesisConfig(
        num_prompts=num_prompts, shard_size=3, max_new_tokens=100, max_prompt_tokens=400, max_turn_tokens=100
    )
    return synthesize(config, directory, identity, word_generator(identity))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


LINES = [
    ("{", r"log\.jsonl, line 2 cannot be read as JSON"),
    ("[]", r"log\.jsonl, line 2 holds a list"),
    ('{"kind": "step", "loss": 1.0, "tokens": 3}', r"log\.jsonl, line 2: step is missing"),
    ('{"kind": "step", "step": "two", "loss": 1.0, "tokens": 3}', r"log\.jsonl, line 2: step is 'two'"),
    ('{"step": 2, "loss": 1.0, "tokens": 3}', r"log\.jsonl, line 2: kind is missing"),
    ('{"kind": "step", "step": 2, "loss": "low", "tokens": 3}', r"log\.jsonl, line 2: loss is 'low'"),
    ('{"kind": "step", "step": 2, "loss": 1.0}', r"log\.jsonl, line 2: tokens is missing"),
    ('{"kind": "held_out", "step": 2}', r"log\.jsonl, line 2: tau is missing"),
    (
        '{"kind": "held_out", "step": 2, "tau": 1, "num_texts": 1, "num_anchors": 1, "conditional": ["x"]}',
        r"log\.jsonl, line 2: conditional is",
    ),
    ("\\udcff", r"log\.jsonl, line 2 is not UTF-8"),
]


@pytest.mark.parametrize(("line", "says"), LINES)
def test_a_damaged_line_of_a_log_is_named(line: str, says: str, run: Path, tmp_path: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    data = b"\xff" if line.startswith("\\") else line.encode()
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([lines[0].encode(), data, lines[2].encode(), b""]))
    with pytest.raises(RunError, match=rf"{says}.*delete that line and resume the run"):
        [curve(tmp_path), evaluations(tmp_path)]


def test_a_log_may_lack_lines_and_be_cut_short(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()
    (tmp_path / "run" / "log.jsonl").write_text("\n".join([lines[0], "", *lines[3:], '{"kind": "st']))
    shutil.rmtree(tmp_path / "run" / "final")
    report = play(setup(small(epochs=1)), tmp_path / "run", resume=True)
    assert len(report["loss_curve"]) < len(curve(run))
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == (
        run / "final" / "model.safetensors"
    ).read_bytes()


RECORDS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda record: record.pop("method"), "method is missing"),
    (lambda record: record.update(schema="outrider.train/9"), r"schema is 'outrider\.train/9'"),
    (lambda record: record.update(settings=[]), r"settings is \[\]"),
    (lambda record: record.pop("options"), "options is missing"),
    (lambda record: record["train"].update(rows="four"), r"'train': TrainConfig\.rows is 'four' but must be a whole"),
    (lambda record: record["train"].update(rows=-1), "'train': rows=-1 must be at least 1"),
]


@pytest.mark.parametrize(("change", "says"), RECORDS)
def test_an_edited_record_is_named(change: Callable[[Any], object], says: str, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.json", tmp_path)
    edit(tmp_path / "config.json", change)
    with pytest.raises(RunError, match=rf"config\.json.*{says}.*; restore that file, or start a new run"):
        checked_settings(type(small()), read_record(tmp_path), "train", tmp_path)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"data": "x"}, "TrainMethod.data is 'x'"),
    ({"data": [3]}, r"TrainMethod.data\[0\] is 3"),
    ({"threads": "two"}, "TrainMethod.threads is 'two'"),
    ({"threads": 0}, "threads=0 must be at least 1"),
    ({"heldout_fraction": 3}, "heldout_fraction=3.0 must be at least 0 and below 1"),
    ({"features": "hot"}, "TrainMethod.features is 'hot'"),
]


@pytest.mark.parametrize(("changes", "says"), OPTIONS)
def test_an_edited_option_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"data": ["d"], "target": "t", "dtype": "float32", "features": "live"}
    assert checked_settings(TrainMethod, {"options": good}, "options", tmp_path).data == (Path("d"),)
    with pytest.raises(RunError, match=rf"config\.json, 'options': {says}"):
        checked_settings(TrainMethod, {"options": {**good, **changes}}, "options", tmp_path)


STATES: list[Callable[[dict[str, Any]], object]] = [
    lambda state: state.update(step="six"),
    lambda state: state.update(step=4),
    lambda state: state.pop("best_tau"),
    lambda state: state.update(seconds=-1),
    lambda state: state.update(files={}),
    lambda state: state["files"]["model.safetensors"].update(sha256=5),
    lambda state: state.update(schema="other"),
]


@pytest.mark.parametrize("change", STATES)
def test_a_checkpoint_with_an_edited_state_is_passed_over(
    change: Callable[[Any], object], run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    last, before = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    edit(last / "state.json", change)
    assert newest(tmp_path / "checkpoints") == before
    assert f"{last} is passed over: " in caplog.text


def test_a_card_of_an_edited_run_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    edit(tmp_path / "run" / "config.json", lambda record: record["provenance"].pop("hardware"))
    with pytest.raises(RunError, match=r"the record of the run in .* is damaged \(KeyError.*restore config\.json"):
        write_card(tmp_path / "run", "final")
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json cannot be read as JSON .*; resume the run to write it again"):
        write_card(tmp_path / "run", "final")


def test_totals_are_those_of_the_shards_after_a_kill_before_the_last_manifest(
    identity: Identity, tmp_path: Path
) -> None:
    texts(identity, tmp_path, num_prompts=3)
    early = (tmp_path / "manifest.json").read_text()
    whole = texts(identity, tmp_path, num_prompts=6).totals
    wanted = json.loads((tmp_path / "manifest.json").read_text())["totals"]
    (tmp_path / "manifest.json").write_text(early)
    again = texts(identity, tmp_path, num_prompts=6)
    assert (again.num_new_tokens, again.totals) == (0, whole)
    assert json.loads((tmp_path / "manifest.json").read_text())["totals"] == wanted


@pytest.mark.parametrize("name", ["tokens", "learn", "prompt_hashes"])
def test_a_changed_shard_is_refused_by_name(name: str, identity: Identity, tmp_path: Path) -> None:
    texts(identity, tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors[name][0] = not tensors[name][0] if name == "learn" else 3
    save_file(tensors, path, metadata=header)
    for read in (lambda: Dataset.open(tmp_path), lambda: texts(identity, tmp_path, num_prompts=9)):
        with pytest.raises(RunError, match=r"shard-00001\.safetensors was changed.*delete this shard and all later"):
            read()


HEADERS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda header: header.pop("counts"), "counts is missing"),
    (lambda header: header["counts"].update(num_texts="x"), "counts.num_texts is 'x'"),
    (lambda header: header["counts"].update(num_learnt_tokens=1), "holds other counts than its header says"),
    (lambda header: header.update(position=-1), "position is -1"),
    (lambda header: header.update(dropped={"length": -3}), "dropped.length is -3"),
    (lambda header: header.update(target_fingerprint="x"), "was written by another target"),
]


@pytest.mark.parametrize(("change", "says"), HEADERS)
def test_an_edited_header_of_a_shard_is_named(
    change: Callable[[Any], object], says: str, identity: Identity, tmp_path: Path
) -> None:
    texts(identity, tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["outrider"])
    change(header)
    save_file(load_file(path), path, metadata={"outrider": json.dumps(header)})
    with pytest.raises(RunError, match=rf"shard-00001\.safetensors.*{says}.*; delete this shard and all later ones"):
        texts(identity, tmp_path, num_prompts=9)


RECORDED = [
    ("{", r"shard-00000\.jsonl, line 2 cannot be read as JSON"),
    ("{}", r"line 2: messages is missing"),
    ('{"messages": [{"role": "user"}]}', r"line 2: messages\[0\]\.content is missing"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 2: messages is .* a message of the user"),
]


@pytest.mark.parametrize(("line", "says"), RECORDED)
def test_an_edited_conversation_is_named(line: str, says: str, identity: Identity, tmp_path: Path) -> None:
    texts(identity, tmp_path)
    path = tmp_path / "shard-00000.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:], ""]))
    with pytest.raises(RunError, match=rf"{says}.*; delete this shard and all later ones"):
        texts(identity, tmp_path, num_prompts=9)


MANIFESTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda manifest: manifest.pop("target"), "target is missing"),
    (lambda manifest: manifest["target"].pop("fingerprint"), "target.fingerprint is missing"),
    (lambda manifest: manifest.update(settings=3), "settings is 3"),
    (lambda manifest: manifest["settings"].update(heldout_fraction="x"), "settings.heldout_fraction is 'x'"),
]


@pytest.mark.parametrize(("change", "says"), MANIFESTS)
def test_an_edited_manifest_is_named(
    change: Callable[[Any], object], says: str, identity: Identity, tmp_path: Path
) -> None:
    texts(identity, tmp_path)
    edit(tmp_path / "manifest.json", change)
    for read in (lambda: Dataset.open(tmp_path), lambda: texts(identity, tmp_path, num_prompts=9)):
        with pytest.raises((RunError, ConfigError), match=rf"manifest\.json: {says}.*; write the data set again"):
            read()
