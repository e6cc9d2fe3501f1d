"""Features: what prefill gives, and the same bits from disk."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from toys import texts

from outrider.data.texts import ListedTexts
from outrider.errors import ConfigError, RunError
from outrider.targets.native import NativeTarget
from outrider.testing import tiny_target
from outrider.train import feature_store
from outrider.train.feature_store import FeatureStore
from outrider.train.features import FeatureReader, Live, Stored

FEATURE_LAYERS = (0, 1, 2)


def reader(
    target: NativeTarget, feature_layers: tuple[int, ...] = FEATURE_LAYERS, max_tokens: int = 24
) -> FeatureReader:
    return FeatureReader(target, feature_layers, max_tokens)


def filled(directory: Path, read: FeatureReader, data: ListedTexts) -> FeatureStore:
    store = FeatureStore(directory, read, data)
    store.begin()
    store.write(store.missing)
    return store


@pytest.fixture
def target() -> NativeTarget:
    return tiny_target(dtype=torch.float32)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 48 * 30 * 4)


def test_a_reader_gives_what_a_request_sees(target: NativeTarget) -> None:
    data = texts(20, seed=0)
    read = reader(target).read([example.tokens_T for example in data.examples])
    for example, features_TF in zip(data.examples, read, strict=True):
        session = target.open(target.plan(1, 64, tail=1), FEATURE_LAYERS)
        alone_TF = session.prefill([0], [example.tokens_T.tolist()])[0]
        assert alone_TF is not None
        assert torch.equal(alone_TF.float(), features_TF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_features_are_the_live_ones_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    target, data = tiny_target(dtype=dtype), texts(30, seed=0, longest=40)
    store = filled(tmp_path, reader(target), data)
    assert store.num_shards > 3
    stored, live = Stored(data, store, 24), Live(data, reader(target))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    for one, other in zip(stored.examples(order), live.examples(order), strict=True):
        assert one.features_TF is not None
        assert other.features_TF is not None
        assert one.features_TF.dtype == dtype
        assert len(one.tokens_T) == len(one.features_TF) <= 24
        assert torch.equal(one.features_TF, other.features_TF)
        assert torch.equal(one.tokens_T, other.tokens_T)


def test_an_interrupted_capture_goes_on(target: NativeTarget, tmp_path: Path) -> None:
    data, read = texts(30, seed=0), reader(target)
    whole = filled(tmp_path / "whole", read, data)
    half = FeatureStore(tmp_path / "half", read, data)
    half.begin()
    half.write(half.missing[:2])
    (tmp_path / "half" / ".features-00002.safetensors.part").write_bytes(b"torn")
    again = FeatureStore(tmp_path / "half", read, data)
    assert again.missing == whole_numbers(whole)[2:]
    again.write(again.missing)
    again.check()
    for shard in whole_numbers(whole):
        name = f"features-{shard:05d}.safetensors"
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def whole_numbers(store: FeatureStore) -> list[int]:
    return list(range(store.num_shards))


def test_without_feature_layers_nothing_is_read(target: NativeTarget) -> None:
    assert [one.features_TF for one in Live(texts(2, seed=0), reader(target, ())).examples([0, 1])] == [None, None]


def test_sizes_are_known_beforehand(target: NativeTarget, tmp_path: Path) -> None:
    data = texts(30, seed=0)
    store = filled(tmp_path, reader(target), data)
    tokens = sum(data.num_tokens(index) for index in range(30))
    assert store.num_bytes(whole_numbers(store)) == tokens * 48 * 4
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 0 < on_disk - tokens * 48 * 4 < 200 * store.num_shards


def test_features_of_something_else_are_refused(target: NativeTarget, tmp_path: Path) -> None:
    data = texts(10, seed=0)
    filled(tmp_path, reader(target), data)
    for read, other, key in (
        (reader(target, (0, 2)), data, "taps"),
        (reader(tiny_target(1, dtype=torch.float32)), data, "target_fingerprint"),
        (reader(tiny_target(dtype=torch.float64)), data, "target_dtype"),
        (reader(target), texts(10, seed=1), "texts"),
        (reader(target, max_tokens=8), data, "max_tokens"),
    ):
        with pytest.raises(RunError, match=f"holds features with {key}=.*--feature-dir"):
            FeatureStore(tmp_path, read, other)


def test_other_layers_under_the_same_embedding_are_noticed(target: NativeTarget, tmp_path: Path) -> None:
    data = texts(10, seed=0)
    filled(tmp_path, reader(target), data).check()
    target.decoder.layers[0], target.decoder.layers[1] = target.decoder.layers[1], target.decoder.layers[0]
    with pytest.raises(RunError, match="are not those of tiny-0 as it is now; delete"):
        FeatureStore(tmp_path, reader(target), data).check()


def test_a_full_disk_is_seen_before_anything_is_written(
    target: NativeTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000))
    with pytest.raises(RunError, match=r"the features need 0\.0 MB and 0\.0 MB are free in .*--features live"):
        filled(tmp_path / "new", reader(target), texts(10, seed=0))
    assert not list((tmp_path / "new").iterdir())


def test_a_damaged_shard_is_named(target: NativeTarget, tmp_path: Path) -> None:
    data = texts(10, seed=0)
    filled(tmp_path, reader(target), data)
    path = tmp_path / "features-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"features-00000.safetensors cannot be read .*; delete it"):
        FeatureStore(tmp_path, reader(target), data).check()


def test_a_shard_of_another_length_is_named(target: NativeTarget, tmp_path: Path) -> None:
    data = texts(10, seed=0)
    filled(tmp_path, reader(target), data)
    manifest = json.loads((tmp_path / "features.json").read_text())
    assert manifest["taps"] == list(FEATURE_LAYERS)
    shutil.copy(tmp_path / "features-00001.safetensors", tmp_path / "features-00000.safetensors")
    with pytest.raises(RunError, match=r"holds \[\d+, 48\], not \[\d+, 48\]"):
        FeatureStore(tmp_path, reader(target), data).check()


def test_rows_longer_than_the_target_reads_are_refused(target: NativeTarget) -> None:
    with pytest.raises(ConfigError, match="a row_length of 97 is longer than what tiny-0 reads; set it to 96"):
        reader(target, max_tokens=97)
