"""Draft models on disk: Hugging Face directories, in two storage forms.

*Complete*: every tensor of a causal language model under its usual name, with the target's vocabulary size and
tokenizer. vLLM and `transformers` load it unchanged.

*Slim*: a draft model that shares the target's embedding and output head stores neither. Its config has

    "outrider": {"shares": ["embedding", "head"], "target_fingerprint": ...}

and the loader takes both from the target, without a copy if the target is native, and refuses any other target. The
embedding of a mask token is a tensor of its own, `model.mask_embedding` [E]; in the complete form it is the embedding's
row of that token. A complete draft model with a mask stores its head apart from its embedding, since they differ there.

Targets of one family pad their vocabulary differently (151 936 rows in Qwen2.5-0.5B, 152 064 in Qwen2.5-7B, the same
tokens). `widened` appends rows to embedding and head; `pad_draft` rewrites a directory that way.

Worked example: for SmolLM2-135M (49 152 tokens, E = 576, bf16) two layers are 14 MB slim and 127 MB complete.

Shapes: V the target's vocabulary, E hidden size.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.errors import CheckpointError, on_one_line
from outrider.formats.hf_config import config_of
from outrider.formats.locate import locate
from outrider.formats.store import check_target, provenance, write_checkpoint
from outrider.formats.tensors.stored import fuse, fused_names
from outrider.formats.tokenizer import load_tokenizer
from outrider.formats.weights import Weights, read_weights, settle_head
from outrider.models.spec import DecoderSpec
from outrider.records.display import shown_json
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = [
    "EMBEDDING",
    "HEAD",
    "MASK",
    "StoredDraft",
    "check_vocabulary",
    "draft_facts",
    "pad_draft",
    "read_draft",
    "widened",
    "write_draft",
]

EMBEDDING, HEAD, MASK = "model.embed_tokens.weight", "lm_head.weight", "model.mask_embedding"
SHARES = ["embedding", "head"]
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, eq=False)
class StoredDraft:
    """A draft model as stored: raw config, shape, tensors in their stored dtype, and the form.

    A slim model has no embedding and head among its tensors; `mask_id` is the token of its `model.mask_embedding`.
    """

    directory: Path
    config: Mapping[str, Any]
    spec: DecoderSpec
    tensors: Mapping[str, Tensor]
    is_slim: bool
    mask_id: int | None


def read_draft(name: str, target: Target) -> StoredDraft:
    """Read a draft model to train it further or to pad it; it may have fewer vocabulary rows than the target.

    Raises:
        CheckpointError: naming the tensor, the size or the token that does not fit.
    """
    directory = locate(name)
    config = read_json(directory / "config.json")
    spec = DecoderSpec.from_config_file(directory)
    weights = read_weights(directory)
    if draft_facts(config).get("shares"):
        return _read_slim(directory, config, spec, weights, target)
    spec = settle_head(spec, weights)
    tokenizer = load_tokenizer(directory, target.spec.trusts_code)
    if tokenizer is not None and target.tokenizer is not None:
        _check_tokens(name, tokenizer, target)
    if spec.vocab_size > target.spec.vocab_size:
        raise CheckpointError(_other_size(name, spec.vocab_size, target))
    tensors = {key: weights[key] for key in spec.weight_shapes()}
    return StoredDraft(directory, config, spec, tensors, is_slim=False, mask_id=None)


def _read_slim(
    directory: Path, config: Mapping[str, Any], spec: DecoderSpec, weights: Weights, target: Target
) -> StoredDraft:
    facts = draft_facts(config)
    if facts["shares"] != SHARES:
        shares = on_one_line(str(facts["shares"]))
        raise CheckpointError(f"{directory} shares {shares} with its target; only {SHARES} is known here")
    check_target(config, target, directory)
    ours = target.spec
    sizes = {"vocab_size": ours.vocab_size, "hidden_size": ours.hidden_size}
    for what, wanted in sizes.items():
        if getattr(spec, what) != wanted:
            raise CheckpointError(
                f"{directory} has {what} {getattr(spec, what)} but {ours.name}, whose embedding and head it shares, "
                f"has {wanted}; check that config.json belongs to these weights"
            )
    shapes = {key: shape for key, shape in spec.weight_shapes().items() if key not in (EMBEDDING, HEAD)}
    mask_id = facts.get("mask_id")
    if mask_id is not None:
        shapes[MASK] = (spec.hidden_size,)
        if type(mask_id) is not int or not 0 <= mask_id < spec.vocab_size:
            raise CheckpointError(
                f"{directory} has mask_id {shown_json(mask_id)}, outside its {spec.vocab_size} tokens"
            )
    weights.check(shapes)
    return StoredDraft(directory, config, spec, {key: weights[key] for key in shapes}, is_slim=True, mask_id=mask_id)


def check_vocabulary(target: Target, model: Target) -> None:
    """Refuse a draft model with another vocabulary.

    Raises:
        CheckpointError: naming the first difference.
    """
    if target.tokenizer is not None and model.tokenizer is not None:
        _check_tokens(model.spec.name, model.tokenizer, target)
    if target.spec.vocab_size != model.spec.vocab_size:
        raise CheckpointError(_other_size(model.spec.name, model.spec.vocab_size, target))


def _other_size(name: str, vocab_size: int, target: Target) -> str:
    remedy = (
        "pad it to the target's with outrider.formats.hf_draft.pad_draft(source, directory, target)"
        if vocab_size < target.spec.vocab_size
        else "a draft model must share the target's vocabulary"
    )
    ours = target.spec
    return f"draft model {name} has {vocab_size} tokens but target {ours.name} has {ours.vocab_size}; {remedy}"


def _check_tokens(name: str, tokenizer: Any, target: Target) -> None:
    want, got = target.tokenizer.get_vocab(), tokenizer.get_vocab()
    if want != got:
        token = min(token for token in want.keys() | got.keys() if want.get(token) != got.get(token))
        raise CheckpointError(
            f"draft model {name} has another vocabulary than {target.spec.name}: token {token!r} is "
            f"{got.get(token)} there and {want.get(token)} here"
        )


def write_draft(
    directory: Path,
    spec: DecoderSpec,
    tensors: Mapping[str, Tensor],
    target: Target,
    dtype: torch.dtype,
    facts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> None:
    """Write a draft model into an existing directory.

    Args:
        tensors: tensors by their Hugging Face names; slim without embedding and head, else complete. With
            `model.mask_embedding` among them, `facts` names the `mask_id`.
        facts: further entries of the config's `outrider` key.
        extra: further keys of the config.
    """
    is_slim = EMBEDDING not in tensors
    own = provenance(target, **facts) | ({"shares": SHARES} if is_slim else {})
    config = config_of(spec, dtype) | dict(extra) | {"outrider": own}
    joined = {
        name: fuse(name, [tensors[member] for member in members]) for name, members in fused_names(tensors).items()
    }
    write_checkpoint(directory, {name: tensor.to(dtype) for name, tensor in joined.items()}, config)
    if not is_slim:
        _copy_tokenizer(target, directory)


def pad_draft(source: str, directory: Path, target: Target) -> None:
    """Rewrite a complete draft model, with as many vocabulary rows as the target has, into an existing directory.

    Raises:
        CheckpointError: if it is slim, or has more rows than the target.
    """
    stored = read_draft(source, target)
    if stored.is_slim:
        raise CheckpointError(f"{source} shares its target's embedding, which has every row already; use it as it is")
    tied = stored.spec.tie_word_embeddings
    # `settle_head` may have untied the embeddings against the config
    config = dict(stored.config) | {"vocab_size": target.spec.vocab_size, "tie_word_embeddings": tied}
    write_checkpoint(directory, widened(stored.tensors, target.spec.vocab_size), config)
    _copy_tokenizer(target, directory)


def widened(tensors: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Return tensors with embedding and head padded to `vocab_size` rows, each new row the mean of the old ones.

    No text holds the new tokens, and a mean row never has the largest logit.
    """
    wide = dict(tensors)
    for name in (EMBEDDING, HEAD):
        if name in wide and len(wide[name]) < vocab_size:
            rows_VE = wide[name]
            mean_E = rows_VE.to(torch.float32).mean(0).to(rows_VE.dtype)
            wide[name] = torch.cat([rows_VE, mean_E.expand(vocab_size - len(rows_VE), -1)])
    return wide


def draft_facts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `outrider` key of a config; empty without one."""
    known = config.get("outrider")
    return known if isinstance(known, dict) else {}


def _copy_tokenizer(target: Target, directory: Path) -> None:
    source = target.checkpoint()
    if source is None:
        return
    for name in TOKENIZER_FILES:
        file = source / name
        # a draft model may be written into the target's own directory
        if file.is_file() and file.parent.resolve() != directory.resolve():
            shutil.copyfile(file, directory / name)
