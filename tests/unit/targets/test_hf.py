"""The `transformers` target: its own model code on our cache equals its own model code alone.

Tiny random models of several architectures: learned positions (GPT-2, OPT), rotary positions (GPT-NeoX, GPT-J), sliding
windows shorter than the text (Gemma 2 and 3, Phi-3), soft-capped scores (Gemma 2).
"""

import inspect
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.errors import CheckpointError
from outrider.proposers.none import NoProposer
from outrider.sampling import SamplingParams
from outrider.targets import load_target, prefill
from outrider.targets.hf import HFTarget
from outrider.targets.native import NativeTarget
from outrider.testing import Adversary, Case, Oracle, RandomTrees, Scripted, assert_lossless
from outrider.testing.contract import CHECKS
from outrider.testing.directory import write_tiny_model

VOCAB = 31
TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": VOCAB - 1, "pad_token_id": None}
GPT: dict[str, Any] = TOKENS | {"n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.5}
MODERN: dict[str, Any] = TOKENS | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "initializer_range": 0.4,
}
GROUPED = MODERN | {"num_key_value_heads": 2, "head_dim": 4, "sliding_window": 5}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**GPT),
    "gptj": GPTJConfig(**GPT, rotary_dim=2),
    "gpt_neox": GPTNeoXConfig(**MODERN),
    "opt": OPTConfig(
        **TOKENS,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        word_embed_proj_dim=16,
        init_std=0.4,
    ),
    "gemma2": Gemma2Config(**GROUPED, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma3": Gemma3TextConfig(**GROUPED, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "phi3": Phi3Config(**{key: value for key, value in GROUPED.items() if key != "head_dim"}),
}
EXACT = ("gpt2", "gpt_neox", "opt")  # the others drop to fp32 in a norm, a rotation or the softmax


def make(name: str, config: PreTrainedConfig | None = None) -> HFTarget:
    torch.manual_seed(3)
    return HFTarget(AutoModelForCausalLM.from_config(config or CONFIGS[name], dtype=torch.float64), name)


@pytest.fixture(scope="module", params=list(CONFIGS))
def target(request: pytest.FixtureRequest) -> HFTarget:
    return make(request.param)


@pytest.fixture(scope="module")
def oracle(target: HFTarget) -> Oracle:
    return Oracle(target, depth=6)


def plain(target: HFTarget, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits [T, V] and all hidden states [T, F] of one text, with no cache and no mask."""
    with torch.inference_mode():
        output = target.model(input_ids=torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True)
    return output.logits[0], torch.cat(output.hidden_states, dim=-1)[0]


def assert_near(target: HFTarget, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 if target.name in EXACT else 2e-5)


def path_of(tree: Tree, row: int) -> list[int]:
    path: list[int] = []
    node = row - 1
    while node >= 0:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return path


def test_spec_comes_from_config_and_model(target: HFTarget) -> None:
    spec = target.spec
    assert (spec.vocab_size, spec.hidden_size, spec.max_positions, spec.eos_ids) == (VOCAB, 16, 48, (VOCAB - 1,))
    assert spec.num_layers == target.model.config.num_hidden_layers
    assert spec.dtype == torch.float64
    assert not spec.batch_invariant
    assert spec.weight_bytes >= sum(weight.nbytes for weight in target.model.parameters()) > 0
    plan = target.plan(2, 10, 3)
    assert plan.num_layers == spec.num_layers
    assert plan.num_kv_heads * plan.head_dim * 4 // plan.num_kv_heads == 16


def test_nodes_and_features_equal_plain_forwards(target: HFTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """C3, over a mixed batch with chunked prompts, a chain deeper than the window, and a committed tree path."""
    monkeypatch.setitem(prefill.ROWS, "cpu", 21)
    draw = random.Random(0)
    texts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (1, 25, 9)]
    slots = [2, 0, 1]
    session = target.open(target.plan(3, 64, 9), feature_layers=tuple(range(target.spec.num_layers + 1)))
    for features_TF, text in zip(session.prefill(slots, [text[:-1] for text in texts]), texts, strict=True):
        assert features_TF is not None
        assert_near(target, features_TF, plain(target, text)[1][:-1])
    chain = Tree.chain([draw.randrange(VOCAB) for _ in range(8)])
    fork = Tree([1, 2, 3, 4, 5, 6, 7], [-1, -1, 1, 0, 2, 2, 4])
    for trees, paths in (
        ([chain, fork, Tree([], [])], [[1, 2, 3], [2, 3, 5, 7], []]),
        ([fork, chain, chain], [[]] * 3),
    ):
        forward = session.forward(slots, [text[-1] for text in texts], Draft.of_trees(trees))
        assert forward.features_BMF is not None
        for index, tree in enumerate(trees):
            for row in range(len(tree.tokens) + 1):
                logits_TV, states_TF = plain(target, texts[index] + path_of(tree, row))
                assert_near(target, forward.logits_BMV[index][row], logits_TV[-1])
                assert_near(target, forward.features_BMF[index, row], states_TF[-1])
        session.cache.commit(slots, paths)
        for text, tree, path in zip(texts, trees, paths, strict=True):
            text += [tree.tokens[row - 1] for row in path] + [draw.randrange(VOCAB)]


def test_without_feature_layers_there_are_no_features(target: HFTarget) -> None:
    session = target.open(target.plan(1, 8, 1))
    assert session.prefill([0], [[1, 2]]) == [None]
    assert session.forward([0], [3], Draft.empty(1)).features_BMF is None


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 5, 6, 7, 8, 9, 1, 2]]


def test_greedy_text_equals_generate(target: HFTarget) -> None:
    answers = Engine(target, NoProposer(), max_batch=3).generate(
        PROMPTS, SamplingParams(max_tokens=20, ignore_eos=True)
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = torch.tensor([prompt])
        wanted = target.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=20,
            max_new_tokens=20,
            suppress_tokens=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(answer.tokens) == wanted[0, len(prompt) :].tolist()


def test_lossless_with_any_draft(target: HFTarget, oracle: Oracle) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    if target.name in ("gpt2", "gemma2"):
        params = replace(params, temperature=1.0, top_p=0.95, seed=5)
    adversary, trees = Adversary(target), RandomTrees(target, seed=1)
    adversary.oracle = trees.oracle = oracle  # one transcript for all three
    for proposer, max_batch in ((oracle.proposer(), 3), (adversary.proposer(), 2), (trees.proposer(), 2)):
        assert_lossless(target, proposer, PROMPTS, params, max_batch=max_batch)


def test_the_oracle_is_accepted_to_full_depth(target: HFTarget, oracle: Oracle) -> None:
    engine = Engine(target, oracle.proposer(), max_batch=3)
    engine.generate(PROMPTS, SamplingParams(max_tokens=14, ignore_eos=True))
    assert engine.num_steps == 2


CASE = Case(
    prompts=((1, 2, 3, 1, 2, 3), (4,), (9, 8, 7, 9)),
    samplings=(
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5, seed=2),
        SamplingParams(temperature=1.0, seed=3),
    ),
    limits=(12, 7, 9),
    arrivals=(0, 0, 2),
    cancels=(None, None, 3),
)


@pytest.fixture(scope="module")
def gpt2_trees(tiny_gpt2_target: HFTarget) -> Scripted:
    return RandomTrees(tiny_gpt2_target, num_nodes=6).proposer()


@pytest.mark.parametrize("check", list(CHECKS))
def test_gpt2_keeps_the_contract(check: str, tiny_gpt2_target: HFTarget, gpt2_trees: Scripted) -> None:
    CHECKS[check](tiny_gpt2_target, gpt2_trees, CASE)


REFUSED = {
    "position_ids": BloomConfig(**TOKENS, hidden_size=16, n_layer=2, n_head=4),
    "ALiBi": FalconConfig(**TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=True),
    "recurrent state": MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
    "build their own masks": GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "recurrent": Qwen3NextConfig(**MODERN),
}


@pytest.mark.parametrize("reason", list(REFUSED))
def test_models_that_cannot_verify_are_refused(reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"tiny .* cannot verify drafts: .*{reason}.*; use a decoder-only model"):
        make("tiny", REFUSED[reason])


def test_an_encoder_is_refused() -> None:
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(CheckpointError, match="it has an encoder"):
        HFTarget(T5ForConditionalGeneration(config), "t5")


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask", "past_key_values"])
def test_rehearsal_refuses_a_model_that_does_not_listen(ignored: str) -> None:
    """Each of the three things that we hand in matters, and is noticed when it is not used."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt_neox"], dtype=torch.float32)
    body = type(model)

    def deaf(self: Any, input_ids: Tensor, **given: Any) -> Any:
        if "attention_mask" in given:  # a plain forward comes without a mask and is left alone
            given[ignored] = None
        return body.forward(self, input_ids, **given)

    model.forward = MethodType(deaf, model)
    model.forward.__func__.__signature__ = inspect.signature(body.forward)
    with pytest.raises(CheckpointError, match="given a cache, a mask and positions, it"):
        HFTarget(model, "deaf")


def test_a_model_without_a_context_limit_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tiny has no max_position_embeddings; add its context limit"):
        make("tiny", GPTNeoXConfig(**MODERN | {"max_position_embeddings": 0}))


def test_layers_of_different_shapes_are_refused() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**MODERN | {"num_key_value_heads": 2}), dtype=torch.float64)
    attention = model.model.layers[1].self_attn
    attention.k_proj, attention.v_proj = (torch.nn.Linear(16, 4, bias=False).double() for _ in "kv")
    attention.num_key_value_groups = 4
    with pytest.raises(CheckpointError, match="keys and values of 2 shapes in 3 caches"):
        HFTarget(model, "uneven")


def test_a_model_that_fails_by_itself_is_named() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"], dtype=torch.float64)
    model.transformer.wpe = model.transformer.wpe.float()
    model.transformer.h[0].mlp = None
    with pytest.raises(CheckpointError, match=r"broken fails on a plain forward in torch\.float64: TypeError"):
        HFTarget(model, "broken")


def test_a_directory_runs_as_saved(tmp_path: Path) -> None:
    made = make("gpt2")
    made.model.save_pretrained(tmp_path)
    loaded = load_target(str(tmp_path), dtype="float64", device="cpu")
    assert isinstance(loaded, HFTarget)
    assert loaded.spec.source == str(tmp_path)
    assert loaded.tokenizer is None
    want, got = (Engine(each, NoProposer()).generate(PROMPTS, SamplingParams(max_tokens=10)) for each in (made, loaded))
    assert want == got


def test_both_targets_agree_on_a_llama(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**MODERN | {"num_key_value_heads": 2})
    AutoModelForCausalLM.from_config(config, dtype=torch.float64).save_pretrained(tmp_path)
    native = load_target(str(tmp_path), dtype="float64", device="cpu")
    other = load_target(str(tmp_path), dtype="float64", device="cpu", backend="hf")
    assert isinstance(native, NativeTarget)
    assert isinstance(other, HFTarget)
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=4)
    want, got = (Engine(each, NoProposer(), max_batch=3).generate(PROMPTS, params) for each in (native, other))
    assert want == got
    for field in ("vocab_size", "hidden_size", "num_layers", "max_positions", "eos_ids", "dtype"):
        assert getattr(native.spec, field) == getattr(other.spec, field)
    assert native.plan(2, 10, 3) == other.plan(2, 10, 3)


def test_an_mlp_with_biases_goes_to_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**MODERN | {"num_key_value_heads": 2, "mlp_bias": True})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert isinstance(load_target(str(tmp_path), dtype="float32", device="cpu"), HFTarget)


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_more_layers_than_tensors_are_refused_at_once(tmp_path: Path, backend: str) -> None:
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**31}))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers|layer"):
        load_target(str(tmp_path), dtype="float32", device="cpu", backend=backend)
