"""The native target as an object: what it says of itself, what it plans, and rows that do not depend on their company.

That its logits are right is shown in `tests/unit/models/test_decoder.py`.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.draft import Draft, Tree
from outrider.errors import CheckpointError
from outrider.models.spec import DecoderSpec
from outrider.target import Logits
from outrider.targets import prefill
from outrider.targets.native import NativeSession, NativeTarget
from outrider.testing import tiny_spec, tiny_target, tiny_weights

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def test_spec_comes_from_the_config() -> None:
    target = tiny_target(3, eos_ids=(7, 30))
    spec = target.spec
    assert (spec.name, spec.source, target.tokenizer) == ("tiny-3", None, None)
    assert (spec.vocab_size, spec.hidden_size, spec.num_layers, spec.max_positions) == (31, 16, 2, 96)
    assert spec.eos_ids == (7, 30)
    assert (spec.dtype, spec.device) == (torch.float64, torch.device("cpu"))


def num_weights(spec: DecoderSpec) -> int:
    return sum(torch.Size(shape).numel() for shape in spec.weight_shapes().values())


def test_weight_bytes_count_the_head_also_when_tied() -> None:
    """The head is packed apart from the embedding, so a tied one takes its memory twice."""
    loose, tied = tiny_spec(), tiny_spec(tie_word_embeddings=True)
    norms = (2 * 2 + 1) * 16
    assert tiny_target(spec=loose).spec.weight_bytes == 8 * (num_weights(loose) - norms)
    assert tiny_target(spec=tied).spec.weight_bytes == tiny_target(spec=loose).spec.weight_bytes


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float64, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, False)]
)
def test_rows_are_called_exact_on_the_compiled_back_end_only(dtype: torch.dtype, exact: bool) -> None:
    assert tiny_target(dtype=dtype).spec.batch_invariant is exact


def test_plan_has_the_sizes_of_the_cache() -> None:
    plan = tiny_target(dtype=torch.bfloat16).plan(3, 20, 5)
    assert plan.bytes_per_token == 2 * 2 * 2 * 4 * 2  # keys and values, layers, heads, head size, bytes
    assert (plan.num_slots, plan.num_positions) == (3, 26)
    session = tiny_target(dtype=torch.bfloat16).open(plan)
    assert session.cache.keys_LCHSD.nbytes + session.cache.values_LCHSD.nbytes == plan.num_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keys_and_values_in_int8_have_a_byte_a_number_and_a_scale_a_head(dtype: torch.dtype) -> None:
    plain = tiny_target(dtype=dtype)
    target = plain.with_kv_dtype("int8")
    plan = target.plan(3, 20, 5)
    assert plan.bytes_per_token == 2 * 2 * 2 * (4 + 4)  # keys and values, layers, heads, head size and scale
    session = target.open(plan, feature_layers=(1,))
    assert session.cache.keys_LCHSD.nbytes + session.cache.values_LCHSD.nbytes == plan.num_bytes
    (features_TF,) = session.prefill([0], [[1, 2, 3]])
    assert features_TF is not None
    assert features_TF.dtype == dtype
    assert (target.spec.kv_dtype, plain.spec.kv_dtype) == ("int8", "auto")
    assert target.decoder is plain.decoder


def test_mlp_biases_are_refused() -> None:
    spec = tiny_spec(mlp_bias=True)
    with pytest.raises(CheckpointError, match="mine has biases in its MLP"):
        NativeTarget.from_weights(spec, tiny_weights(spec, 0), "mine", torch.float64)


def test_a_prompt_of_one_token_leaves_the_cache_empty() -> None:
    target = tiny_target()
    session = target.open(target.plan(2, 8, 1), feature_layers=(0, 2))
    (features_TF,) = session.prefill([1], [[]])
    assert features_TF is not None
    assert features_TF.shape == (0, 32)
    assert session.cache.lengths == [0, 0]


def test_without_feature_layers_there_are_no_features() -> None:
    target = tiny_target()
    session = target.open(target.plan(2, 8, 1))
    assert session.prefill([0, 1], [[1, 2], []]) == [None, None]
    assert session.forward([0], [3], Draft.empty(1)).features_BMF is None


def logits_after(target: NativeTarget, prompts: dict[int, list[int]], trees: dict[int, Tree], tail: int = 8) -> Logits:
    session = target.open(target.plan(4, 64, tail))
    slots = list(prompts)
    session.prefill(slots, [prompts[slot][:-1] for slot in slots])
    draft = Draft.of_trees([trees.get(slot, Tree([], [])) for slot in slots])
    return session.forward(slots, [prompts[slot][-1] for slot in slots], draft).logits_BMV


@DTYPES
def test_rows_are_the_same_bits_in_any_company(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or in a batch, with or without a draft, however the prompt was cut into chunks."""
    draw = random.Random(1)
    target = tiny_target(dtype=dtype, windows=(None, 6))
    prompts = {slot: [draw.randrange(31) for _ in range(length)] for slot, length in ((2, 40), (0, 5), (3, 17))}
    trees = {2: Tree([1, 2, 3, 4], [-1, -1, 1, 0]), 3: Tree.chain([5, 6, 7, 8, 9, 10, 11])}
    together_BMV = logits_after(target, prompts, trees)
    monkeypatch.setitem(prefill.ROWS, "cpu", 5)
    for index, (slot, prompt) in enumerate(prompts.items()):
        alone_BMV = logits_after(target, {slot: prompt}, {})
        assert torch.equal(together_BMV[index][0], alone_BMV[0][0])
    step_BMV = logits_after(target, {1: [*prompts[2], 2, 3]}, {})  # row 3 of slot 2 is the token 3 under the token 2
    if dtype == torch.float32:
        assert torch.equal(together_BMV[0][3], step_BMV[0][0])
    torch.testing.assert_close(together_BMV[0][3], step_BMV[0][0], rtol=0, atol=1e-2)


def test_a_ragged_batch_computes_its_real_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(3)
    trees = [Tree.chain([5, 6, 7, 8]), Tree([], []), Tree([1, 2, 3], [-1, -1, 0])]
    prompts = [[1, 2, 3], [4, 5], [6]]

    def forward() -> tuple[Tensor, list[int]]:
        session = target.open(target.plan(3, 32, 8), feature_layers=(1,))
        session.prefill([0, 1, 2], [prompt[:-1] for prompt in prompts])
        seen: list[int] = []
        inner = session.decoder

        def watched(tokens_BM: Tensor, *args: Any, **settings: Any) -> Any:
            seen.append(tokens_BM.numel())
            return inner(tokens_BM, *args, **settings)

        monkeypatch.setattr(session, "decoder", watched)
        monkeypatch.setattr(watched, "spec", inner.spec, raising=False)
        monkeypatch.setattr(watched, "ops", inner.ops, raising=False)
        given = session.forward([0, 1, 2], [prompt[-1] for prompt in prompts], Draft.of_trees(trees))
        assert given.features_BMF is not None
        real_BM = Draft.of_trees(trees).real_rows_BM()
        logits_RV = torch.cat(
            [logits_MV[: len(tree.tokens) + 1] for logits_MV, tree in zip(given.logits_BMV, trees, strict=True)]
        )
        return torch.cat([logits_RV, given.features_BMF[real_BM]], dim=-1), seen

    ragged, few = forward()
    monkeypatch.setattr(NativeSession, "_leaves_out_padding", lambda self, draft: False)
    padded, many = forward()
    assert (few, many) == ([5 + 1 + 4], [15])
    assert torch.allclose(ragged, padded, rtol=0, atol=1e-12)
