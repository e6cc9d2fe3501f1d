"""The same prompts and the same head in our engine and on vLLM, and what may part their texts.

Both engines answer greedily and write on behind an end-of-text token. vLLM's first token comes out of the prompt and
its first draft follows it, while ours drafts from the prompt's last token on; so our prompts are one token longer, by
the answer's first, and steps of both begin at the same places. Ours may write a little further than vLLM, so that each
of its counted steps has room for a whole draft, as there.

    prompt p, answer a b c d e    vLLM: [a] from the prompt, then steps behind 1, ... tokens
                                  ours: prompt p a, steps behind 1, ... tokens

Our drafters keep their weights in the target's dtype here, as an export has them; in int8, as on the CPU by default,
they are another, slightly worse head.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from agreement import Played, Step
from safetensors.torch import load_file, save_file

from outrider.bench.cells import Cell, Group
from outrider.bench.config import BenchConfig
from outrider.bench.serving.contenders import serving_contenders
from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import load_category
from outrider.engine import Engine
from outrider.formats.mtp import final_norm_E, module_prefix, read_mtp, write_mtp
from outrider.formats.store import WEIGHTS
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposers import load_proposer
from outrider.proposers.method_spec import method_specs
from outrider.records.files import write_text
from outrider.records.json_fields import read_json
from outrider.results.equality.replay import replay
from outrider.results.equality.verdict import first_difference, judge_logits
from outrider.results.unit import Answer, UnitResult
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets import load_target
from outrider.vllm.environment import Vllm

__all__ = ["NUM_NODES", "NUM_TOKENS", "Parting", "Ties", "group_of_prompts", "plain_answers", "play_ours", "play_vllm"]

NUM_NODES = 3
NUM_TOKENS = 48
MAX_TOKENS = NUM_TOKENS + NUM_NODES + 1
"""Tokens that our engine writes: the last counted step, behind all tokens but one, has room for a whole draft."""
CATEGORIES = ("chat", "multi_turn", "writing", "reasoning", "code", "translation", "structured", "summary")


class Parting(NamedTuple):
    """Where an answer leaves ours: a tie if one rounding or another makes the target choose either token."""

    position: int
    is_tie: bool
    margin: float | None
    noise: float


@final
class Ties:
    """Tells ties from violations.

    Our rows are bit-exact, so ways of reading the text in our own engine show no noise. The noise is that between our
    logits and those of another implementation in the same dtype: `transformers`, which rounds activations as vLLM does.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    @cached_property
    def other(self) -> Target:
        return load_target(self.target.spec.name, dtype="bfloat16", device="cpu", backend="hf")

    def parting(self, prompt: Sequence[int], want: Sequence[int], got: Sequence[int]) -> Parting | None:
        """The first difference; None if there is none."""
        position = first_difference(want, got)
        if position is None:
            return None
        if position == min(len(want), len(got)):
            return Parting(position, False, None, 0.0)
        text = [*prompt, *want[:position]]
        logits_RV = torch.cat([replay(one, text, len(prompt), ()).float() for one in (self.target, self.other)])
        dtype = self.target.spec.dtype
        judged = judge_logits(logits_RV, want[position], got[position], SamplingParams(), len(text), dtype)
        return Parting(position, judged.is_tie, judged.margin, judged.noise)


def group_of_prompts() -> Group:
    """The first question of eight categories."""
    first = [load_category(name)[0] for name in CATEGORIES]
    return tuple(replace(one, turns=one.turns[:1], max_new_tokens=MAX_TOKENS) for one in first)


def prompts_of(group: Group, target: Target) -> list[list[int]]:
    return [Dialogue(one).ask(0, target.tokenizer) for one in group]


def plain_answers(target: Target, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Plain decoding in our engine."""
    engine = Engine(target, load_proposer("none", target), max_len=longest(prompts))
    return [one.tokens for one in engine.generate(prompts, SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True))]


def longest(prompts: Sequence[Sequence[int]]) -> int:
    return max(map(len, prompts)) + MAX_TOKENS + 1


def play_ours(target: Target, method: str, settings: Mapping[str, Any], group: Group, firsts: Sequence[int]) -> Played:
    """Our engine with a head; `firsts` are the answers' first tokens."""
    prompts = [[*prompt, first] for prompt, first in zip(prompts_of(group, target), firsts, strict=True)]
    answers, steps = [], []
    records: list[StepRecord | PrefillRecord] = []
    proposer = load_proposer(method, target, **settings, num_nodes=NUM_NODES, draft_vocab=0)
    engine = Engine(target, proposer, max_len=longest(prompts), record=records.append)
    for prompt in prompts:
        records.clear()
        [answer] = engine.generate([prompt], SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True))
        answers.append((prompt[-1], *answer.tokens)[:NUM_TOKENS])
        steps.append(_recorded(records, len(prompt) - 1))
    flat = [step for found in steps for step in found]
    return Played(
        answers=tuple(answers),
        steps=tuple(steps),
        num_drafts=len(flat),
        num_accepted_per_pos=tuple(sum(step.num_accepted > depth for step in flat) for depth in range(NUM_NODES)),
    )


def _recorded(records: Sequence[StepRecord | PrefillRecord], num_prompt: int) -> tuple[Step, ...]:
    """The steps that begin in front of the answer's end as vLLM has it."""
    slots = [record.slots[0] for record in records if isinstance(record, StepRecord)]
    counted = [slot for slot in slots if slot.context_length - num_prompt < NUM_TOKENS]
    assert {slot.num_nodes for slot in counted} == {NUM_NODES}
    return tuple(Step(slot.context_length - num_prompt, slot.num_accepted) for slot in counted)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a server is started with, beside the head.

    directory   where its log goes
    """

    vllm: Vllm
    target: Target
    group: Group
    directory: Path


def play_vllm(serving: Serving, method: str, head: Path) -> Played:
    """A vLLM server with an exported head, asked one prompt after the other."""
    target = serving.target
    prompts = prompts_of(serving.group, target)
    config = BenchConfig(engines=("vllm",), serve=("enforce-eager",), start_timeout=400.0, stall_timeout=300.0)
    joined = serving_contenders(
        config,
        method_specs([f"{method}:checkpoint={head},num_nodes={NUM_NODES}"]),
        target,
        prompts[0][:32],
        longest(prompts),
        serving.directory,
        tell=print,
        vllm=serving.vllm,
    )
    assert joined.contender_groups, joined.notes
    [[contender]] = joined.contender_groups
    cell = Cell(batch=1, repeat=0, temperature=0.0, category="prompts", groups=(serving.group,), teaching=(), first=0)
    rules = Rules(
        temperature=0.0,
        repeat=0,
        seed=0,
        max_new_tokens=NUM_TOKENS,
        max_len=longest(prompts),
        ignore_eos=True,
    )
    try:
        contender.open(1)
        return _played(contender.measure(cell, serving.group, rules))
    finally:
        contender.leave()


def _played(unit: UnitResult) -> Played:
    assert unit.counters is not None, "the server's counters did not grow by what arrived here"
    return Played(
        answers=tuple(answer.tokens for answer in unit.answers),
        steps=tuple(_steps(answer) for answer in unit.answers),
        num_drafts=unit.counters.num_drafts,
        num_accepted_per_pos=unit.counters.num_accepted_tokens_per_pos,
    )


def _steps(answer: Answer) -> tuple[Step, ...]:
    """One burst is one step; a larger one is several that arrived together, of which nothing is known."""
    ends = list(accumulate(answer.bursts))
    return tuple(Step(start, end - start - 1) for start, end in pairwise(ends) if end - start <= NUM_NODES + 1)


def write_normed_mtp(source: Path, directory: Path, target: Target) -> None:
    """The module of `source`, as well as may be one that reads the state behind the target's final norm.

    Its input norm is divided by the target's: the first drafted token is then about as good as before, later ones are
    worse. It is a head like any other for a comparison of engines, and no head to use.
    """
    found = read_mtp(source, target)
    tensors = {name: found.tensors[name] for name in found.shapes}
    norm_E, name = final_norm_E(target).float(), f"{module_prefix(0)}hidden_layernorm.weight"
    tensors[name] = tensors[name].float() / norm_E * norm_E.square().mean().sqrt()
    directory.mkdir()
    write_mtp(directory, replace(found, state="normed", tensors=tensors), torch.bfloat16)


def shift_layer_ids(head: Path, num_layers: int) -> None:
    """A bug in an export: the head's layer ids are one too high, as if they counted states behind a layer."""
    config = read_json(head / "config.json").plain()
    ids = [layer + 1 for layer in (2, num_layers // 2, num_layers - 3)]
    config["eagle_config"] = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": ids}
    write_text(head / "config.json", json.dumps(config))


def shift_vocabulary(head: Path, num_layers: int) -> None:
    """Another: each column of the head's output stands for the token behind its own."""
    tensors = load_file(head / WEIGHTS)
    tensors["d2t"] = tensors["d2t"] + 1
    save_file(tensors, head / WEIGHTS, metadata={"format": "pt"})
