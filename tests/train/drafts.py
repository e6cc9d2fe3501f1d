"""What the tests of PARD and of distillation share: a target with files, its texts, and a few training steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from outrider import Engine, SamplingParams, load_target
from outrider.data.texts import Corpus, Example
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.proposer import Proposer
from outrider.proposers.none import NoProposer
from outrider.target import Target
from outrider.testing.directory import write_tiny_model
from outrider.train.batch import Batch, collate
from outrider.train.objective import Objective, Teacher

PROMPTS = ([1, 2, 3], [40, 41], [77, 5, 6, 7])
NUM_NEW = 30
SAMPLING = SamplingParams(temperature=1.0, seed=11)


def stored_target(directory: Path, dtype: str = "float64", seed: int = 0) -> Target:
    write_tiny_model(directory, seed=seed)
    return load_target(str(directory), dtype=dtype)


def corpus_of(target: Target) -> Corpus:
    tokens_T = torch.cat([example.tokens_T for example in texts_of(target)])
    counts_V = torch.bincount(tokens_T, minlength=target.spec.vocab_size)
    return Corpus(counts_V=counts_V, num_tokens=len(tokens_T))


def teacher_of(target: Target, dtype: torch.dtype = torch.float32) -> Teacher:
    """With weights of `dtype`; `Teacher.of` is fp32."""
    fp32 = Teacher.of(target, "cpu")
    tied = fp32.head_VE is fp32.embedding_VE
    embedding_VE = target.shared_weights().embedding_VE.to(dtype)
    return Teacher(target, embedding_VE, embedding_VE if tied else target.shared_weights().head_VE.to(dtype))


@cache
def texts_of(target: Target, feature_layers: tuple[int, ...] = ()) -> list[Example]:
    """Prompts with what the target writes after them, which is what is learnt, and its features."""
    written = Engine(target, NoProposer()).generate(
        [list(prompt) for prompt in PROMPTS], replace(SAMPLING, max_tokens=NUM_NEW, ignore_eos=True)
    )
    examples = []
    for prompt, done in zip(PROMPTS, written, strict=True):
        tokens = [*prompt, *done.tokens]
        features = (
            target.open(target.plan(1, len(tokens), 1), feature_layers).prefill([0], [tokens])[0]
            if feature_layers
            else None
        )
        learn_T = torch.arange(len(tokens)) >= len(prompt)
        examples.append(Example(torch.tensor(tokens), learn_T, None if features is None else features.clone()))
    return examples


def batch_of(examples: Sequence[Example]) -> Batch:
    """The first two texts in one row, the rest in another."""
    return collate([examples[:2], examples[2:]], 128)


def train(objective: Objective, batch: Batch, steps: int, learning_rate: float = 5e-3) -> float:
    """Some steps of Adam on one batch; the last loss."""
    optimizer = torch.optim.Adam(objective.module.parameters(), learning_rate)
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros(())
    for _ in range(steps):
        outcome = objective(batch, generator)
        loss = outcome.loss / outcome.num_texts
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return loss.item()


def tau(target: Target, proposer: Proposer) -> float:
    """Tokens per step when the target writes the training texts again."""
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, proposer, record=records.append)
    engine.generate([list(p) for p in PROMPTS], replace(SAMPLING, max_tokens=NUM_NEW, ignore_eos=True))
    steps = [record for record in records if isinstance(record, StepRecord)]
    prefills = [record for record in records if isinstance(record, PrefillRecord)]
    return summarize(steps, prefills).num_emitted_tokens / len(steps)


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
