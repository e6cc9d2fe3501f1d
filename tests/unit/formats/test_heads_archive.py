"""The archive of heads: what comes out is what went in, and nothing else comes out."""

import hashlib
import json
import random
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from outrider.errors import CheckpointError, OutriderError, RunError
from outrider.formats.heads_archive import MANIFEST, SCHEMA, fetch_heads, install_heads, write_archive

HEADS = ("smollm2-135m/eagle3", "smollm2-135m/medusa")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for name in HEADS:
        head = tmp_path / "checkpoints" / name
        head.mkdir(parents=True)
        (head / "config.json").write_text(json.dumps({"kind": name}))
        (head / "model.safetensors").write_bytes(random.Random(name).randbytes(5000))
    return tmp_path / "checkpoints"


@pytest.fixture
def archive(checkpoints: Path, tmp_path: Path) -> Path:
    write_archive(checkpoints, tmp_path / "heads.zip")
    return tmp_path / "heads.zip"


def files_of(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def test_the_heads_come_out_as_they_went_in(archive: Path, checkpoints: Path, cache: Path) -> None:
    assert install_heads(archive) == list(HEADS)
    assert files_of(cache / "heads") == files_of(checkpoints)


def test_the_same_heads_give_the_same_bytes(archive: Path, checkpoints: Path, tmp_path: Path) -> None:
    write_archive(checkpoints, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_a_head_that_is_there_is_replaced_and_others_stay(archive: Path, checkpoints: Path, cache: Path) -> None:
    for name in ("smollm2-135m/eagle3", "another/mtp"):
        (cache / "heads" / name).mkdir(parents=True)
        (cache / "heads" / name / "stale.json").write_text("old")
    install_heads(archive)
    install_heads(archive)
    assert files_of(cache / "heads") == files_of(checkpoints) | {"another/mtp/stale.json": b"old"}
    assert [path.name for path in (cache / "heads").iterdir() if path.name.startswith(".heads-")] == []


def written(
    archive: Path, files: dict[str, bytes], change: Callable[[dict[str, Any]], Any] = lambda manifest: None
) -> None:
    """An archive of any files whose manifest lists them rightly, before `change`."""
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    manifest: dict[str, Any] = {"schema": SCHEMA, "files": listed}
    change(manifest)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(MANIFEST, json.dumps(manifest))
        for name, data in files.items():
            zipped.writestr(name, data)


@pytest.mark.parametrize(
    "name",
    [
        "../outside/x/config.json",
        "a/../../config.json",
        "a/../config.json",
        "/tmp/a/config.json",
        "a/b/c/config.json",
        "a/config.json",
        "a/.hidden/config.json",
        "a\\b/c/config.json",
        "a/b/\x1b[31m",
        "C:/a/config.json",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    written(tmp_path / "bad.zip", {"a/b/config.json": b"{}", name: b"{}"})
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"bad\.zip.*not used"):
        install_heads(tmp_path / "bad.zip")
    assert files_of(tmp_path) == before | {"cache/heads/.lock": b""}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(schema="outrider.heads/9"), r"schema 'outrider.heads/9'"),
        (lambda manifest: manifest.pop("files"), r"no readable manifest.json \(KeyError"),
        (lambda manifest: manifest.update(files=[]), "no readable manifest|not used"),
        (lambda manifest: manifest.update(files={}), "not used"),
        (lambda manifest: manifest["files"].update({"a/c/config.json": {"bytes": 2, "sha256": ""}}), "a/c/config.json"),
        (lambda manifest: manifest["files"]["a/b/config.json"].update(bytes=1), "a/b/config.json is damaged"),
        (lambda manifest: manifest["files"]["a/b/config.json"].update(bytes="2"), "not used"),
        (lambda manifest: manifest["files"]["a/b/config.json"].update(sha256="00"), "a/b/config.json is damaged"),
        (lambda manifest: manifest["files"]["a/b/config.json"].update(bytes=10**13), "more than 2,000,000,000"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path, cache: Path
) -> None:
    written(tmp_path / "bad.zip", {"a/b/config.json": b"{}"}, change)
    with pytest.raises(CheckpointError, match=said):
        install_heads(tmp_path / "bad.zip")
    assert files_of(cache / "heads") == {}


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path, cache: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["files"]["a/b/config.json"]["bytes"] = 2

    written(tmp_path / "bomb.zip", {"a/b/config.json": bytes(64 << 20)}, lie)
    with pytest.raises(CheckpointError, match="damaged"):
        install_heads(tmp_path / "bomb.zip")


def test_damaged_archives_replace_nothing(archive: Path, checkpoints: Path, tmp_path: Path, cache: Path) -> None:
    install_heads(archive)
    whole, sound = archive.read_bytes(), files_of(cache / "heads")
    draw = random.Random(0)
    refused = 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 3:
            for _ in range(draw.randint(1, 8)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        else:
            del damaged[draw.randrange(len(damaged)) :]
        (tmp_path / "damaged.zip").write_bytes(damaged)
        try:
            install_heads(tmp_path / "damaged.zip")
        except OutriderError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        assert files_of(cache / "heads") == sound
    assert refused > 200


def test_what_is_no_archive_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.zip is missing; give the \.zip"):
        install_heads(tmp_path / "nowhere.zip")
    with pytest.raises(CheckpointError, match="is a directory; give the"):
        install_heads(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no TARGET/KIND/config\.json"):
        write_archive(tmp_path, tmp_path / "new.zip")
    (tmp_path / "t/k").mkdir(parents=True)
    (tmp_path / "t/k/config.json").write_text("{}")
    (tmp_path / "t/k/more").mkdir()
    with pytest.raises(CheckpointError, match="more cannot be archived"):
        write_archive(tmp_path, tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def test_a_cache_that_cannot_be_written_is_named(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="could not be written to"):
        install_heads(archive)


def test_an_address_is_downloaded(archive: Path, checkpoints: Path, cache: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/heads.zip"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(archive.read_bytes() if found else b"")

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert fetch_heads(f"{address}/heads.zip") == list(HEADS)
        with pytest.raises(RunError, match=r"other\.zip could not be downloaded .*404"):
            fetch_heads(f"{address}/other.zip")
        server.shutdown()
    with pytest.raises(RunError, match="could not be downloaded"):
        fetch_heads(f"{address}/heads.zip")
    assert files_of(cache / "heads") == files_of(checkpoints)
    assert [path.name for path in cache.iterdir()] == ["heads"]
