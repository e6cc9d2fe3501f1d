"""The decoder's operations: the compiled back end against the reference in fp64, and its bit-exactness.

Cases are drawn by hypothesis: odd sizes, head groupings, biases, head norms, cache dtypes, trees with gaps, windows.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.errors import ConfigError
from outrider.kernels.cpu.isa import has_bf16_dots
from outrider.kernels.torch_threads import num_threads
from outrider.ops.base import Activation, AttentionShape, HeadNorm, Ops, Packed, Rope
from outrider.ops.cpu import CpuOps
from outrider.ops.select import choose_ops
from outrider.ops.torch import TorchOps, stored
from outrider.placement import Placement

REFERENCE = TorchOps(torch.float64)
DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
CACHED = st.sampled_from([torch.bfloat16, torch.float32, torch.int8])
SIZES = st.integers(1, 90)
SEEDS = st.integers(0, 2**31)
EPS = 1e-5


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def eye(size: int) -> Packed:
    return REFERENCE.pack(torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_takes_the_compiled_back_end(dtype: torch.dtype) -> None:
    assert isinstance(choose_ops("cpu", dtype), CpuOps)
    assert choose_ops("cpu", dtype).activation_dtype == torch.float32


def test_fp64_takes_the_reference() -> None:
    assert isinstance(choose_ops("cpu", torch.float64), TorchOps)


def test_thread_count_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "3")
    assert num_threads() == 3
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "none")
    with pytest.raises(ConfigError, match="'none'"):
        num_threads()
    monkeypatch.delenv("OUTRIDER_NUM_THREADS")
    assert num_threads() == torch.get_num_threads()


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, dtype=DTYPES, rows=SIZES, features=SIZES, outputs=SIZES, bias=st.booleans(), norm=st.booleans())
def test_projections_match_fp64(
    seed: int, dtype: torch.dtype, rows: int, features: int, outputs: int, bias: bool, norm: bool
) -> None:
    ops = CpuOps(dtype)
    x = randn(seed, rows, features)
    weight = (randn(seed + 1, outputs, features) / features**0.5).to(dtype)
    up = (randn(seed + 2, outputs, features) / features**0.5).to(dtype)
    bias_O = randn(seed + 3, outputs) if bias else None
    norm_F = randn(seed + 4, features) if norm else None
    wide_norm = None if norm_F is None else norm_F.double()
    packed, reference = ops.pack(weight, bias_O), REFERENCE.pack(weight, bias_O)
    assert (packed.in_features, packed.out_features) == (features, outputs)

    # Where activations are rounded to bf16, each term may be wrong by 2^-8 of itself.
    rounding = 2.0**-8 if dtype == torch.bfloat16 and has_bf16_dots() else 0.0
    normed = x.double() if wide_norm is None else REFERENCE.norm_project(x.double(), wide_norm, EPS, eye(features))
    terms_RO, terms_up_RO = normed.abs() @ weight.double().abs().T, normed.abs() @ up.double().abs().T

    expected = REFERENCE.norm_project(x.double(), wide_norm, EPS, reference)
    wrong = (ops.norm_project(x, norm_F, EPS, packed).double() - expected).abs()
    assert (wrong <= rounding * terms_RO + 2e-5 * (1 + expected.abs())).all()

    residual = randn(seed + 5, rows, outputs)
    expected = residual.double()
    ops.project_add(x, packed, residual)
    REFERENCE.project_add(x.double(), reference, expected)
    wrong = (residual.double() - expected).abs()
    assert (wrong <= rounding * (x.double().abs() @ weight.double().abs().T) + 2e-5 * (1 + expected.abs())).all()

    activations: tuple[Activation, ...] = ("silu", "gelu_tanh")
    for activation in activations:
        expected = REFERENCE.gate_up(x.double(), wide_norm, EPS, REFERENCE.pack_gate_up(weight, up), activation)
        wrong = (ops.gate_up(x, norm_F, EPS, ops.pack_gate_up(weight, up), activation).double() - expected).abs()
        # The slopes of silu and GELU are at most 1.13.
        spread = rounding * (1.13 * terms_RO * (terms_up_RO + rounding * terms_up_RO) + terms_RO * terms_up_RO)
        assert (wrong <= spread + 5e-5 * (1 + expected.abs())).all()


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, rows=SIZES, features=SIZES, outputs=SIZES, threads=st.integers(1, 3), data=st.data())
def test_normed_additions_match_fp64_and_have_the_same_bits_in_any_call(
    seed: int, rows: int, features: int, outputs: int, threads: int, data: st.DataObject
) -> None:
    ops, alone = CpuOps(torch.float32, threads), CpuOps(torch.float32, 1)
    x, norm_O, residual = randn(seed, rows, features), randn(seed + 1, outputs), randn(seed + 2, rows, outputs)
    weight = randn(seed + 3, outputs, features) / features**0.5
    packed = ops.pack(weight)
    row = data.draw(st.integers(0, rows - 1))
    one = residual[row : row + 1].clone()
    projected = x.double() @ weight.double().T
    expected = residual + projected / (projected.square().mean(-1, keepdim=True) + EPS).sqrt() * norm_O
    ops.project_norm_add(x, packed, norm_O, EPS, residual)
    alone.project_norm_add(x[row : row + 1].clone(), packed, norm_O, EPS, one)
    assert torch.equal(residual[row : row + 1], one)
    ops.scale(residual, 25.5)
    # a row of small products is divided by a small number
    smallest = (projected.square().mean(-1, keepdim=True) + EPS).sqrt()
    assert ((residual / 25.5 - expected).abs() <= 2e-5 * (1 + expected.abs() + norm_O.abs() / smallest)).all()


def test_gelu_has_its_known_values() -> None:
    ops = CpuOps(torch.float32)
    packed = ops.pack_gate_up(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 1.0], [3.0, 2.0], [50.0, 1.0], [-50.0, 1.0]])
    out = ops.gate_up(x, None, 0.0, packed, "gelu_tanh")
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with 16 digits
    assert out.flatten().tolist() == pytest.approx([0.8411919906, -0.1588080094, 0.0, 5.9927252, 50.0, 0.0], abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, dtype=DTYPES, rows=SIZES, features=SIZES, outputs=SIZES, threads=st.integers(1, 3), data=st.data())
def test_a_row_has_the_same_bits_in_any_call(
    seed: int, dtype: torch.dtype, rows: int, features: int, outputs: int, threads: int, data: st.DataObject
) -> None:
    ops, alone = CpuOps(dtype, threads), CpuOps(dtype, 1)
    x, norm_F, bias_O = randn(seed, rows, features), randn(seed + 1, features), randn(seed + 2, outputs)
    packed = ops.pack(randn(seed + 3, outputs, features), bias_O)
    gated = ops.pack_gate_up(randn(seed + 4, outputs, features), randn(seed + 5, outputs, features))
    residual = randn(seed + 6, rows, outputs)
    row = data.draw(st.integers(0, rows - 1))
    one, one_residual = x[row : row + 1].clone(), residual[row : row + 1].clone()

    projected = ops.norm_project(x, norm_F, EPS, packed)
    assert torch.equal(projected[row : row + 1], alone.norm_project(one, norm_F, EPS, packed))
    assert torch.equal(ops.gate_up(x, norm_F, EPS, gated)[row : row + 1], alone.gate_up(one, norm_F, EPS, gated))
    ops.project_add(x, packed, residual)
    alone.project_add(one, packed, one_residual)
    assert torch.equal(residual[row : row + 1], one_residual)


def test_extreme_gates_reach_their_limits() -> None:
    ops = CpuOps(torch.float32)
    packed = ops.pack_gate_up(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    out = ops.gate_up(torch.tensor([[200.0], [-200.0], [0.0]]), None, 0.0, packed)
    assert out.flatten().tolist() == pytest.approx([40000.0, 0.0, 0.0], abs=1e-30)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention call: inputs, cache before it, and the norm of the heads or None."""

    qkv_RQ: Tensor
    shape: AttentionShape
    rope: Rope
    keys_CHSD: Tensor
    values_CHSD: Tensor
    placement: Placement
    head_norm: HeadNorm | None

    def run(self, ops: Ops) -> Tensor:
        return ops.attend(
            self.qkv_RQ, self.shape, self.rope, self.keys_CHSD, self.values_CHSD, self.placement, self.head_norm
        )


CAPACITY, SLOTS, TRASH = 224, 3, 223


def transposed(keys_CHSD: Tensor) -> Tensor:
    """The same keys as they lie in a cache for the CPU: positions next to each other."""
    return keys_CHSD.transpose(-1, -2).contiguous().transpose(-1, -2)


def rope_tables(D: int) -> Rope:
    angles = torch.outer(torch.arange(CAPACITY), 10000.0 ** -(torch.arange(0, D, 2) / D))
    return Rope(cos_PD=angles.cos(), sin_PD=angles.sin())


@st.composite
def cases(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype] = CACHED) -> Case:
    """Batches of trees with earlier tails, padding rows and gaps, or of causal chunks."""
    seed = draw(SEEDS)
    G, D = draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8, 16, 20, 34, 64]))
    H = G * draw(st.integers(1, 6))
    B, M, earlier = draw(st.integers(1, SLOTS)), draw(st.integers(1, 9)), draw(st.integers(0, 4))
    window = draw(st.none() | st.integers(1, 12) | st.integers(60, 120))
    causal = draw(st.booleans())
    dtype = draw(dtypes)
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(0, draw(st.sampled_from([30, 180])), (B,), generator=generator)
    T = M if causal else M + earlier
    tail_M = torch.arange(T - M, T)
    write_BM = lengths_B[:, None] + tail_M
    positions_BM = write_BM.clone()
    mask_BMT = None
    if not causal:
        mask_BMT = torch.rand(B, M, T, generator=generator) < 0.5
        mask_BMT &= torch.arange(T) <= tail_M[:, None]
        padding_BM = torch.rand(B, M, generator=generator) < 0.2
        mask_BMT &= ~padding_BM[:, :, None]
        mask_BMT &= ~torch.nn.functional.pad(padding_BM, (T - M, 0))[:, None]
        write_BM = write_BM.masked_fill(padding_BM, TRASH)
    norm = HeadNorm(query_D=randn(seed + 1, D), key_D=randn(seed + 2, D), eps=EPS) if draw(st.booleans()) else None
    return Case(
        qkv_RQ=randn(seed + 3, B * M, (H + 2 * G) * D),
        shape=AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5, sliding_window=window),
        rope=rope_tables(D),
        keys_CHSD=transposed(stored(randn(seed + 4, SLOTS, G, CAPACITY, D), dtype)),
        values_CHSD=stored(randn(seed + 5, SLOTS, G, CAPACITY, D), dtype),
        placement=Placement(
            slots_B=torch.randperm(SLOTS, generator=generator)[:B],
            lengths_B=lengths_B,
            positions_BM=positions_BM,
            write_BM=write_BM,
            mask_BMT=mask_BMT,
            limit=int(lengths_B.max()) + T,
        ),
        head_norm=norm,
    )


def wide(case: Case) -> Case:
    """The same case in fp64."""
    norm = case.head_norm
    return replace(
        case,
        qkv_RQ=case.qkv_RQ.double(),
        rope=Rope(cos_PD=case.rope.cos_PD.double(), sin_PD=case.rope.sin_PD.double()),
        keys_CHSD=case.keys_CHSD.double(),
        values_CHSD=case.values_CHSD.double(),
        head_norm=norm and HeadNorm(query_D=norm.query_D.double(), key_D=norm.key_D.double(), eps=norm.eps),
    )


@settings(deadline=None, max_examples=120)
@given(case=cases(DTYPES))
def test_attention_matches_fp64(case: Case) -> None:
    reference = wide(case)
    half = case.keys_CHSD.dtype == torch.bfloat16
    out, expected = case.run(CpuOps(torch.float32)), reference.run(REFERENCE)
    tolerance = 3e-2 if half else 2e-5  # a bf16 cache rounds the new keys and values
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    cached = 2**-8 if half else 1e-5
    real = slice(0, TRASH)
    torch.testing.assert_close(
        case.keys_CHSD[:, :, real].double(), reference.keys_CHSD[:, :, real], atol=1e-5, rtol=cached
    )
    torch.testing.assert_close(
        case.values_CHSD[:, :, real].double(), reference.values_CHSD[:, :, real], atol=1e-5, rtol=cached
    )


@settings(deadline=None, max_examples=40)
@given(case=cases())
def test_only_written_positions_of_the_cache_change(case: Case) -> None:
    before = case.keys_CHSD.clone()
    case.run(CpuOps(torch.float32))
    written = torch.zeros(SLOTS, CAPACITY, dtype=torch.bool)
    written[case.placement.slots_B[:, None], case.placement.write_BM] = True
    untouched = ~written[:, None, :, None].expand_as(before)
    assert torch.equal(case.keys_CHSD[untouched], before[untouched])


@settings(deadline=None, max_examples=40)
@given(case=cases(), threads=st.integers(1, 3))
@pytest.mark.parametrize("plain", [False, True], ids=["cpu", "torch"])
def test_storing_leaves_what_attending_leaves(plain: bool, case: Case, threads: int) -> None:
    ops = TorchOps(torch.float32) if plain else CpuOps(torch.float32, threads)
    stores = replace(case, keys_CHSD=transposed(case.keys_CHSD), values_CHSD=case.values_CHSD.clone())
    attends = replace(case, qkv_RQ=case.qkv_RQ.clone())
    kept = stores.keys_CHSD, stores.values_CHSD
    ops.store(stores.qkv_RQ, case.shape, case.rope, *kept, case.placement, case.head_norm)
    assert torch.equal(stores.qkv_RQ, attends.qkv_RQ)
    attends.run(ops)
    for ours, theirs in zip(kept, (attends.keys_CHSD, attends.values_CHSD), strict=True):
        assert torch.equal(ours[:, :, :TRASH], theirs[:, :, :TRASH])  # several rows of padding write to the last


@settings(deadline=None, max_examples=60)
@given(case=cases(), threads=st.integers(1, 3), data=st.data())
def test_a_row_attends_alike_whatever_else_is_in_the_call(case: Case, threads: int, data: st.DataObject) -> None:
    """One row alone, over the cache as the whole call left it, gives the same bits."""
    together = case.run(CpuOps(torch.float32, threads))
    place = case.placement
    B, M = place.positions_BM.shape
    b, m = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, M - 1))
    mask_BMT = place.mask_BMT
    if mask_BMT is None:
        mask_BMT = torch.ones(M, M, dtype=torch.bool).tril().expand(B, M, M)
        window = case.shape.sliding_window
        mask_BMT = mask_BMT if window is None else mask_BMT.triu(1 - window)
    alone = replace(
        case,
        qkv_RQ=case.qkv_RQ[b * M + m : b * M + m + 1].clone(),
        placement=Placement(
            slots_B=place.slots_B[b : b + 1],
            lengths_B=place.lengths_B[b : b + 1],
            positions_BM=place.positions_BM[b : b + 1, m : m + 1].clone(),
            write_BM=place.write_BM[b : b + 1, m : m + 1].clone(),
            mask_BMT=mask_BMT[b : b + 1, m : m + 1].clone(),
            limit=CAPACITY,
        ),
    )
    assert torch.equal(together[b * M + m : b * M + m + 1], alone.run(CpuOps(torch.float32, 1)))


@settings(deadline=None, max_examples=40)
@given(case=cases(), threads=st.integers(1, 3))
def test_rows_of_a_slot_may_be_given_as_slots_of_one_row(case: Case, threads: int) -> None:
    """So drafts of different lengths come; whichever rows share a task, each gives the same bits."""
    place = case.placement
    B, M = place.positions_BM.shape
    if place.mask_BMT is None:
        return
    one_by_one = replace(
        case,
        qkv_RQ=case.qkv_RQ.clone(),
        placement=Placement(
            slots_B=place.slots_B.repeat_interleave(M),
            lengths_B=place.lengths_B.repeat_interleave(M),
            positions_BM=place.positions_BM.reshape(B * M, 1),
            write_BM=place.write_BM.reshape(B * M, 1),
            mask_BMT=place.mask_BMT.reshape(B * M, 1, -1),
            limit=place.limit,
        ),
    )
    together = case.run(CpuOps(torch.float32, threads))
    assert torch.equal(together, one_by_one.run(CpuOps(torch.float32, threads)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_a_prefill_chunk_has_the_bits_of_decoding_row_by_row(dtype: torch.dtype) -> None:
    rows, H, G, D, slots = 224, 9, 3, 64, 2
    shape = AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5)
    angles = torch.outer(torch.arange(rows), 10000.0 ** -(torch.arange(0, D, 2) / D))
    rope = Rope(cos_PD=angles.cos(), sin_PD=angles.sin())
    ops = CpuOps(torch.float32 if dtype == torch.int8 else dtype)
    x, weight = randn(1, rows, 96), ops.pack(randn(2, (H + 2 * G) * D, 96) / 10)
    empty = stored(torch.zeros(slots, G, rows, D), dtype)
    caches = [(transposed(empty), empty.clone()) for _ in "ab"]

    def attend(first: int, last: int, cache: tuple[Tensor, Tensor]) -> Tensor:
        positions = torch.arange(first, last)[None]
        placement = Placement(
            slots_B=torch.tensor([1]),
            lengths_B=torch.tensor([first]),
            positions_BM=positions,
            write_BM=positions,
            mask_BMT=None,
            limit=last,
        )
        return ops.attend(ops.norm_project(x[first:last], None, 0.0, weight), shape, rope, *cache, placement)

    chunk = attend(0, rows, caches[0])
    steps = torch.cat([attend(i, i + 1, caches[1]) for i in range(rows)])
    assert torch.equal(chunk, steps)
    assert torch.equal(caches[0][0], caches[1][0])
    assert torch.equal(caches[0][1], caches[1][1])


@settings(deadline=None, max_examples=60)
@given(
    seed=SEEDS,
    dtype=CACHED,
    length=st.integers(0, 20),
    gaps=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    D=st.sampled_from([8, 20, 64]),
)
def test_a_branch_of_a_tree_has_the_bits_of_the_committed_sequence(
    seed: int, dtype: torch.dtype, length: int, gaps: list[int], D: int
) -> None:
    """The tokens of a branch, with siblings stored between them, against the same tokens committed one by one."""
    H, G = 4, 2
    shape = AttentionShape(num_heads=H, num_kv_heads=G, head_dim=D, scale=D**-0.5)
    rope, ops = rope_tables(D), CpuOps(torch.float32)
    prefix_keys = transposed(stored(randn(seed, 1, G, CAPACITY, D), dtype))
    prefix_values = stored(randn(seed + 1, 1, G, CAPACITY, D), dtype)
    branch = [sum(gaps[: i + 1]) - 1 for i in range(len(gaps))]
    T, depth = branch[-1] + 1, len(branch)
    qkv_RQ = randn(seed + 2, T, (H + 2 * G) * D)
    positions_T = torch.full((T,), length)
    mask_TT = torch.eye(T, dtype=torch.bool)
    for level, node in enumerate(branch):
        positions_T[node] = length + level
        mask_TT[node, branch[: level + 1]] = True
    tree = Placement(
        slots_B=torch.tensor([0]),
        lengths_B=torch.tensor([length]),
        positions_BM=positions_T[None],
        write_BM=length + torch.arange(T)[None],
        mask_BMT=mask_TT[None],
        limit=length + T,
    )
    in_tree = ops.attend(qkv_RQ, shape, rope, prefix_keys.clone(), prefix_values.clone(), tree)[branch]
    steps = []
    for level, node in enumerate(branch):
        at = torch.tensor([[length + level]])
        step = replace(
            tree, lengths_B=at[0], positions_BM=at, write_BM=at, mask_BMT=torch.ones(1, 1, 1, dtype=torch.bool)
        )
        steps.append(ops.attend(qkv_RQ[node : node + 1].clone(), shape, rope, prefix_keys, prefix_values, step))
    assert depth == len(steps)
    assert torch.equal(in_tree, torch.cat(steps))


@pytest.mark.parametrize("ops", [CpuOps(torch.float32), REFERENCE], ids=["cpu", "torch"])
def test_a_row_that_sees_nothing_gives_zeros(ops: CpuOps) -> None:
    dtype = ops.activation_dtype
    placement = Placement(
        slots_B=torch.tensor([0]),
        lengths_B=torch.tensor([0]),
        positions_BM=torch.tensor([[0, 0]]),
        write_BM=torch.tensor([[0, TRASH]]),
        mask_BMT=torch.tensor([[[True, False], [False, False]]]),
        limit=2,
    )
    tables = rope_tables(8)
    rope = Rope(cos_PD=tables.cos_PD.to(dtype), sin_PD=tables.sin_PD.to(dtype))
    values = torch.zeros(1, 1, CAPACITY, 8, dtype=dtype)
    keys = transposed(values)
    qkv_RQ = randn(0, 2, 4 * 8).to(dtype)
    shape = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=8, scale=1.0)
    out = ops.attend(qkv_RQ, shape, rope, keys, values, placement)
    assert torch.equal(out[1], torch.zeros(16, dtype=dtype))
    torch.testing.assert_close(out[0], qkv_RQ[0, 24:].repeat(2))
    assert torch.equal(values[0, 0, TRASH], qkv_RQ[1, 24:])


def test_an_index_outside_the_cache_is_refused() -> None:
    """Kernels trust indices, so that a wrong one must not reach them."""
    ops = CpuOps(torch.float32)
    placement = Placement(
        slots_B=torch.tensor([0]),
        lengths_B=torch.tensor([3]),
        positions_BM=torch.tensor([[3]]),
        write_BM=torch.tensor([[3]]),
        mask_BMT=None,
        limit=4,
    )
    shape = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0)
    values = torch.zeros(1, 1, CAPACITY, 8)
    keys = transposed(values)
    wrong = {
        "slots_B": torch.tensor([1]),
        "lengths_B": torch.tensor([4]),
        "positions_BM": torch.tensor([[CAPACITY]]),
        "write_BM": torch.tensor([[CAPACITY]]),
    }
    ops.attend(randn(0, 1, 24), shape, rope_tables(8), keys, values, placement)
    for name, tensor in wrong.items():
        with pytest.raises(AssertionError, match="not within"):
            ops.attend(randn(0, 1, 24), shape, rope_tables(8), keys, values, replace(placement, **{name: tensor}))
    with pytest.raises(AssertionError, match="not contiguous"):
        ops.project_add(torch.zeros(4, 3).T, ops.pack(torch.eye(4)), torch.zeros(3, 4))
    with pytest.raises(AssertionError, match="not contiguous"):
        ops.attend(randn(0, 1, 24), shape, rope_tables(8), keys.contiguous(), values, placement)
    with pytest.raises(AssertionError, match="not of a multiple"):
        ops.attend(randn(0, 1, 24), shape, rope_tables(8), keys[:, :, :200], values[:, :, :200], placement)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_embedded_tokens_are_rows_of_the_table(dtype: torch.dtype) -> None:
    table_VF = torch.randn(50, 37).to(dtype)
    tokens_R = torch.tensor([3, 49, 0, 3])
    for ops in (CpuOps(dtype), TorchOps(dtype)):
        assert torch.equal(ops.embed(table_VF, tokens_R), table_VF[tokens_R].to(ops.activation_dtype))
    for wrong in (-1, 50):
        with pytest.raises(AssertionError, match=r"not within 0\.\.49"):
            CpuOps(dtype).embed(table_VF, torch.tensor([3, wrong]))
