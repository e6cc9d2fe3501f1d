"""The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.

Byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2) is three tables and one rule: the vocabulary, the merges
and the special tokens, which the file holds; and the rule that splits text before merging, of which the file holds only
a name, `tokenizer.ggml.pre`. The rule decides token ids as much as the merges do, so an unknown name is refused.

    smollm      single digits, then GPT-2's words
    qwen2       NFC; single digits; a word includes one sign before it
    llama-bpe   as qwen2 but up to three digits, and a word that is one token is never split; text starts with BOS
    dbrx        as llama-bpe, but merges split words and no BOS is added
    gpt-4o      up to three digits; a word ends where a small letter meets a capital one, and takes "'s" (also `llama4`)
    gpt-2       GPT-2's words (also the meaning of `default`)

A file of SentencePiece's pieces has neither merges nor such a rule; see `sentencepiece.py`.

Example: smollm splits "in 2024" into "in", " ", "2", "0", "2", "4"; gpt-2 into "in", " 2024".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from outrider.errors import CheckpointError, as_error, nearest
from outrider.formats.gguf.sentencepiece import MODEL, piece_tokenizer
from outrider.records.display import shown_json
from outrider.records.json_fields import Fields

__all__ = ["build_tokenizer", "end_ids", "write_tokenizer"]

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
END_TOKENS: Final = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<end_of_turn>"),
    *("<|end|>",),
)
KEPT_SPACE: Final = ("<unk>", "<s>", "<|endoftext|>")
SIGNED_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The rule by which one family splits text before merging."""

    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _gpt2_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _signed_words(digits: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    words = pre_tokenizers.Split(Regex(SIGNED_WORDS.replace("DIGITS", digits)), behavior="isolated")
    return words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _cased_words() -> tuple[pre_tokenizers.PreTokenizer, ...]:
    first, later = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    sign, end = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    words = f"{sign}{first}*{later}+{end}|{sign}{first}+{later}*{end}"
    others = r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cut = pre_tokenizers.Split(Regex(words + others), behavior="isolated")
    return cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


CASED: Final = Cut(steps=_cased_words())
GPT2: Final = Cut(steps=(_gpt2_words(),))
CUTS: Final[Mapping[str, Cut]] = {
    "smollm": Cut(steps=(pre_tokenizers.Digits(individual_digits=True), _gpt2_words())),
    "qwen2": Cut(steps=_signed_words(r"\p{N}"), nfc=True),
    "llama-bpe": Cut(steps=_signed_words(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True),
    "dbrx": Cut(steps=_signed_words(r"\p{N}{1,3}")),
    "gpt-4o": CASED,
    "llama4": CASED,
    "gpt-2": GPT2,
    "default": GPT2,
}


@dataclass(frozen=True, kw_only=True)
class StoredVocabulary:
    """Tokens with their types, merges, and the ids of special tokens by name (bos, eos, padding, unknown, eot, eom).

    Without merges the tokens are SentencePiece's pieces (`has_pieces`).
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[tuple[str, str]]
    ids: Mapping[str, int]
    has_pieces: bool = False

    @classmethod
    def read(cls, metadata: Fields) -> "StoredVocabulary":
        """Read and check the tables: one type per token, merges of pairs, ids within the vocabulary."""
        model = metadata.text("tokenizer.ggml.model", "None")
        if model not in ("gpt2", MODEL):
            raise CheckpointError(
                f"{metadata.where}: the GGUF tokenizer model is {shown_json(model)}, only 'gpt2' (byte-level BPE) and "
                f"{MODEL!r} (SentencePiece's BPE) are converted; use the original checkpoint"
            )
        tokens = metadata.texts("tokenizer.ggml.tokens")
        kinds = metadata.integers("tokenizer.ggml.token_type", low=0, high=6, length=len(tokens))
        ids = {
            name: metadata.integer(f"tokenizer.ggml.{name}_token_id", None, low=0, high=len(tokens) - 1)
            for name in ("bos", "eos", "padding", "unknown", "eot", "eom")
        }
        merges = []
        if model == "gpt2":
            merges = [_pair(merge, metadata) for merge in metadata.texts("tokenizer.ggml.merges")]
        known = {name: place for name, place in ids.items() if place is not None}
        return cls(tokens=tokens, kinds=kinds, merges=merges, ids=known, has_pieces=model == MODEL)


def _pair(merge: str, metadata: Fields) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise CheckpointError(
            f"{metadata.where}: tokenizer.ggml.merges holds {shown_json(merge)}, which is no pair; use the original"
            " model"
        )
    return left, right


def write_tokenizer(metadata: Fields, architecture: str, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template, if the file has one).

    Raises:
        CheckpointError: for a tokenizer that is damaged, not byte-level BPE, or has an unknown pre-tokenizer.
    """
    stored = StoredVocabulary.read(metadata)
    build_tokenizer(metadata, architecture).save(str(directory / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    config = {f"{named[key]}_token": stored.tokens[place] for key, place in stored.ids.items() if key in named} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.integer(f"{architecture}.context_length"),
    }
    template = metadata.text("tokenizer.chat_template", None)
    if template is not None:
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def build_tokenizer(metadata: Mapping[str, Any], architecture: str) -> Tokenizer:
    """Build the tokenizer that this metadata describes."""
    fields = _fields(metadata)
    stored = StoredVocabulary.read(fields)
    tokens, kinds = stored.tokens, stored.kinds
    # as in llama.cpp, since no key says it: special tokens of Phi-3 take the spaces behind them
    strips = any(name in fields.text("general.name", "").lower() for name in ("phi-3", "phi3"))
    if stored.has_pieces:
        tokenizer, adds_bos = piece_tokenizer(fields, tokens, kinds, stored.ids), True
    else:
        cut = _cut(fields, architecture)
        tokenizer, adds_bos = _byte_tokenizer(fields, stored, cut), cut.adds_bos
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False, rstrip=strips and token not in KEPT_SPACE)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED) and token
        ]
    )
    bos = stored.ids.get("bos")
    if bos is not None and fields.flag("tokenizer.ggml.add_bos_token", adds_bos):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _byte_tokenizer(fields: Fields, stored: StoredVocabulary, cut: Cut) -> Tokenizer:
    # unused entries fill the vocabulary up and must not match text
    vocabulary = {token: index for index, token in enumerate(stored.tokens) if stored.kinds[index] != UNUSED}
    with as_error(CheckpointError, f"{fields.where}: its tokenizer cannot be built", "use the original checkpoint"):
        tokenizer = Tokenizer(BPE(vocabulary, stored.merges, ignore_merges=cut.ignore_merges))
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cut.steps))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return end-of-text ids: the file's own, then its other control tokens that end a turn or a document."""
    stored = StoredVocabulary.read(_fields(metadata))
    named = [stored.ids.get(key) for key in ("eos", "eot", "eom")]
    position = {token: index for index, token in enumerate(stored.tokens) if stored.kinds[index] == CONTROL}
    known = [position.get(token) for token in END_TOKENS]
    return list(dict.fromkeys(index for index in named + known if index is not None))


def _fields(metadata: Mapping[str, Any]) -> Fields:
    return metadata if isinstance(metadata, Fields) else Fields(metadata, "the GGUF metadata")


def _cut(metadata: Fields, architecture: str) -> Cut:
    fallback = "qwen2" if architecture.startswith("qwen") else "default"
    name = metadata.text("tokenizer.ggml.pre", fallback)
    if name not in CUTS:
        raise CheckpointError(f"the GGUF pre-tokenizer {shown_json(name)} is not known{nearest(name, CUTS)}")
    return CUTS[name]
