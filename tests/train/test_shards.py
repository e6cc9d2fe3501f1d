"""Data on disk: what is written is read, damage is named, and a prompt never changes sides."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from outrider.data.directory import DataDirectory, Shard
from outrider.data.shards import Dataset, Text, prompt_hash, read_header, write_shard
from outrider.data.texts import count
from outrider.errors import ConfigError, RunError
from outrider.formats.store import fingerprint
from outrider.testing import tiny_target

TARGET = {"name": "some-target", "fingerprint": "0123456789abcdef"}
texts = st.builds(
    lambda pairs, number: Text(tuple(t for t, _ in pairs), tuple(f for _, f in pairs), number),
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=9),
    st.integers(0, 2**63 - 1),
)
batches = st.lists(st.lists(texts, max_size=5), min_size=1, max_size=3)


def text(prompt: str, length: int = 4) -> Text:
    return Text(tuple(range(length)), (False, *[True] * (length - 1)), prompt_hash(prompt))


def shard(members: list[Text]) -> Shard:
    records = [{"messages": []} for _ in members]
    return Shard(texts=members, records=records, position=len(members), dropped={"short": 1}, num_cut=0)


def write(directory: Path, shards: list[list[Text]], target: dict[str, str] = TARGET, fraction: float = 0.1) -> Path:
    manifest = {"target": target, "settings": {"heldout_fraction": fraction}, "provenance": {}}
    with DataDirectory(directory, manifest) as data:
        for members in shards:
            data.write(shard(members))
    return directory


@settings(deadline=None, max_examples=25)
@given(batches, batches)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, first: list[list[Text]], second: list[list[Text]]
) -> None:
    root = tmp_path_factory.mktemp("data")
    data = Dataset.open(write(root / "a", first), write(root / "b", second))
    wanted = [one for members in (*first, *second) for one in members]
    assert len(data) == len(wanted)
    for index, one in enumerate(wanted):
        found = data.example(index)
        assert found.tokens_T.tolist() == list(one.tokens)
        assert found.learn_T.tolist() == list(one.learn)
        assert (found.tokens_T.dtype, found.learn_T.dtype) == (torch.int64, torch.bool)
        assert data.num_tokens(index) == len(one.tokens)


@settings(deadline=None, max_examples=25)
@given(batches, st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_fraction_holds_out_more(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Text]], some: float, more: float
) -> None:
    some, more = sorted((some, more))
    data = Dataset.open(write(tmp_path_factory.mktemp("data") / "a", shards))
    few, many = data.split(some), data.split(more)
    assert len(few.train) + len(few.held_out) == len(data)
    assert set(few.held_out.places_N4[:, 3].tolist()) <= set(many.held_out.places_N4[:, 3].tolist())
    assert not set(few.held_out.places_N4[:, 3].tolist()) & set(few.train.places_N4[:, 3].tolist())


def test_the_split_does_not_move_when_data_is_added(tmp_path: Path) -> None:
    prompts = [f"prompt number {number}" for number in range(200)]
    write(tmp_path / "a", [[text(prompt) for prompt in prompts[:80]]])
    before = set(Dataset.open(tmp_path / "a").split(0.3).held_out.places_N4[:, 3].tolist())
    write(tmp_path / "a", [[text(prompt) for prompt in prompts[80:]]])
    write(tmp_path / "b", [[text(prompt, 7) for prompt in reversed(prompts)]])
    after = Dataset.open(tmp_path / "b", tmp_path / "a").split(0.3).held_out.places_N4[:, 3].tolist()
    assert before == set(after) & {prompt_hash(prompt) for prompt in prompts[:80]}
    assert all(after.count(number) == 2 for number in after)
    assert 30 <= len(set(after)) <= 90


def test_a_prompt_is_the_same_whatever_its_dress() -> None:
    assert prompt_hash("Why is  THE sky blue?") == prompt_hash("why is the sky blue")
    assert prompt_hash("why") != prompt_hash("how")
    assert prompt_hash("?!") != prompt_hash("!?")
    assert 0 <= prompt_hash("") < 2**63


def test_equal_texts_give_equal_bytes_and_one_identity(tmp_path: Path) -> None:
    write(tmp_path / "a", [[text("x"), text("y")]])
    write(tmp_path / "b", [[text("x"), text("y")]])
    write(tmp_path / "c", [[text("y"), text("x")]])
    name = "shard-00000.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b, c = (Dataset.open(tmp_path / letter) for letter in "abc")
    assert a.identity == b.identity != c.identity
    assert len({a.identity, a.split(0.5).train.identity, Dataset.open(tmp_path / "a", max_tokens=2).identity}) == 3


def test_texts_are_cut_and_left_out_where_nothing_is_learnt(tmp_path: Path) -> None:
    late = Text((1, 2, 3, 4), (False, False, False, True), 5)
    data = Dataset.open(write(tmp_path / "a", [[text("x", 6), late, text("y", 2)]]), max_tokens=3)
    assert [data.example(index).tokens_T.tolist() for index in range(len(data))] == [[0, 1, 2], [0, 1]]


def test_the_tokens_that_the_target_wrote_are_counted(tmp_path: Path) -> None:
    data = Dataset.open(write(tmp_path / "a", [[text("x", 4)], [text("y", 3)]]))
    assert count(data, 6).counts_V.tolist() == [0, 2, 2, 1, 0, 0]


def test_the_recorded_fraction_is_the_default(tmp_path: Path) -> None:
    members = [text(str(number)) for number in range(60)]
    write(tmp_path / "a", [members], fraction=0.25)
    write(tmp_path / "b", [members], fraction=0.5)
    data = Dataset.open(tmp_path / "a")
    assert len(data.split().held_out) == len(data.split(0.25).held_out)
    with pytest.raises(ConfigError, match="heldout_fraction=None"):
        Dataset.open(tmp_path / "a", tmp_path / "b").split()
    with pytest.raises(ConfigError, match="heldout_fraction=1"):
        data.split(1.0)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [[text("x")]]) / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"shard-00000\.safetensors is truncated or damaged"):
        Dataset.open(tmp_path / "a")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", [[text("x")], [text("y")]])
    (directory / "shard-00000.safetensors").unlink()
    with pytest.raises(RunError, match="lacks shard-00000 but holds shard-00001"):
        Dataset.open(directory)


def test_texts_of_another_target_are_refused(tmp_path: Path) -> None:
    target = tiny_target()
    own = {"name": "tiny-0", "fingerprint": fingerprint(target)}
    write(tmp_path / "own", [[text("x")]], target=own)
    write(tmp_path / "other", [[text("x")]])
    assert len(Dataset.open(tmp_path / "own", target=target)) == 1
    with pytest.raises(RunError, match="written by some-target"):
        Dataset.open(tmp_path / "other", target=target)
    with pytest.raises(RunError, match="written by some-target"):
        Dataset.open(tmp_path / "own", tmp_path / "other")
    (tmp_path / "own/shard-00000.safetensors").write_bytes((tmp_path / "other/shard-00000.safetensors").read_bytes())
    with pytest.raises(RunError, match="fingerprint 0123456789abcdef"):
        Dataset.open(tmp_path / "own")


def test_another_version_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", [[text("x")]])
    path = directory / "shard-00000.safetensors"
    save_file(load_file(path), path, metadata={"outrider": json.dumps({"schema": "outrider.texts/9"})})
    with pytest.raises(RunError, match=r"schema outrider\.texts/9 but this version reads outrider\.texts/1"):
        Dataset.open(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"schema": "outrider.texts/0"}))
    with pytest.raises(RunError, match=r"schema outrider\.texts/0"):
        Dataset.open(directory)


def test_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", [[text("x"), text("y")]])
    path = directory / "shard-00000.safetensors"
    header = read_header(path)
    tensors = load_file(path)
    tensors["offsets"] = torch.tensor([0, 9, 8])
    save_file(tensors, path, metadata={"outrider": json.dumps(header)})
    with pytest.raises(RunError, match="offsets do not fit"):
        Dataset.open(directory)


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no manifest\.json"):
        Dataset.open(tmp_path)
    with pytest.raises(RunError, match="no finished shard"):
        Dataset.open(write(tmp_path / "a", []))
    with pytest.raises(ConfigError, match="at least one directory"):
        Dataset.open()


def test_a_shard_without_texts_can_be_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.safetensors", [], {"target_fingerprint": "x"})
    assert read_header(tmp_path / "shard.safetensors")["target_fingerprint"] == "x"
