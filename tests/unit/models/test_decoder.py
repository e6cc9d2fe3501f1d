"""The native decoder against `transformers`: every family, read from disk, in chunks, step by step, and down trees.

In fp64 the reference is `transformers` with its RMSNorm computed in fp64 too (its own drops to fp32), and both sides
have to agree to 1e-9, which is invariant C3: a node's logits are those of a plain forward of its path.
"""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.llama4 import modeling_llama4

import outrider
from outrider.draft import Draft, Tree
from outrider.models.weight_kinds import WeightsChoice
from outrider.sampling import SamplingParams
from outrider.target import TargetSession, as_tensor
from outrider.targets import prefill
from outrider.targets.native import NativeTarget

VOCAB = 37
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": VOCAB - 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 4.0, 9.0],
}
WINDOW = 5
GEMMA3 = {
    "head_dim": 10,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 14,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 10,
    "intermediate_size": 14,
    "intermediate_size_mlp": 20,
    "num_local_experts": 5,
    "moe_layers": [0, 2, 3],
    "no_rope_layers": [1, 1, 0, 1],
    "attention_chunk_size": 12,
    "floor_scale": 8,
    "attn_scale": 0.5,
}
EXPERTS = {
    "head_dim": 10,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
}


def family(name: str) -> PreTrainedConfig:
    match name:
        case "llama2":
            return LlamaConfig(**TINY | {"num_key_value_heads": 4, "tie_word_embeddings": False})
        case "llama3":
            return LlamaConfig(**TINY | {"num_key_value_heads": 1, "rope_parameters": LLAMA3})
        case "llama_linear":
            return LlamaConfig(**TINY | {"rope_parameters": LINEAR})
        case "llama_yarn":
            return LlamaConfig(**TINY | {"rope_parameters": YARN})
        case "llama_bias":
            return LlamaConfig(**TINY | {"attention_bias": True})
        case "smollm2":
            return LlamaConfig(
                **TINY | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
            )
        case "qwen2":
            return Qwen2Config(**TINY | {"tie_word_embeddings": True})
        case "qwen2_windows":
            windows = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
            return Qwen2Config(**TINY | windows)
        case "qwen3":
            return Qwen3Config(**TINY | {"head_dim": 10, "tie_word_embeddings": False})
        case "qwen3_bias":
            return Qwen3Config(**TINY | {"head_dim": 4, "attention_bias": True, "tie_word_embeddings": True})
        case "mistral":
            return MistralConfig(**TINY | {"sliding_window": WINDOW, "head_dim": 8})
        case "qwen3_moe":
            return Qwen3MoeConfig(**TINY | EXPERTS | {"mlp_only_layers": [1]})
        case "qwen3_moe_shares":
            sparse = {"decoder_sparse_step": 2, "num_hidden_layers": 4, "norm_topk_prob": False}
            return Qwen3MoeConfig(**TINY | EXPERTS | sparse | {"tie_word_embeddings": True})
        case "phi3":
            return Phi3Config(**TINY)
        case "phi3_window":
            return Phi3Config(**TINY | {"sliding_window": WINDOW, "tie_word_embeddings": True})
        case "phi3_partial":
            return Phi3Config(**TINY | {"hidden_size": 32, "rope_parameters": {"partial_rotary_factor": 0.75}})
        case "phi3_longrope":
            rope = LONGROPE | {"partial_rotary_factor": 0.75}
            limits = {"original_max_position_embeddings": 96, "max_position_embeddings": 512}
            return Phi3Config(**TINY | limits | {"hidden_size": 32, "rope_parameters": rope})
        case "llama4":
            return Llama4TextConfig(**TINY | LLAMA4)
        case "llama4_dense":
            plain = {"moe_layers": [], "use_qk_norm": False, "attn_temperature_tuning": False, "attention_bias": True}
            kinds = ["full_attention", "chunked_attention", "chunked_attention", "full_attention"]
            return Llama4TextConfig(**TINY | LLAMA4 | plain | {"layer_types": kinds, "tie_word_embeddings": True})
        case "llama4_experts":
            sparse = {"interleave_moe_layer_step": 2, "num_experts_per_tok": 2, "no_rope_layers": [1, 0, 0, 1]}
            return Llama4TextConfig(**TINY | LLAMA4 | sparse | {"rope_parameters": LLAMA3})
        case "gemma3":
            return Gemma3TextConfig(**TINY | GEMMA3)
        case "gemma3_linear":
            long = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0}
            both = {"full_attention": long, "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
            return Gemma3TextConfig(**TINY | GEMMA3 | {"rope_parameters": both, "tie_word_embeddings": False})
    raise AssertionError(name)


FAMILIES = (
    "llama2",
    "llama3",
    "llama_linear",
    "llama_yarn",
    "llama_bias",
    "smollm2",
    "qwen2",
    "qwen2_windows",
    "qwen3",
    "qwen3_bias",
    "mistral",
    "qwen3_moe",
    "qwen3_moe_shares",
    "phi3",
    "phi3_window",
    "phi3_partial",
    "phi3_longrope",
    "llama4",
    "llama4_dense",
    "llama4_experts",
    "gemma3",
    "gemma3_linear",
)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random fp64 weights, biases and norms included, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()
    model.set_experts_implementation("eager")  # its fused products have no fp64
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        scale = 1.0 if "embed" in name else 1.5 * weight.shape[-1] ** -0.5 if weight.dim() == 2 else 0.2
        weight.data.copy_(noise * scale + (1 if name.endswith("norm.weight") else 0))
    return model.requires_grad_(False)


def _norm(self: nn.Module, x: Tensor) -> Tensor:
    if type(self).__name__.startswith("Gemma"):
        return nn.functional.rms_norm(x, x.shape[-1:], 1 + self.weight, self.eps)
    eps = self.eps if type(self).__name__.startswith("Llama4") else self.variance_epsilon
    return nn.functional.rms_norm(x, x.shape[-1:], getattr(self, "weight", None), eps)


def _route(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = nn.functional.linear(x, self.weight)
    shares, experts = logits.softmax(-1).topk(self.top_k, dim=-1)
    return logits, shares / shares.sum(-1, keepdim=True) if self.norm_topk_prob else shares, experts


def _llama4_route(self: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(x, self.weight)
    chosen = torch.zeros_like(logits).scatter_(1, logits.topk(self.top_k, dim=1).indices, 1)
    return logits.sigmoid() * chosen, logits


def _llama4_turn(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate neighbouring numbers, in the dtype of the heads."""
    cos, sin = (part.repeat_interleave(2, dim=-1)[:, :, None].to(xq.dtype) for part in (freqs_cis.real, freqs_cis.imag))
    turned = (torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) for x in (xq, xk))
    return tuple(x * cos + other * sin for x, other in zip((xq, xk), turned, strict=True))  # type: ignore[return-value]


def _llama4_angles(self: nn.Module, x: Tensor, position_ids: Tensor) -> Tensor:
    angles = (position_ids[..., None].float() * self.inv_freq.float()).double()
    return torch.complex(angles.cos(), angles.sin())


@pytest.fixture(autouse=True)
def wide_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 rotates in fp32 whatever the dtype."""
    monkeypatch.setattr(modeling_llama4, "apply_rotary_emb", _llama4_turn)


def reference(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model as the other side computes it: weights rounded to `dtype`, arithmetic in fp64 or fp32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    twin = copy.deepcopy(model).to(dtype).to(wide)
    for module in twin.modules() if wide == torch.float64 else ():
        if type(module).__name__.endswith(("RMSNorm", "L2Norm")):
            module.forward = MethodType(_norm, module)
        elif type(module).__name__ == "Llama4Router":
            module.forward = MethodType(_llama4_route, module)
        elif type(module).__name__ == "Llama4TextRotaryEmbedding":
            module.forward = MethodType(_llama4_angles, module)
        elif type(module).__name__ == "Qwen3MoeTopKRouter":  # its own softmax drops to fp32
            module.forward = MethodType(_route, module)
    return twin


def plain(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits [T, V] and hidden states [T, E] of one text, with no cache and no mask."""
    output = model(input_ids=torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True)
    return output.logits[0], tuple(state[0] for state in output.hidden_states)


def assert_near(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """fp64 to 1e-9, fp32 to 1e-4; bf16 (whose cache is bf16 on our side only) to 6 % of the norm."""
    assert ours.shape == theirs.shape
    if dtype == torch.bfloat16:
        assert (ours - theirs).norm() <= 0.06 * theirs.norm()
    else:
        torch.testing.assert_close(ours, theirs, atol=1e-9 if dtype == torch.float64 else 1e-4, rtol=0)


def path_of(tree: Tree, row: int) -> list[int]:
    path: list[int] = []
    node = row - 1
    while node >= 0:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return path


def random_tree(draw: random.Random, num_nodes: int) -> Tree:
    parents = [draw.randrange(-1, node) if node else -1 for node in range(num_nodes)]
    return Tree([draw.randrange(VOCAB) for _ in parents], parents)


class Script:
    """A session and the texts in its slots, compared with the reference after every step."""

    def __init__(self, model: PreTrainedModel, target: NativeTarget, prompts: Sequence[list[int]], tail: int) -> None:
        self.model = reference(model, target.dtype)
        self.dtype = target.dtype
        self.feature_layers = tuple(range(target.spec.num_layers + 1))
        self.texts = [list(prompt) for prompt in prompts]
        self.slots = list(range(len(prompts)))[::-1]
        capacity = min(128, target.spec.max_positions)
        self.session: TargetSession = target.open(target.plan(len(prompts), capacity, tail), self.feature_layers)

    def prefill(self) -> None:
        found = self.session.prefill(self.slots, [text[:-1] for text in self.texts])
        for features_TF, text in zip(found, self.texts, strict=True):
            assert features_TF is not None
            states = plain(self.model, text)[1]
            assert_near(features_TF, torch.cat([state[:-1] for state in states], dim=-1), self.dtype)

    def step(self, trees: list[Tree], paths: list[list[int]]) -> None:
        """One forward, compared at every row; then `paths` are committed and greedy tokens become the roots."""
        forward = self.session.forward(self.slots, [text[-1] for text in self.texts], Draft.of_trees(trees))
        assert forward.features_BMF is not None
        for index, tree in enumerate(trees):
            wanted = [plain(self.model, self.texts[index] + path_of(tree, row)) for row in range(len(tree.tokens) + 1)]
            logits_MV = torch.stack([logits[-1] for logits, _ in wanted])
            states_MF = torch.stack([torch.cat([state[-1] for state in states]) for _, states in wanted])
            assert_near(forward.logits_BMV[index][: len(wanted)], logits_MV, self.dtype)
            assert_near(forward.features_BMF[index, : len(wanted)], states_MF, self.dtype)
        self.session.cache.commit(self.slots, paths)
        for index, path in enumerate(paths):
            bonus = int(forward.logits_BMV[index][path[-1] if path else 0].argmax())
            self.texts[index] += [trees[index].tokens[row - 1] for row in path] + [bonus]


@pytest.fixture
def narrow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in chunks of 7 tokens when three go together, so that a short one has to be padded."""
    monkeypatch.setitem(prefill.ROWS, "cpu", 21)


def load(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> NativeTarget:
    model.save_pretrained(directory)
    return NativeTarget.from_directory(directory, "tiny", dtype, "cpu", None)


@pytest.mark.usefixtures("narrow_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_equals_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    draw = random.Random(name)
    model = random_model(family(name))
    prompts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (1, 10, 24)]
    script = Script(model, load(model, tmp_path, dtype), prompts, tail=9)
    script.prefill()
    script.step([Tree([], [])] * 3, [[], [], []])
    script.step([Tree.chain([draw.randrange(VOCAB) for _ in range(length)]) for length in (8, 3, 0)], [[1, 2], [], []])
    fork = Tree([1, 2, 3, 4, 5, 6, 7], [-1, -1, 1, 0, 2, 2, 4])
    script.step([fork, random_tree(draw, 5), random_tree(draw, 8)], [[2, 3, 5, 7], [], []])
    for _ in range(2):
        script.step([Tree([], [])] * 3, [[], [], []])


def draw_config(seed: int) -> PreTrainedConfig:
    """A family with random sizes: head groupings, head sizes that do not divide the hidden size, ties and biases."""
    draw = random.Random(seed)
    kv_heads, group = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 7])
    sizes = {
        "hidden_size": draw.choice([8, 18, 33]),
        "intermediate_size": draw.randint(1, 50),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice([2, 6, 8, 16]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    bias = {"attention_bias": draw.random() < 0.5}
    match draw.choice(["llama", "qwen3", "mistral", "gemma3"]):
        case "llama":
            return LlamaConfig(**TINY | sizes | bias | {"hidden_size": kv_heads * group * draw.randint(1, 5)})
        case "qwen3":
            return Qwen3Config(**TINY | sizes | bias)
        case "gemma3":
            # its class insists on heads that divide the hidden size
            sizes["hidden_size"] = kv_heads * group * draw.randint(1, 5)
            return Gemma3TextConfig(**TINY | sizes | bias | {"sliding_window": draw.choice([1, 3])})
    return MistralConfig(**TINY | sizes | {"sliding_window": draw.choice([None, 1, 3])})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("seed", range(12))
def test_any_sizes(seed: int, dtype: torch.dtype, tmp_path: Path) -> None:
    draw = random.Random(seed)
    model = random_model(draw_config(seed), seed)
    prompts = [[draw.randrange(VOCAB) for _ in range(draw.randint(1, 12))] for _ in range(2)]
    script = Script(model, load(model, tmp_path, dtype), prompts, tail=7)
    script.prefill()
    script.step([random_tree(draw, 6), random_tree(draw, 4)], [[1], [1]])
    script.step([Tree([], [])] * 2, [[], []])


LONG = {"max_position_embeddings": 8192, "num_hidden_layers": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**TINY | LONG | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 1024}}),
        LlamaConfig(**TINY | LONG | {"rope_parameters": YARN | {"original_max_position_embeddings": 1024}}),
        MistralConfig(**TINY | LONG | {"sliding_window": 300}),
        Gemma3TextConfig(**TINY | LONG | {"sliding_window": 300, "layer_types": GEMMA3["layer_types"][:2]}),
    ],
    ids=["llama3", "yarn", "mistral", "gemma3"],
)
def test_thousands_of_positions(config: PreTrainedConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    draw = random.Random(0)
    model = random_model(config)
    longest = 1500 if dtype == torch.float64 else 4500
    prompts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (longest, 9, longest - 700, 600, 1)]
    target, twin = load(model, tmp_path, dtype), reference(model, dtype)
    session = target.open(target.plan(len(prompts), 4600, 4), feature_layers=(2,))
    slots = [3, 0, 4, 1, 2]
    features = session.prefill(slots, [prompt[:-1] for prompt in prompts])
    forward = session.forward(slots, [prompt[-1] for prompt in prompts], Draft.of_chains([[1, 2, 3]] * len(prompts)))
    for index, prompt in enumerate(prompts):
        logits_TV, states = plain(twin, [*prompt, 1, 2, 3])
        features_TF = features[index]
        assert features_TF is not None
        assert_near(features_TF, states[2][: len(prompt) - 1], dtype)
        assert_near(forward.logits_BMV[index], logits_TV[-4:], dtype)


def test_fused_projections_are_quantised_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    wide = {"hidden_size": 64, "intermediate_size": 96, "rope_parameters": {"partial_rotary_factor": 0.75}}
    model = random_model(Phi3Config(**TINY | wide))
    model.save_pretrained(tmp_path / "model")
    target = NativeTarget.from_directory(tmp_path / "model", "tiny", torch.float32, "cpu", None, "int8")
    session = target.open(target.plan(1, 64, 4))
    session.prefill([0], [[4, 5, 6]])
    found = as_tensor(session.forward([0], [7], Draft.empty(1)).logits_BMV)[0, 0]
    wanted = plain(model, [4, 5, 6, 7])[0][-1].float()
    assert (found - wanted).norm() <= 0.05 * wanted.norm()


LLAMA_4_EXPERTS = TINY | LLAMA4 | {"intermediate_size": 32, "intermediate_size_mlp": 64}  # in two tensors, transposed
QWEN3_EXPERTS = TINY | EXPERTS | {"intermediate_size": 64, "moe_intermediate_size": 32}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("config", [Llama4TextConfig, Qwen3MoeConfig])
def test_experts_are_quantised_while_loading(
    config: Any, kind: WeightsChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    sizes = LLAMA_4_EXPERTS if config is Llama4TextConfig else QWEN3_EXPERTS
    model = random_model(config(**sizes | {"hidden_size": 64, "head_dim": 16}))
    model.save_pretrained(tmp_path / "model")
    target = NativeTarget.from_directory(tmp_path / "model", "tiny", torch.float32, "cpu", None, kind)
    assert target.spec.weights == {"int8": "int8, float64", "int4": "int4, int8, float64"}[kind]  # routers stay
    session = target.open(target.plan(1, 64, 4))
    session.prefill([0], [[4, 5, 6]])
    found = as_tensor(session.forward([0], [7], Draft.of_chains([[8, 9]])).logits_BMV)[0]
    wanted = plain(reference(model, torch.float64), [4, 5, 6, 7, 8, 9])[0][-3:].float()
    assert (found - wanted).norm() <= {"int8": 0.1, "int4": 0.6}[kind] * wanted.norm()
    alone = session.forward([0], [7], Draft.empty(1))
    assert torch.equal(as_tensor(alone.logits_BMV)[0, 0], found[0])


def test_features_come_in_the_order_asked(tmp_path: Path) -> None:
    model = random_model(family("qwen2"))
    target = load(model, tmp_path, torch.float64)
    session = target.open(target.plan(1, 64, 1), feature_layers=(3, 0))
    states = plain(reference(model, torch.float64), [4, 5, 6])[1]
    (features_TF,) = session.prefill([0], [[4, 5]])
    assert features_TF is not None
    assert_near(features_TF, torch.cat([states[3], states[0]], dim=-1)[:2], torch.float64)
    row_F = session.forward([0], [6], Draft.empty(1)).features_BMF
    assert row_F is not None
    assert_near(row_F[0], torch.cat([states[3], states[0]], dim=-1)[2:], torch.float64)


WORKLOADS = Path(__file__).parents[3] / "workloads"
TIE = 1e-3


def short_prompts(count: int) -> list[str]:
    """The shortest first turns of the short categories, the same number from each."""
    chosen: list[str] = []
    files = ("chat", "writing", "reasoning", "code", "translation")
    for name in files:
        lines = (WORKLOADS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        chosen += sorted((json.loads(line)["turns"][0] for line in lines), key=len)[: count // len(files)]
    return chosen


@pytest.mark.model
def test_smollm2_greedy_text_equals_transformers(smollm2_dir: Path) -> None:
    """10 prompts, 24 tokens each, in batches of 5: every token is the argmax of `transformers` after the same text.

    One forward over prompt and answer gives those argmaxes for all positions, which is greedy decoding by induction. A
    token may differ only where the two best logits are closer than `TIE`, and none is expected to.
    """
    target = outrider.load_target(str(smollm2_dir), dtype="float32", device="cpu")
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_batch=5, max_len=512)
    answers = engine.generate(short_prompts(10), SamplingParams(max_tokens=24, ignore_eos=True))
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    ties = 0
    for answer in answers:
        start = len(answer.prompt) - 1
        with torch.inference_mode():
            logits_TV = model(torch.tensor([[*answer.prompt, *answer.tokens[:-1]]])).logits[0, start:]
        chosen_T = torch.tensor(answer.tokens)
        behind_T = logits_TV.max(-1).values - logits_TV.gather(1, chosen_T[:, None])[:, 0]
        assert behind_T.max() < TIE, f"{answer.prompt} differs at answer token {int(behind_T.argmax())}"
        ties += int((behind_T > 0).sum())
    assert len(answers) == 10
    assert ties == 0
