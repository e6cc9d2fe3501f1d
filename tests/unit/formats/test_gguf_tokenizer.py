"""The converted tokenizer cuts, merges and marks as the file's own names say, checked against a naive reference."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from outrider.formats.gguf.checkpoint import convert_gguf
from outrider.models.spec import DecoderSpec

GgufWriter = Callable[..., Path]
Rounding = Callable[[PreTrainedModel], PreTrainedModel]


def converted(file: Path) -> Path:
    directory = file.with_suffix(".converted")
    directory.mkdir()
    convert_gguf(file, directory)
    return directory


GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_WORDS = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def cut_smollm(text: str) -> list[str]:
    return [word for part in regex.split(r"(\p{N})", text) for word in regex.findall(GPT2_WORDS, part)]


CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


CUTS: dict[str, Callable[[str], list[str]]] = {
    "smollm": cut_smollm,
    "qwen2": lambda text: regex.findall(QWEN_WORDS, text),
    "llama-bpe": lambda text: regex.findall(LLAMA_WORDS, text),
    "dbrx": lambda text: regex.findall(LLAMA_WORDS, text),
    "gpt-4o": lambda text: regex.findall(CASED_WORDS, text),
    "gpt-2": lambda text: regex.findall(GPT2_WORDS, text),
    "default": lambda text: regex.findall(GPT2_WORDS, text),
}


def merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as the definition has it: join the best-ranked adjacent pair until none is left."""
    parts = [bytes_to_unicode()[byte] for byte in word.encode()]
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


def reference_ids(text: str, cut: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    return [vocabulary[part] for word in CUTS[cut](text) for part in merged(word, ranks)]


TEXTS = [
    "hello world 112 12 1",
    "I'll pay $12.50 in 2024, ok?  yes\n\n  def f(x):\n\treturn x+1\r\n",
    "naïve café 東京 Привет 😀👩‍👩‍👧 ١٢٣ ½",
    " leading and trailing  ",
    "<b>it's</b>   HE'LL",
]
SOME_TEXT = st.text(st.sampled_from("hello wor12'\n\t .<é東½😀LS") | st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize("pre", CUTS)
def test_tokens_are_those_of_the_definition(
    pre: str, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama, metadata={"tokenizer.ggml.pre": pre})
    directory = converted(file)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}

    def check(text: str) -> None:
        text = tokenizer.backend_tokenizer.normalizer.normalize_str(text) if pre == "qwen2" else text
        if any(special in text for special in tokenizer.get_added_vocab()):
            return  # Hypothesis knows the strings of our sources; special tokens have a test of their own
        ids = tokenizer(text)["input_ids"]
        assert ids == reference_ids(text, pre, model["vocab"], ranks)
        assert tokenizer.decode(ids) == text

    for text in TEXTS:
        check(text)
    settings(max_examples=60, deadline=None)(given(SOME_TEXT)(check))()


@pytest.mark.parametrize(("name", "kept"), [("Phi 3.5 Mini Instruct (phi-3)", ""), ("Llama", " \n")])
def test_special_tokens_of_phi_3_take_the_spaces_behind_them(
    name: str, kept: str, tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama, metadata={"general.name": name})
    tokenizer = AutoTokenizer.from_pretrained(converted(file))
    assert tokenizer("<|im_end|> \nhello")["input_ids"] == tokenizer(f"<|im_end|>{kept}hello")["input_ids"]
    assert len(tokenizer("<|endoftext|> hello")["input_ids"]) == len(tokenizer("<|endoftext|>hello")["input_ids"]) + 1


def test_special_tokens_are_single_ids_and_padding_is_dropped(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama)))
    tool = tokenizer.convert_tokens_to_ids("<tool>")
    assert tokenizer("<|im_start|>hello<|im_end|><tool><|endoftext|>")["input_ids"] == [1, 262, 2, tool, 0]
    assert tokenizer.decode([1, 262, tool, 2], skip_special_tokens=True) == "hello<tool>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert "[PAD0]" not in tokenizer.get_vocab()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("pre", "flag", "starts_with_bos"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False), ("smollm", True, True)],
)
def test_bos_is_added_when_the_file_or_its_family_says_so(
    pre: str,
    flag: bool | None,
    starts_with_bos: bool,
    tiny_llama: PreTrainedModel,
    write_gguf: GgufWriter,
    tmp_path: Path,
) -> None:
    metadata = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": flag}
    tokenizer = AutoTokenizer.from_pretrained(converted(write_gguf(tmp_path / "a.gguf", tiny_llama, metadata=metadata)))
    assert (tokenizer("hello")["input_ids"][0] == 1) is starts_with_bos
    assert tokenizer("hello", add_special_tokens=False)["input_ids"] == [262]


def test_generation_stops_at_every_end_token(
    tiny_llama: PreTrainedModel, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    directory = converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama))
    assert DecoderSpec.from_config_file(directory).eos_ids == (2, 0)


def test_a_qwen_file_without_a_named_cut_is_cut_as_qwen2(
    tiny_sizes: dict[str, int], with_bf16_weights: Rounding, write_gguf: GgufWriter, tmp_path: Path
) -> None:
    model = with_bf16_weights(Qwen2ForCausalLM(Qwen2Config(**tiny_sizes)))
    metadata = {"tokenizer.ggml.pre": None, "tokenizer.chat_template": None}
    tokenizer = AutoTokenizer.from_pretrained(converted(write_gguf(tmp_path / "a.gguf", model, metadata=metadata)))
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert tokenizer.chat_template is None


@pytest.mark.model
def test_the_embedded_tokenizer_is_the_published_one(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == 49_152
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt)["input_ids"]
    assert [ids.count(special) for special in (0, 1, 2)] == [0, 3, 2]
    assert ids[:4] == [1, 9690, 198, 2683]
    model = json.loads((smollm2_dir / "tokenizer.json").read_text())["model"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == reference_ids(text, "smollm", model["vocab"], ranks)
        assert tokenizer.decode(ids) == text
