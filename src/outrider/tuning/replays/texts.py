"""The target's answers, written once: the text that every proposer is replayed along, and plain decoding's own.

They are written in batches by the engine with the empty draft, with the seeds that the benchmark uses. A proposer that
drafts nothing (`_Keeper`) asks for the feature layers that the drafters read, and keeps their states.

An answer is *degenerate* where an n-gram of `LOOP` tokens occurs more than `MOST` times: a loop that any lookup copies,
and that no reader wants. Such conversations are counted and left out.

Example: the answer "a b a b a b ..." of 40 tokens holds its first eight tokens 17 times.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import Conversation
from outrider.draft import Draft
from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Commit, DraftLimit, Proposer, ProposerSpec, Session, SessionPlan
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.tuning.replays.known import KnownText

__all__ = ["Text", "Written", "is_degenerate", "write_texts"]

LOOP: Final = 8
MOST: Final = 4


@dataclass(frozen=True, eq=False)
class Text:
    """One answer in its conversation."""

    conversation: str
    turn: int
    known: KnownText
    sampling: SamplingParams

    @property
    def key(self) -> tuple[str, int]:
        return self.conversation, self.turn


class Written(NamedTuple):
    """Answers, and the seconds that reading their prompts took."""

    texts: list[Text]
    prefill_s: float


def is_degenerate(answer: Sequence[int]) -> bool:
    """Return whether an n-gram of `LOOP` tokens occurs more than `MOST` times.

    >>> is_degenerate([1, 2] * 10), is_degenerate(range(20))
    (True, False)
    """
    grams = Counter(tuple(answer[place : place + LOOP]) for place in range(len(answer) - LOOP + 1))
    return max(grams.values(), default=0) > MOST


def write_texts(
    target: Target,
    conversations: Sequence[Conversation],
    rules: Rules,
    *,
    batch: int,
    max_len: int,
    layers: Sequence[int],
    told: Callable[[int], None] = lambda num_tokens: None,
) -> Written:
    """Let the target answer every turn of every conversation.

    Args:
        layers: feature layers whose states are kept.
        told: called with the number of tokens written so far.
    """
    keeper, log = _Keeper(tuple(layers)), _Log()
    engine = Engine(target, keeper, max_batch=batch, max_len=max_len, prefix_cache_bytes=0, record=log)
    dialogues = [Dialogue(one) for one in conversations]
    texts: list[Text] = []
    num_tokens = 0
    for turn in range(max(len(one.turns) for one in conversations)):
        asked: dict[int, tuple[Dialogue, list[int], SamplingParams]] = {}
        answers: dict[int, list[int]] = {}
        for dialogue in [one for one in dialogues if turn < len(one.conversation.turns)]:
            prompt = dialogue.ask(turn, target.tokenizer)
            sampling = rules.sampling(dialogue.conversation, turn)
            if len(prompt) >= max_len:
                dialogues.remove(dialogue)
                continue
            params = replace(sampling, max_tokens=rules.limit(dialogue.conversation))
            request = engine.add(prompt, params)
            asked[request], answers[request] = (dialogue, prompt, params), []
        for event in engine.run():
            event.raise_for_error()
            answers[event.request] += event.tokens
            num_tokens += len(event.tokens)
            told(num_tokens)
        for request, (dialogue, prompt, params) in asked.items():
            dialogue.answer(answers[request], target.tokenizer)
            known = KnownText(tuple(prompt), tuple(answers[request]), keeper.states_of(prompt))
            texts.append(Text(dialogue.conversation.id, turn, known, params))
    return Written(texts, log.prefill_s)


class _Log:
    """The seconds of all prefills."""

    def __init__(self) -> None:
        self.prefill_s = 0.0

    def __call__(self, record: StepRecord | PrefillRecord) -> None:
        self.prefill_s += record.target_s if isinstance(record, PrefillRecord) else 0.0


@final
class _Keeper(Proposer):
    """The empty draft, which keeps the features that it is shown, by prompt."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__(None)
        self.layers = layers
        self.kept: dict[tuple[int, ...], list[Tensor]] = {}

    @property
    def spec(self) -> ProposerSpec:
        return ProposerSpec(max_nodes=0, feature_layers=self.layers)

    def open(self, plan: SessionPlan) -> Session:
        return _KeeperSession(self, plan.device)

    def states_of(self, prompt: Sequence[int]) -> Tensor | None:
        """Return the states of a finished text, [T, L, E]."""
        if not self.layers:
            return None
        states_TF = torch.cat(self.kept[tuple(prompt)])
        return states_TF.view(len(states_TF), len(self.layers), -1)


@final
class _KeeperSession(Session):
    def __init__(self, keeper: _Keeper, device: torch.device) -> None:
        self.keeper = keeper
        self.device = device
        self.prompts: dict[int, tuple[int, ...]] = {}

    def admit(self, slot: int, tokens: Sequence[int], sampling: SamplingParams, features_TF: Tensor | None) -> None:
        self.prompts[slot] = tuple(tokens)
        if features_TF is not None:
            self.keeper.kept[self.prompts[slot]] = [features_TF.clone()]

    def propose(self, slots: Sequence[int], limits: Sequence[DraftLimit]) -> Draft:
        return Draft.empty(len(slots), self.device)

    def observe(self, commits: Sequence[Commit], features_BMF: Tensor | None) -> None:
        if features_BMF is not None:
            for commit in commits:
                self.keeper.kept[self.prompts[commit.slot]].append(features_BMF[commit.place, commit.rows].clone())

    def release(self, slot: int) -> None:
        del self.prompts[slot]
