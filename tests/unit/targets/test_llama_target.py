"""The target on llama.cpp: its steps equal our own decoder's on the same file, and what it cannot do is refused.

These tests need the package llama-cpp-python, which `pip install 'outrider[llama]'` compiles; without it they are
skipped. Files are tiny, with random weights in fp32, and keys and values in fp32 too, so that equal means equal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from outrider import Engine, SamplingParams, load_proposer, load_target
from outrider.draft import Draft, Tree
from outrider.errors import CapacityError, CheckpointError, ConfigError
from outrider.formats.gguf.file import open_gguf
from outrider.target import Target, TargetSession
from outrider.testing import Adversary, Case, Oracle, RandomTrees, Scripted, assert_lossless
from outrider.testing.contract import CHECKS

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'outrider[llama]' compiles it")

from outrider.targets.llama import sequences
from outrider.targets.llama.states import StateReader
from outrider.targets.llama.tokenizer import LlamaTokenizer

Writer = Callable[..., Path]
PROMPTS = [[5, 9, 14, 5, 9], [7], [30, 31, 32, 33, 34, 35, 36, 37]]
TREE = Tree([11, 12, 13, 14, 15], [-1, -1, 0, 1, 3])


@pytest.fixture
def model(tiny_sizes: dict[str, int]) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes: dict[str, Any] = tiny_sizes | {"num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, rms_norm_eps=1e-5, initializer_range=0.3))


@pytest.fixture
def file(model: LlamaForCausalLM, write_gguf: Writer, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", model)


@pytest.fixture
def target(file: Path) -> Target:
    return load_target(str(file), dtype="float32", backend="llama_cpp")


@pytest.fixture
def native(file: Path) -> Target:
    return load_target(str(file), dtype="float32", backend="native")


def add(writer: gguf.GGUFWriter, architecture: str, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{key}", value)


@pytest.fixture
def mamba(file: Path, tmp_path: Path) -> Path:
    """A Mamba of two layers, with the same vocabulary: its state is written over by every token."""
    words = open_gguf(file).metadata
    tokens = words.texts("tokenizer.ggml.tokens")
    chance, width, inner, state, rank = np.random.default_rng(3), 16, 32, 4, 2
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    sizes = {"block_count": 2, "context_length": 128, "embedding_length": width, "feed_forward_length": 0}
    sizes |= {"attention.head_count": 0, "vocab_size": len(tokens)}
    sizes |= {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank}
    add(writer, "mamba", sizes | {"attention.layer_norm_rms_epsilon": 1e-5})
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(words.integers("tokenizer.ggml.token_type"))
    writer.add_token_merges(words.texts("tokenizer.ggml.merges"))
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width)}
    for layer in range(2):
        names = {"ssm_in": (2 * inner, width), "ssm_conv1d": (inner, 4), "ssm_x": (rank + 2 * state, inner)}
        names |= {"ssm_dt": (inner, rank), "ssm_out": (width, inner)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(f"blk.{layer}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        writer.add_tensor(f"blk.{layer}.ssm_dt.bias", np.full(inner, -1, np.float32))
        writer.add_tensor(f"blk.{layer}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        writer.add_tensor(f"blk.{layer}.ssm_d", np.ones(inner, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (chance.standard_normal(shape) * 0.6).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "mamba.gguf"


def opened(target: Target, layers: tuple[int, ...] = ()) -> TargetSession:
    session = target.open(target.plan(3, 64, tail=8), layers)
    session.prefill([0, 2], [PROMPTS[0][:-1], PROMPTS[2][:-1]])
    return session


def step(session: TargetSession, trees: list[Tree]) -> list[Tensor]:
    logits = session.forward([0, 2], [PROMPTS[0][-1], PROMPTS[2][-1]], Draft.of_trees(trees)).logits_BMV
    return [logits[place][: len(tree.tokens) + 1].clone() for place, tree in enumerate(trees)]


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), atol=2e-3, rtol=1e-3)


def test_every_row_of_trees_in_a_batch_equals_our_own_decoder(target: Target, native: Target) -> None:
    trees = [TREE, Tree.chain([21, 22])]
    for ours, theirs in zip(step(opened(target), trees), step(opened(native), trees), strict=True):
        assert near(ours, theirs)
    assert target.spec.drafts == "trees"
    assert (target.spec.vocab_size, target.spec.eos_ids) == (native.spec.vocab_size, native.spec.eos_ids)
    assert target.tokenizer("hello world")["input_ids"] == native.tokenizer("hello world")["input_ids"]


@pytest.mark.parametrize("paths", [[[], [1]], [[1, 3], []], [[2, 4, 5], [1, 2]], [[2], []]])
def test_what_is_kept_is_read_on_as_by_our_own_decoder(target: Target, native: Target, paths: list[list[int]]) -> None:
    found = []
    for one in (target, native):
        session = opened(one)
        step(session, [TREE, Tree.chain([21, 22])])
        session.cache.commit([0, 2], paths)
        assert session.cache.lengths == [5 + len(paths[0]), 0, 8 + len(paths[1])]
        found.append(step(session, [Tree.chain([40]), TREE]))
    assert all(near(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_step_that_is_not_committed_changes_nothing(target: Target, mamba: Path) -> None:
    state = load_target(str(mamba), dtype="float32", backend="llama_cpp")
    for one, trees in ((target, [TREE, Tree.chain([21, 22])]), (state, [Tree.chain([8, 9]), Tree([], [])])):
        session = opened(one)
        first = step(session, trees)
        step(session, [Tree.chain([50, 51]), Tree.chain([52])])
        assert all(near(a, b) for a, b in zip(first, step(session, trees), strict=True))


def test_a_state_is_restored_when_a_draft_is_rejected(mamba: Path) -> None:
    target = load_target(str(mamba), dtype="float32", backend="llama_cpp")
    assert (target.spec.drafts, target.spec.keeps_prefixes) == ("chains", False)
    plain = target.open(target.plan(1, 64, tail=1))
    plain.prefill([0], [[*PROMPTS[0], 8]])
    want = plain.forward([0], [9], Draft.empty(1)).logits_BMV[0]
    session = opened(target)
    step(session, [Tree.chain([8, 9, 10]), Tree.chain([21])])
    session.cache.commit([0, 2], [[1], []])
    assert near(session.forward([0], [9], Draft.empty(1)).logits_BMV[0], want)


CASE = Case(
    prompts=tuple(map(tuple, PROMPTS)),
    samplings=(SamplingParams(), SamplingParams(temperature=0.7, top_k=5, seed=2), SamplingParams(temperature=1.0)),
    limits=(12, 7, 9),
    arrivals=(0, 0, 2),
    cancels=(None, None, 3),
)


@pytest.mark.parametrize("rule", ["C1-forwards", "C4-text", "C8-draft", "C9-independence", "C10-stops"])
def test_the_contract_holds(target: Target, mamba: Path, rule: str) -> None:
    state = load_target(str(mamba), dtype="float32", backend="llama_cpp")
    for one in (target, state):
        CHECKS[rule](one, Scripted(RandomTrees(one, seed=1).script, max_nodes=8), CASE)


def test_texts_are_those_of_our_own_decoder(target: Target, native: Target) -> None:
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    texts = [answer.tokens for answer in Engine(native, load_proposer("none", native)).generate(PROMPTS, params)]
    for proposer in (load_proposer("ngram", target), load_proposer("suffix", target)):
        engine = Engine(target, proposer, max_batch=2)
        assert [answer.tokens for answer in engine.generate(PROMPTS, params)] == texts
    for script in (Oracle(native).script, Adversary(native).script):
        assert_lossless(target, Scripted(script), PROMPTS, params)


def test_a_kept_beginning_gives_the_same_text(target: Target) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    prompt = [token % 200 + 5 for token in range(40)]
    engine = Engine(target, load_proposer("ngram", target), prefix_cache_bytes=2**22)
    first = engine.generate([prompt], params)[0].tokens
    again = [*prompt, *first, 17, 18]
    want = Engine(target, load_proposer("ngram", target)).generate([again], params)[0].tokens
    assert engine.prefixes.find(again, with_features=False) is not None
    assert engine.generate([again], params)[0].tokens == want


def test_hidden_states_are_those_of_our_own_decoder(target: Target, native: Target) -> None:
    layers = (1, 2, 3, 4)
    found = []
    for one in (target, native):
        session = one.open(one.plan(2, 32, tail=8), layers)
        read = session.prefill([0, 1], [PROMPTS[2], PROMPTS[0]])
        forward = session.forward([0, 1], [20, 21], Draft.of_trees([TREE, Tree.chain([22])]))
        assert forward.features_BMF is not None
        found.append([*read, forward.features_BMF[0], forward.features_BMF[1, :2]])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        assert near(ours, theirs)


def test_an_interrupt_inside_a_graph_is_raised_behind_it(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library cannot pass it on, and a step whose states are half read must not count as one."""
    session = target.open(target.plan(1, 32, tail=4), (1, 2))
    want = session.forward([0], [5], Draft.of_chains([[6]])).logits_BMV[0].clone()

    def interrupted(self: Any, name: str, numbers: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as planted:
        planted.setattr(StateReader, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.forward([0], [5], Draft.of_chains([[7]]))
    assert near(session.forward([0], [5], Draft.of_chains([[6]])).logits_BMV[0], want)


def test_a_text_that_is_only_timed_has_its_length(target: Target, mamba: Path) -> None:
    for one in (target, load_target(str(mamba), backend="llama_cpp")):
        session = one.open(one.plan(2, 600, tail=4))
        session.cache.pretend([0, 1], [300, 5])
        assert session.cache.lengths == [300, 5]
        session.forward([0, 1], [5, 6], Draft.of_chains([[7], [8]]))
        session.cache.commit([0, 1], [[1], []])
        session.cache.reset(0)
        assert session.cache.lengths == [0, 6]


def test_a_step_that_is_not_undone_is_found_on_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, slot: int, length: int, pending: Any, path: Any) -> None:
        self._free(slot, pending)

    monkeypatch.setattr(sequences.AttentionMemory, "keep", forgetful)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot verify drafts on llama\.cpp"):
        load_target(str(file), backend="llama_cpp")


def test_a_mask_that_shows_siblings_is_found_on_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = sequences.AttentionMemory.stage

    def blind(self: Any, slot: int, length: int, root: int, tree: Tree) -> Any:
        return stage(self, slot, length, root, Tree.chain(tree.tokens))

    monkeypatch.setattr(sequences.AttentionMemory, "stage", blind)
    with pytest.raises(
        CheckpointError, match=r"cannot verify drafts on llama\.cpp: a step with drafts changes its logits"
    ):
        load_target(str(file), backend="llama_cpp")


def test_what_cannot_be_done_is_refused_in_a_sentence(target: Target, file: Path, mamba: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a GGUF file, and"):
        load_target(str(tmp_path), backend="llama_cpp")
    with pytest.raises(ConfigError, match=r"runs on the CPU here, not on cuda|needs a GPU"):
        load_target(str(file), backend="llama_cpp", device="cuda")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match=r"broken\.gguf"):
        load_target(str(broken), backend="llama_cpp")
    state = load_target(str(mamba), backend="llama_cpp")
    with pytest.raises(ConfigError, match=r"keeps nothing: .* has a state of its whole text"):
        Engine(state, load_proposer("ngram", state), prefix_cache_bytes=1000)
    for one, most in ((target, 256), (state, 128)):
        with pytest.raises(CapacityError, match=f"use max_batch={most} or fewer"):
            Engine(one, load_proposer("none", one), max_batch=most + 1, max_len=4)
    with pytest.raises(ConfigError, match="recurrent or hybrid"):
        state.open(state.plan(1, 32, tail=2), (1,))
    with pytest.raises(ConfigError, match="cannot be a draft model"):
        target.project(torch.zeros(1, 32))
    with pytest.raises(ConfigError, match="feature layer 0"):
        target.open(target.plan(1, 32, tail=2), (0,))


def test_memory_is_planned_by_what_a_slot_takes(target: Target, mamba: Path) -> None:
    # keys and values of 3 layers with 2 heads of 8 numbers in fp32, and a few bytes of tables
    assert 3 * 2 * 2 * 8 * 4 <= target.plan(1, 64, 1).bytes_per_token < 3 * 2 * 2 * 8 * 4 + 40
    state = load_target(str(mamba), backend="llama_cpp")
    # a state of two layers: 32 x 4 numbers and 3 columns of the convolution, and a copy of it
    assert state.plan(1, 64, 1).state_bytes >= 2 * 2 * 32 * (4 + 3) * 4


def phi3(sizes: dict[str, Any]) -> PreTrainedModel:
    rope = {"rope_type": "longrope", "partial_rotary_factor": 0.75}
    rope |= {"short_factor": [1.0, 1.25, 2.5], "long_factor": [1.0, 4.0, 9.5]}
    limits = {"original_max_position_embeddings": 512, "max_position_embeddings": 4096}
    return Phi3ForCausalLM(Phi3Config(**sizes | limits, pad_token_id=0, rope_parameters=rope))


def llama4(sizes: dict[str, Any]) -> PreTrainedModel:
    experts = {"num_local_experts": 6, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96}
    return Llama4ForCausalLM(Llama4TextConfig(**sizes | experts | {"num_hidden_layers": 4, "head_dim": 8}))


@pytest.mark.parametrize("family", [phi3, llama4])
def test_a_family_on_llama_cpp_equals_our_own_decoder(
    family: Callable[[dict[str, Any]], PreTrainedModel], tiny_sizes: dict[str, int], write_gguf: Writer, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    file = write_gguf(tmp_path / "tiny.gguf", family(tiny_sizes | {"initializer_range": 0.3}))
    found, wanted = (
        step(opened(load_target(str(file), dtype="float32", backend=backend)), [TREE, Tree.chain([3, 4])])
        for backend in ("llama_cpp", "native")
    )
    assert all(near(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_a_vocabulary_that_we_do_not_split_is_split_by_llama_cpp(
    model: LlamaForCausalLM, write_gguf: Writer, tmp_path: Path
) -> None:
    facts = {"tokenizer.ggml.pre": "falcon"}  # a rule that our converter refuses
    file = write_gguf(tmp_path / "other.gguf", model, metadata=facts)
    target, words = load_target(str(file), backend="llama_cpp"), open_gguf(file).metadata.texts("tokenizer.ggml.tokens")
    assert isinstance(target.tokenizer, LlamaTokenizer)
    text = "hello world 12, <|im_end|> and \u6f22"
    tokens = target.tokenizer(text)["input_ids"]
    assert words.index("hello") == tokens[0]
    assert words.index("<|im_end|>") in tokens
    assert target.tokenizer.decode(tokens) == text
    assert target.tokenizer.decode(tokens, skip_special_tokens=True) == text.replace("<|im_end|>", "")
    assert target.tokenizer.get_vocab()["hello"] == tokens[0]
    turn = target.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert turn == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    answer = Engine(target, load_proposer("suffix", target), max_len=64).generate(
        ["hello"], SamplingParams(max_tokens=6)
    )
    assert answer[0].text == target.tokenizer.decode(answer[0].tokens, skip_special_tokens=True)
