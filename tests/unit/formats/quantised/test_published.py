"""Checkpoints that are published quantised: every layout stands for the values of its formula."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_layouts import CASES, Case, Checkpoint, checkpoint
from torch import Tensor

from outrider.draft import Draft
from outrider.errors import CheckpointError, ConfigError
from outrider.formats.quantised import awq, compressed_tensors, gptq, layout, published, quantised_weights
from outrider.formats.quantised.parts import part
from outrider.formats.weights import StoredTensor, read_weights, settle_head
from outrider.ops.quantised import QuantisedMatrix, dequantised
from outrider.target import as_tensor
from outrider.targets.native import NativeTarget

UP = "model.layers.0.mlp.up_proj"


def stored(directory: Path) -> dict[str, Tensor | QuantisedMatrix]:
    found = quantised_weights(directory, "stored")
    assert found is not None
    return dict(found)


def values(found: Tensor | QuantisedMatrix, step: int) -> np.ndarray:
    assert isinstance(found, QuantisedMatrix)
    ranges = [(start, min(start + step, found.shape[0])) for start in range(0, found.shape[0], step)]
    return np.concatenate([dequantised(found.format, found.rows(*ends)) for ends in ranges])


def check(made: Checkpoint, directory: Path, step: int = 13) -> dict[str, Tensor | QuantisedMatrix]:
    found = stored(made.write(directory))
    assert list(found) == list(made.spec.weight_shapes())
    for name, shape in made.spec.weight_shapes().items():
        if name not in made.matrices:
            assert torch.equal(found[name], made.tensors[name])  # type: ignore[arg-type]
            continue
        matrix = found[name]
        assert isinstance(matrix, QuantisedMatrix)
        assert matrix.shape == shape
        # the products of these codes and scales are exact in fp32, unless the scale is
        exact = made.matrices[name].scales.dtype != torch.float32
        np.testing.assert_allclose(values(matrix, step), made.matrices[name].values, rtol=0 if exact else 1e-6)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_stands_for_its_values(case: Case, tmp_path: Path) -> None:
    found = check(checkpoint(case), tmp_path / "model")
    matrix = found[f"{UP}.weight"]
    assert isinstance(matrix, QuantisedMatrix)
    rows, format = matrix.rows(3, 11), matrix.format
    assert (format.bits, format.group) == (case.bits, 32)
    assert rows.codes_OF.dtype == np.uint8
    assert rows.scales_OG.shape == (8, 4)
    assert format.has_minima is not case.symmetric
    assert format.offset == (2 ** (case.bits - 1) if case.symmetric else 0)
    is_fp16 = case.symmetric and case.dtype == torch.float16
    assert format.scales == ("f16" if is_fp16 else "f32")
    assert rows.scales_OG.dtype == (np.float16 if is_fp16 else np.float32)
    assert (rows.minima_OG is None) is case.symmetric


@pytest.mark.parametrize("step", [1, 5, 8, 64, 1000])
@pytest.mark.parametrize("layout", ["awq", "gptq", "pack-quantized"])
def test_any_range_of_rows_can_be_read(layout: str, step: int, tmp_path: Path) -> None:
    check(checkpoint(Case(layout, 4, 64, False), seed=step), tmp_path / "model", step)


@pytest.mark.parametrize("layout", ["awq", "gptq", "pack-quantized"])
def test_a_head_may_be_quantised_too(layout: str, tmp_path: Path) -> None:
    made = checkpoint(Case(layout, 4, 64, True), with_head=True)
    assert "lm_head.weight" in made.matrices
    check(made, tmp_path / "model")


def test_a_module_that_was_left_out_stays_a_tensor(tmp_path: Path) -> None:
    made = checkpoint(Case("awq", 4, 64, False))
    for suffix in ("qweight", "qzeros", "scales"):
        del made.tensors[f"{UP}.{suffix}"]
    del made.matrices[f"{UP}.weight"]
    made.tensors[f"{UP}.weight"] = torch.randn(256, 128, dtype=torch.float16)
    check(made, tmp_path / "model")


def test_biases_of_zeros_that_gptq_adds_are_ignored_and_others_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 4, 64, True), family="qwen2", qkv_bias=True)
    made.tensors[f"{UP}.bias"] = torch.zeros(256, dtype=torch.float16)
    check(made, tmp_path / "model")
    made.tensors[f"{UP}.bias"][7] = 0.5
    with pytest.raises(CheckpointError, match=rf"holds tensor {UP}\.bias, which this model does not have"):
        stored(made.write(tmp_path / "model"))


def test_a_tied_head_is_absent_even_if_the_file_holds_a_copy(tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 4, 64, True), tie_word_embeddings=True)
    assert "lm_head.weight" not in check(made, tmp_path / "model")
    made.tensors["lm_head.weight"] = made.tensors["model.embed_tokens.weight"].clone()
    assert "lm_head.weight" not in check(made, tmp_path / "model")
    made.tensors["lm_head.weight"] *= 2
    found = stored(made.write(tmp_path / "model"))
    assert torch.equal(found["lm_head.weight"], made.tensors["lm_head.weight"])  # type: ignore[arg-type]


def test_dynamic_overrides_are_read_from_the_tensors(tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 8, 64, True))
    made.config["quantization_config"] |= {"bits": 4, "group_size": 128, "dynamic": {"+:.*": {"bits": 8}}}
    check(made, tmp_path / "model")
    del made.config["quantization_config"]["dynamic"]
    with pytest.raises(
        CheckpointError, match=r"has 8 bits and groups of 64, but config.json says 4 bits and groups of 128"
    ):
        stored(made.write(tmp_path / "model"))


def test_act_order_is_refused_and_its_flag_alone_is_not(tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 4, 64, True))
    made.config["quantization_config"]["desc_act"] = True
    check(made, tmp_path / "model")
    made.tensors[f"{UP}.g_idx"] = made.tensors[f"{UP}.g_idx"].flip(0)
    with pytest.raises(CheckpointError, match=rf"{UP}\.g_idx .* mixes the groups \(act-order\).*desc_act false"):
        stored(made.write(tmp_path / "model"))
    del made.tensors[f"{UP}.g_idx"]
    with pytest.raises(CheckpointError, match=rf"no tensor {UP}\.g_idx"):
        stored(made.write(tmp_path / "model"))


def test_zero_points_as_bytes_are_read_too(tmp_path: Path) -> None:
    made = checkpoint(Case("pack-quantized", 4, 64, False))
    for name, matrix in made.matrices.items():
        made.tensors[name.replace("weight", "weight_zero_point")] = torch.from_numpy((matrix.zeros - 8).astype(np.int8))
    found = check(made, tmp_path / "model")
    made.tensors[f"{UP}.weight_zero_point"][3, 1] = 9
    made.write(tmp_path / "model")
    matrix = found[f"{UP}.weight"]
    assert isinstance(matrix, QuantisedMatrix)
    with pytest.raises(CheckpointError, match="zero points outside -8 to 7"):
        matrix.rows(3, 4)


def test_a_zero_point_that_gptq_cannot_store_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 4, 64, False))
    made.tensors[f"{UP}.qzeros"][0, 0] = -1  # eight times 15, which stands for 16
    found = stored(made.write(tmp_path / "model"))[f"{UP}.weight"]
    assert isinstance(found, QuantisedMatrix)
    with pytest.raises(CheckpointError, match=r"zero point of 16, above 15.*; use a gptq_v2 checkpoint"):
        found.rows(0, 1)


def damaged(name: str) -> Any:
    return {
        "nan": (f"{UP}.scales", lambda t: t.index_fill(0, torch.tensor(1), float("nan")), "holds nan at"),
        "transposed": (f"{UP}.qweight", lambda t: t.T.contiguous(), "holds no 256 x 128 codes of 4 or 8 bits"),
        "short": (f"{UP}.qzeros", lambda t: t[:1].clone(), r"has shape \(1, 32\), expected \(2, 32\)"),
        "groups": (f"{UP}.scales", lambda t: t[:1].repeat(3, 1), "no groups of whole blocks of 32"),
        "dtype": (f"{UP}.qweight", lambda t: t.to(torch.int64), "is stored as I64, not as I32"),
        "axes": (f"{UP}.scales", lambda t: t.flatten(), "expected 2 axes"),
        "norm": ("model.norm.weight", lambda t: t.to(torch.float8_e4m3fn), "is stored as F8_E4M3"),
        "order": (f"{UP}.g_idx", lambda t: t[:5].clone(), r"has shape \(5,\), expected \(128,\)"),
    }[name]


@pytest.mark.parametrize("name", ["nan", "transposed", "short", "groups", "dtype", "axes", "norm", "order"])
def test_damaged_tensors_are_one_sentence(name: str, tmp_path: Path) -> None:
    made = checkpoint(Case("gptq", 4, 64, True))
    tensor, change, message = damaged(name)
    made.tensors[tensor] = change(made.tensors[tensor])
    with pytest.raises(CheckpointError, match=message) as caught:
        values(stored(made.write(tmp_path / "model"))[f"{UP}.weight"], 100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["gptq", "awq", "pack-quantized"])
def test_a_missing_tensor_is_named(layout: str, tmp_path: Path) -> None:
    made = checkpoint(Case(layout, 4, 64, False))
    for name in [name for name in made.tensors if name.startswith(UP) and not name.endswith("g_idx")]:
        kept = made.tensors.pop(name)
        with pytest.raises(CheckpointError, match=r"has no tensor|does not have"):
            stored(made.write(tmp_path / "model"))
        made.tensors[name] = kept


def test_a_stored_shape_that_disagrees_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("pack-quantized", 4, 64, True))
    made.tensors[f"{UP}.weight_shape"] = torch.tensor([256, 120])
    with pytest.raises(CheckpointError, match=r"is \[256, 120\], but this model has \[256, 128\] there"):
        stored(made.write(tmp_path / "model"))


def test_asymmetric_codes_need_zero_points(tmp_path: Path) -> None:
    made = checkpoint(Case("pack-quantized", 4, 64, False))
    made.tensors = {name: tensor for name, tensor in made.tensors.items() if "zero" not in name}
    with pytest.raises(CheckpointError, match=r"no tensor .*weight_zero_point"):
        stored(made.write(tmp_path / "model"))


def test_a_width_that_is_no_multiple_of_32_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("int-quantized", 8, None, True), intermediate_size=100)
    with pytest.raises(CheckpointError, match=r"has 100 features, which is no multiple of 32"):
        stored(made.write(tmp_path / "model"))


def test_a_scale_that_overflows_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("int-quantized", 8, None, True, torch.float32))
    made.tensors[f"{UP}.weight_scale"][5] = 1e37
    matrix = stored(made.write(tmp_path / "model"))[f"{UP}.weight"]
    assert isinstance(matrix, QuantisedMatrix)
    matrix.rows(0, 5)
    with pytest.raises(CheckpointError, match=r"a scale of magnitude 1e\+37, which overflows"):
        matrix.rows(5, 6)


def test_stored_is_none_for_floating_point_and_quantising_twice_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("awq", 4, 64, False))
    made.write(tmp_path / "model")
    for kind in ("int8", "int4"):
        with pytest.raises(ConfigError, match=f"weights='{kind}' .* is already quantised; leave that setting out"):
            quantised_weights(tmp_path / "model", kind)  # type: ignore[arg-type]
    del made.config["quantization_config"]
    made.write(tmp_path / "model")
    assert quantised_weights(tmp_path / "model", "stored") is None


def test_a_method_that_is_not_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    made = checkpoint(Case("awq", 4, 64, False))
    made.config["quantization_config"] = {"quant_method": "fp8"}
    with pytest.raises(
        CheckpointError, match=r"quantised by 'fp8', which is not read; use the original checkpoint with"
    ):
        quantised_weights(made.write(tmp_path / "model"), "stored")


def test_a_config_without_quantised_matrices_is_refused(tmp_path: Path) -> None:
    made = checkpoint(Case("awq", 4, 64, False))
    made.tensors = {name: torch.zeros(shape) for name, shape in made.spec.weight_shapes().items()}
    with pytest.raises(CheckpointError, match=r"\(AWQ\) but no quantised matrix; remove that section"):
        stored(made.write(tmp_path / "model"))


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_a_target_widens_what_it_cannot_run_as_stored(case: Case, tmp_path: Path) -> None:
    made = checkpoint(case, tie_word_embeddings=case.symmetric)
    directory = made.write(tmp_path / "model")
    target = NativeTarget.from_directory(directory, "it", torch.float64, "cpu", None)
    whole = made.tensors | {name: torch.from_numpy(matrix.values) for name, matrix in made.matrices.items()}
    wanted = NativeTarget.from_weights(made.spec, whole, "it", torch.float64)
    prompt, draft = [[3, 1, 4, 1, 5]], Draft.empty(1)
    logits_BMV = []
    for one in (target, wanted):
        session = one.open(one.plan(1, 16, 8))
        session.prefill([0], prompt)
        logits_BMV.append(as_tensor(session.forward([0], [9], draft).logits_BMV).clone())
    torch.testing.assert_close(*logits_BMV)


def test_quantised_draft_models_are_refused_where_only_whole_ones_are_read(tmp_path: Path) -> None:
    made = checkpoint(Case("awq", 4, 64, False))
    with pytest.raises(CheckpointError, match=r"holds quantised weights \(.*weight\), .*; use the original checkpoint"):
        settle_head(made.spec, read_weights(made.write(tmp_path / "model")))


@pytest.mark.parametrize("case", [case for case in CASES if case.group == 64], ids=str)
def test_opening_reads_only_what_is_small(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, read = checkpoint(case).write(tmp_path / "model"), []

    def noted(stored: StoredTensor, *where: Any, **how: Any) -> Tensor:
        read.append(stored.name)
        return part(stored, *where, **how)

    for module in (awq, compressed_tensors, gptq, layout, published):
        if "part" in vars(module):
            monkeypatch.setattr(module, "part", noted)
    found = quantised_weights(directory, "stored")
    assert found is not None
    assert {name.rpartition(".")[2] for name in read} <= {"g_idx", "weight_shape"}
    matrix = found[f"{UP}.weight"]
    assert isinstance(matrix, QuantisedMatrix)
    read.clear()
    matrix.rows(0, 2)
    assert read
    assert all(name.startswith(UP) for name in read)
