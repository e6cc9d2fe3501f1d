"""Writing checkpoints: equal bytes, readable files, nothing half written; and whose they are."""

import hashlib
import stat
from pathlib import Path

import pytest
import torch

from outrider.errors import CheckpointError
from outrider.formats.store import (
    belongs_to,
    check_target,
    fingerprint,
    fingerprint_of,
    fingerprints,
    provenance,
    write_checkpoint,
)
from outrider.models.weight_kinds import WeightsChoice
from outrider.targets import load_target
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model


def test_equal_content_gives_equal_bytes_that_others_can_read(tmp_path: Path) -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.ones(4)
    for name, tensors in (("a", {"x": first, "y": second}), ("b", {"y": second, "x": first})):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, tensors, {"k": 1, "a": [2]})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert stat.S_IMODE((tmp_path / "a" / "model.safetensors").stat().st_mode) == 0o644


def test_a_fingerprint_does_not_depend_on_the_dtype_that_holds_equal_values() -> None:
    assert fingerprint(tiny_target(dtype=torch.bfloat16)) != fingerprint(tiny_target(1, dtype=torch.bfloat16))
    assert fingerprint(tiny_target(dtype=torch.bfloat16)) == fingerprint(tiny_target(dtype=torch.bfloat16))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_fingerprint_is_of_the_weights_whatever_dtype_stores_or_holds_them(stored: torch.dtype) -> None:
    embedding_VE = torch.randn(1000, 32, dtype=torch.float64) * 1e-4
    embedding_VE[90, :4] = torch.tensor([0.0, -1e-9, 1e-9, -1.0])  # a half has no such small numbers
    found = {fingerprint_of(embedding_VE.to(stored).to(dtype)) for dtype in (torch.bfloat16, torch.half, torch.float)}
    assert found == {fingerprint_of(embedding_VE)}
    embedding_VE[975, 3] *= -1
    assert fingerprint_of(embedding_VE) not in found


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantising_while_loading_keeps_the_fingerprint(
    kind: WeightsChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    directory = write_tiny_model(tmp_path / "model", hidden_size=32, intermediate_size=64, head_dim=8)
    plain, quantised = (load_target(str(directory), weights=one, device="cpu") for one in ("bf16", kind))
    own = quantised.shared_weights().embedding_VE
    assert fingerprint_of(own) != fingerprint(plain)  # numbers that became 0 have lost their sign
    assert fingerprint(quantised) == fingerprint(plain)
    assert fingerprints(quantised) == fingerprints(plain)


def test_fingerprints_of_older_checkpoints_are_known() -> None:
    target = tiny_target(dtype=torch.float32)
    rows = target.shared_weights().embedding_VE[::97]
    for held in (rows, rows.to(torch.bfloat16)):
        old = hashlib.sha256(held.float().contiguous().numpy().tobytes()).hexdigest()[:16]
        assert belongs_to({"outrider": {"target_fingerprint": old}}, target)
        assert not belongs_to({"outrider": {"target_fingerprint": old}}, tiny_target(1, dtype=torch.float32))
    assert not belongs_to({"outrider": "x"}, target)
    assert not belongs_to({}, target)


def test_another_targets_checkpoint_is_refused() -> None:
    mine, other = tiny_target(0), tiny_target(1)
    check_target({"outrider": provenance(mine)}, mine, Path("head"))
    check_target({}, other, Path("head"))
    with pytest.raises(CheckpointError, match=r"head was trained for tiny-0, .* that of tiny-1"):
        check_target({"outrider": provenance(mine)}, other, Path("head"))
