"""A `quantization_config` is read, or refused by name; damaged ones are one sentence."""

from copy import deepcopy
from typing import Any

import pytest
from transformers import LlamaConfig

from outrider.errors import CheckpointError
from outrider.models.quant_scheme import QuantScheme, quant_scheme
from outrider.models.spec import is_supported

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "actorder": None}
GROUP = {"weights": WEIGHTS, "input_activations": None, "output_activations": None, "targets": ["Linear"]}
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}}
INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (config | changes).items() if value != "absent"}


def ct(layout: str = "pack-quantized", *, weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    config = deepcopy(CT) | {"format": layout}
    group = config["config_groups"]["group_0"]
    group["weights"] |= weights or {}
    for key in ("input_activations", "output_activations"):
        if key in changes:
            group[key] = changes.pop(key)
    return config | changes


def scheme(section: Any) -> QuantScheme | str | None:
    return quant_scheme({"quantization_config": section})


READ = [
    (None, None),
    (AWQ, QuantScheme(method="awq", sizes=frozenset({(4, 128)}))),
    (changed(AWQ, version="GEMM", group_size=-1), QuantScheme(method="awq", sizes=frozenset({(4, None)}))),
    (GPTQ, QuantScheme(method="gptq", sizes=frozenset({(4, 128)}), zero_shift=1)),
    (
        changed(GPTQ, bits=8, desc_act=True),
        QuantScheme(method="gptq", sizes=frozenset({(8, 128)}), zero_shift=1, act_order=True),
    ),
    (changed(GPTQ, checkpoint_format="gptq_v2"), QuantScheme(method="gptq", sizes=frozenset({(4, 128)}))),
    (changed(GPTQ, dynamic={"+:.*": {"bits": 8}}), QuantScheme(method="gptq", sizes=frozenset(), zero_shift=1)),
    (ct(), QuantScheme(method="compressed-tensors", sizes=frozenset({(4, 128)}), is_symmetric=True)),
    (
        ct("int-quantized", weights={"num_bits": 8, "strategy": "channel", "group_size": None}, input_activations=INT8),
        QuantScheme(method="compressed-tensors", sizes=frozenset({(8, None)}), is_symmetric=True),
    ),
    (
        ct(weights={"symmetric": False, "actorder": "weight"}, sparsity_config={"format": "dense"}),
        QuantScheme(method="compressed-tensors", sizes=frozenset({(4, 128)})),
    ),
]


@pytest.mark.parametrize(("section", "wanted"), READ)
def test_what_is_read(section: Any, wanted: QuantScheme | None) -> None:
    assert scheme(section) == wanted
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=1)
    config.quantization_config = section
    assert is_supported(config) is None


FP8 = {"num_bits": 8, "type": "float"}
REFUSED = [
    ({"bits": 4}, "names no quant_method"),
    ({"quant_method": "fp8"}, "quantised by 'fp8', which is not read"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by 'bitsandbytes'"),
    ({"quant_method": "x" * 500}, "quantised by 'xxx"),
    (changed(AWQ, bits=3), "AWQ weights have 3 bits, not 4"),
    (changed(AWQ, version="gemv"), "the layout 'gemv', not GEMM"),
    (changed(AWQ, backend="llm-awq"), "layout of llm-awq"),
    (changed(AWQ, group_size=16), "AWQ groups have 16 features, not 32, 64 or 128"),
    (changed(GPTQ, bits=3), "GPTQ weights have 3 bits, not 4 or 8"),
    (changed(GPTQ, checkpoint_format="marlin"), "layout 'marlin'"),
    (changed(GPTQ, is_marlin_format=True), "layout 'marlin'"),
    (changed(GPTQ, group_size=1024), "GPTQ groups have 1024 features"),
    (changed(GPTQ, adapter={"name": "eora"}), "as adapter, which is not read"),
    (ct("float-quantized", weights=FP8), "format 'float-quantized', not pack-quantized or int-quantized"),
    (ct("marlin-24"), "format 'marlin-24'"),
    (ct(weights=FP8), "of type 'float' with 8 bits in pack-quantized"),
    (ct("int-quantized"), "of type 'int' with 4 bits in int-quantized"),
    (ct(weights={"num_bits": 3}), "with 3 bits"),
    (ct(weights={"actorder": "group"}), "act-order ('group')"),
    (ct(weights={"strategy": "tensor"}), "strategy 'tensor', not group or channel"),
    (ct(weights={"group_size": 16}), "groups have 16 features"),
    (ct(input_activations=INT8 | {"dynamic": False}), "activations are quantised statically"),
    (ct(input_activations=INT8 | FP8), "activations are of type 'float' with 8 bits"),
    (ct(output_activations=INT8), "output activations are quantised"),
    (ct(kv_cache_scheme={"num_bits": 8}), "has a kv_cache_scheme, which is not read"),
    (ct(transform_config={"config_groups": {"u": {}}}), "has a transform_config"),
    (ct(sparsity_config={"format": "sparse-24-bitmask"}), "sparse ('sparse-24-bitmask')"),
    (ct(config_groups={}), "config_groups are empty"),
]


@pytest.mark.parametrize(("section", "reason"), REFUSED)
def test_what_is_not_read_is_named(section: Any, reason: str) -> None:
    found = scheme(section)
    assert isinstance(found, str)
    assert reason in found
    assert len(found) < 250
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=1)
    config.quantization_config = section
    assert is_supported(config) == f"{found} (the original checkpoint runs with weights int8 or int4)"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], "quantization_config is .* but must be a JSON object"),
        ({"quant_method": 4}, r"quantization_config\.quant_method is 4 but must be a string"),
        (changed(AWQ, bits="4"), r"quantization_config\.bits is '4' but must be an integer"),
        (changed(GPTQ, bits="absent"), r"quantization_config\.bits is missing"),
        (changed(GPTQ, desc_act="no"), r"desc_act is 'no' but must be true or false"),
        (changed(CT, format="absent"), r"quantization_config\.format is missing"),
        (ct(config_groups=[GROUP]), r"config_groups is .* but must be a JSON object"),
        (ct(config_groups={"a": {"weights": None}}), r"config_groups\.a\.weights is null"),
        (ct(weights={"group_size": None}), r"weights\.group_size is null"),
        (ct(weights={"symmetric": "yes"}), r"symmetric is 'yes' but must be true or false"),
    ],
)
def test_damaged_sections_are_one_sentence(section: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        scheme(section)
    assert "\n" not in str(caught.value)
