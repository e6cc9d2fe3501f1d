"""Costs from sizes and data sheets, against figures computed by hand."""

from dataclasses import replace
from itertools import combinations, product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.env import data_directory
from outrider.errors import ConfigError
from outrider.models.spec import DecoderSpec
from outrider.planning.drafters import read_drafters
from outrider.planning.models import model_spec
from outrider.planning.roofline import Hardware, RooflineCosts, RooflineDraftCosts
from outrider.planning.shapes import DrafterSizes, target_pass
from outrider.records.presets import read_record, read_toml
from outrider.target import Mixture
from outrider.testing.tiny import tiny_experts, tiny_llama4, tiny_spec

SHEETS = sorted((data_directory("recipes") / "hardware").glob("*.toml"))
H100 = Hardware(name="H100", source="data sheet", memory_bytes=80e9, bytes_per_s=3.35e12, flops_per_s=989e12)
"""Its memory alone: no overhead, all of the bandwidth."""


@pytest.fixture(scope="module")
def qwen() -> DecoderSpec:
    return model_spec("qwen2.5-7b")


def traffic(spec: DecoderSpec, name: str, num_nodes: int, bytes_per_weight: float = 0.0) -> float:
    """A step in plain steps, where nothing but memory traffic costs."""
    target = RooflineCosts(hardware=H100, spec=spec)
    sizes = replace(read_drafters("published")[name], bytes_per_weight=bytes_per_weight, lookup_s=0.0)
    drafts = RooflineDraftCosts(target=target, sizes=sizes, context=0)
    forward_s = target.forward_s(1, 1 + num_nodes, 0)
    return (forward_s + drafts.propose_s(1, num_nodes, num_nodes)) / target.forward_s(1, 1, 0)


def test_the_target_by_hand(qwen: DecoderSpec) -> None:
    attention = 3584 * (3584 + 2 * 512) + 3584 * 3584
    weights = 28 * (attention + 3 * 3584 * 18944) + 152064 * 3584
    shape = target_pass(qwen)
    assert shape.num_read == shape.num_multiplied == weights == 7_070_285_824
    assert shape.kv_per_token == 2 * 28 * 4 * 128
    assert shape.attention_flops == 4 * 28 * 28 * 128


def test_a_head_by_hand(qwen: DecoderSpec) -> None:
    """Only the first layer of an EAGLE-3 head reads twice the width."""
    head = read_drafters("published")["eagle3"]
    first = 2 * 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944
    further = 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944
    for num_layers in (1, 4):
        shape = replace(head, num_layers=num_layers).each_pass(qwen)
        assert shape.num_read == shape.num_multiplied == first + (num_layers - 1) * further + 32000 * 3584
        assert shape.kv_per_token == 2 * num_layers * 4 * 128


def test_plain_decoding_at_three_quarters_of_the_bandwidth(qwen: DecoderSpec) -> None:
    """177 tokens/s, as is commonly reckoned for a 7B model in bf16 on an H100."""
    target = RooflineCosts(hardware=replace(H100, bandwidth_share=0.75), spec=qwen)
    assert 1 / target.forward_s(1, 1, 0) == pytest.approx(177, abs=1)


@pytest.mark.parametrize(
    ("name", "num_nodes", "bytes_per_weight", "published"),
    [
        ("eagle3", 2, 0.0, 1.13),
        ("medusa", 5, 0.0, 1.10),
        # Published ratios of the 0.5B model fit weights of four bytes; in bf16 they are 1.07 and 1.14.
        ("pard", 3, 4.0, 1.15),
        ("draft_model", 2, 4.0, 1.28),
        ("ngram", 8, 0.0, 1.0),
        ("suffix", 8, 0.0, 1.0),
    ],
)
def test_published_ratios_of_memory_traffic(
    qwen: DecoderSpec, name: str, num_nodes: int, bytes_per_weight: float, published: float
) -> None:
    assert traffic(qwen, name, num_nodes, bytes_per_weight) == pytest.approx(published, rel=0.025)


def test_drafters_by_hand(qwen: DecoderSpec) -> None:
    plain = target_pass(qwen).num_read
    layer = 2 * 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944
    eagle = 3 * 3584**2 + 2 * (layer + 32000 * 3584)
    assert traffic(qwen, "eagle3", 2) == pytest.approx(1 + eagle / plain)
    module = 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584**2
    assert traffic(qwen, "mtp", 3) == pytest.approx(1 + 3 * (module + 152064 * 3584) / plain)
    assert traffic(qwen, "medusa", 5) == pytest.approx(1 + (5 * 3584**2 + 152064 * 3584) / plain)
    small = 24 * (896 * (896 + 2 * 128) + 896 * 896 + 3 * 896 * 4864) + 152064 * 896
    assert traffic(qwen, "draft_model", 4) == pytest.approx(1 + 4 * small / plain)
    assert traffic(qwen, "pard", 4) == pytest.approx(1 + small / plain)


def test_heads_multiply_more_than_they_read() -> None:
    spec = tiny_spec()
    heads = DrafterSizes(passes="one", rows="one", num_layers=0, num_heads_out=3).each_pass(spec)
    assert heads.num_read == 3 * 16 * 16 + 31 * 16
    assert heads.num_multiplied == 3 * 16 * 16 + 3 * 31 * 16


def test_fewer_columns_than_a_published_head_has() -> None:
    sizes = DrafterSizes(passes="depth", num_layers=0, head_columns=32000)
    assert sizes.each_pass(tiny_spec()).num_read == 31 * 16


def test_a_large_batch_is_bound_by_arithmetic(qwen: DecoderSpec) -> None:
    target = RooflineCosts(hardware=H100, spec=qwen)
    rows, cached_bytes = 4000, 4000 * 10 * 2 * 28 * 512 * 2
    linear_s = rows * 2 * target_pass(qwen).num_read / 989e12
    assert target.forward_s(rows, rows, 10) == pytest.approx(linear_s + cached_bytes / 3.35e12)
    attention_s = 100 * rows * 10 * 4 * 28 * 3584 / 989e12
    assert target.forward_s(rows, 100 * rows, 10) == pytest.approx(100 * linear_s + attention_s)


def test_overheads_are_added_by_pass_and_layer() -> None:
    slow = replace(H100, launch_s=1.0, layer_s=0.25, host_s=3.0, slot_s=0.5)
    target = RooflineCosts(hardware=slow, spec=tiny_spec())
    assert target.forward_s(1, 1, 0) == pytest.approx(1.5)
    assert target.rest_s(4) == 5.0
    drafts = RooflineDraftCosts(target=target, sizes=DrafterSizes(passes="depth", fused_inputs=3))
    assert drafts.propose_s(1, 4, 4) == pytest.approx(1.0 + 4 * 1.25)
    assert drafts.propose_s(1, 0, 0) == 0
    lookup = RooflineDraftCosts(target=target, sizes=DrafterSizes(passes="none", lookup_s=0.1))
    assert lookup.propose_s(3, 9, 3) == pytest.approx(0.3)


def test_quantised_weights_are_multiplied_as_integers(qwen: DecoderSpec) -> None:
    machine = replace(H100, int8_ops_per_s=4 * 989e12)
    plain = RooflineCosts(hardware=machine, spec=qwen, bytes_per_weight=0.5)
    integer = replace(plain, is_integer=True)
    rows, weights = 20_000, target_pass(qwen).num_read
    assert plain.forward_s(1, rows, 0) == pytest.approx(rows * 2 * weights / 989e12)
    assert integer.forward_s(1, rows, 0) == pytest.approx(rows * 2 * weights / (4 * 989e12))
    assert integer.forward_s(1, 1, 0) == plain.forward_s(1, 1, 0) == pytest.approx(weights / 2 / 3.35e12)
    assert replace(integer, hardware=H100).forward_s(1, rows, 0) == plain.forward_s(1, rows, 0)
    # attention stays in floating point
    extra = integer.forward_s(1, rows, 10_000) - integer.forward_s(1, rows, 0)
    assert extra == pytest.approx(rows * 10_000 * 4 * 28 * 3584 / 989e12)


def test_the_batch_that_fits(qwen: DecoderSpec) -> None:
    target = RooflineCosts(hardware=H100, spec=qwen)
    assert target.largest_batch(1000) == int((72e9 - 2 * 7_070_285_824) / (1000 * 2 * 57_344 / 2))
    assert RooflineCosts(hardware=replace(H100, memory_bytes=15e9), spec=qwen).largest_batch(1000) == 0


def test_judging_reads_the_logits() -> None:
    target = RooflineCosts(hardware=replace(H100, bytes_per_s=1.0), spec=tiny_spec())
    assert target.accept_s(1, 2, greedy=True) == 2 * 4 * 2 * 31
    assert target.accept_s(1, 2, greedy=False) == 3 * target.accept_s(1, 2, greedy=True)


def test_quantized_weights_leave_the_cache_as_it_is() -> None:
    spec = tiny_spec()
    wide, narrow = (RooflineCosts(hardware=H100, spec=spec, bytes_per_weight=width) for width in (2.0, 0.5))
    cached = [cost.forward_s(1, 1, 1000) - cost.forward_s(1, 1, 0) for cost in (wide, narrow)]
    assert cached[0] == pytest.approx(cached[1])
    assert narrow.forward_s(1, 1, 0) == pytest.approx(wide.forward_s(1, 1, 0) / 4)


def test_keys_and_values_in_int8_by_hand(qwen: DecoderSpec) -> None:
    """Of 128 numbers of a head, 128 codes and the 4 bytes of a scale, where bf16 has 256 bytes."""
    plain, codes = (RooflineCosts(hardware=H100, spec=qwen, kv_dtype=kind) for kind in ("auto", "int8"))
    heads = 2 * 28 * 4  # keys and values, layers, heads
    for cost, head_bytes in ((plain, 256), (codes, 132)):
        cache_s = cost.forward_s(1, 1, 10_000) - cost.forward_s(1, 1, 0)
        assert cache_s == pytest.approx(10_000 * heads * head_bytes / 3.35e12)
        left = 0.9 * 80e9 - 2 * target_pass(qwen).num_held
        assert cost.largest_batch(10_000) == int(left / (10_000 * heads * head_bytes))
    sizes = read_drafters("published")["eagle3"]
    drafts = [RooflineDraftCosts(target=one, sizes=sizes, context=10_000).propose_s(1, 2, 2) for one in (plain, codes)]
    assert drafts[0] == drafts[1]


@settings(deadline=None)
@given(
    st.floats(1e9, 1e13), st.floats(1, 10), st.floats(1e10, 1e15), st.integers(1, 64), st.integers(1, 16),
    st.floats(0, 4096),
)  # fmt: skip
def test_a_faster_machine_is_never_slower(
    bandwidth: float, factor: float, flops: float, slots: int, rows: int, context: float
) -> None:
    def cost(bytes_per_s: float, flops_per_s: float) -> RooflineCosts:
        hardware = replace(H100, bytes_per_s=bytes_per_s, flops_per_s=flops_per_s, launch_s=1e-5)
        return RooflineCosts(hardware=hardware, spec=tiny_spec())

    base = cost(bandwidth, flops)
    for better in (cost(bandwidth * factor, flops), cost(bandwidth, flops * factor)):
        assert better.forward_s(slots, slots * rows, context) <= base.forward_s(slots, slots * rows, context)
        assert better.accept_s(slots, slots * rows, True) <= base.accept_s(slots, slots * rows, True)
        for sizes in read_drafters("published").values():
            fast, slow = (RooflineDraftCosts(target=target, sizes=sizes) for target in (better, base))
            assert fast.propose_s(slots, slots * rows, rows) <= slow.propose_s(slots, slots * rows, rows)
    assert base.forward_s(slots, slots * (rows + 1), context) >= base.forward_s(slots, slots * rows, context)
    assert base.forward_s(slots, slots * rows, context + 1) >= base.forward_s(slots, slots * rows, context)


@pytest.mark.parametrize("file", SHEETS, ids=lambda file: file.stem)
def test_every_sheet_can_be_read(file: object) -> None:
    hardware = read_record(Hardware, read_toml(file), "it")  # type: ignore[arg-type]
    assert "data sheet" in hardware.source or "measured" in hardware.source
    assert 0.5 <= hardware.bandwidth_share < 1


def test_there_are_sheets() -> None:
    assert {"h100", "a100", "l4", "cpu-2core"} <= {file.stem for file in SHEETS}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes_per_s": 0.0}, "bytes_per_s=0 must be positive"),
        ({"bandwidth_share": 1.5}, "bandwidth_share=1.5 must be at most 1"),
        ({"launch_s": -1.0}, "launch_s=-1 must not be negative"),
        ({"flops_per_s": float("nan")}, "flops_per_s=nan must be positive"),
    ],
)
def test_impossible_machines_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(H100, **changes)  # type: ignore[arg-type]


def test_a_shared_expert_is_read_once_and_multiplied_by_every_row() -> None:
    """A plain MLP of 3 * 16 * 24 weights beside 5 experts and a shared one of 3 * 16 * 8 weights each, 1 for a row."""
    shape, plain = target_pass(tiny_llama4()), target_pass(tiny_spec(num_layers=1))
    attention = 2 * (16 * 4 * (4 + 2 * 2) + 16 * 4 * 4)
    router, head = 5 * 16, 31 * 16
    assert plain.num_read == attention // 2 + 3 * 16 * 24 + head
    assert shape.num_read == attention + 3 * 16 * 24 + 3 * 16 * 8 + router + head
    assert shape.num_multiplied == shape.num_read + 3 * 16 * 8
    assert shape.mixture == Mixture(size=5 * 3 * 16 * 8, num_experts=5, num_chosen=1)


def test_rows_read_the_experts_that_any_of_them_chose() -> None:
    """Two layers of 6 experts of 3 * 16 * 8 weights, 2 for a row: the expectation over all choices, written out."""
    spec = tiny_experts()
    shape, one = target_pass(spec), 2 * 3 * 16 * 8
    pairs = list(combinations(range(6), 2))
    for rows in (1, 2, 3):
        counts = [len(set().union(*chosen)) for chosen in product(pairs, repeat=rows)]
        mean = sum(counts) / len(counts)
        assert shape.weights_read(rows) == pytest.approx(shape.num_read + one * mean)
    names = spec.weight_shapes()
    matrices = {name: prod(size) for name, size in names.items() if len(size) == 2 and "embed_tokens" not in name}
    assert shape.num_held == sum(matrices.values())
    assert shape.num_multiplied == shape.num_read + 2 * one
    slow = RooflineCosts(hardware=H100, spec=spec)
    extra = slow.forward_s(1, 3, 0) - slow.forward_s(1, 1, 0)
    assert extra == pytest.approx(2 * (shape.weights_read(3) - shape.weights_read(1)) / 3.35e12)
    head = RooflineDraftCosts(target=slow, sizes=DrafterSizes(passes="depth"))
    dense = RooflineDraftCosts(target=replace(slow, spec=spec.dense()), sizes=DrafterSizes(passes="depth"))
    assert head.propose_s(1, 2, 2) == dense.propose_s(1, 2, 2)
