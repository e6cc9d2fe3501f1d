"""Playing conversations: the user's messages are given, the answers are the model's own.

Each turn of a conversation is one request; it waits until the group's earlier turns are answered. The prompt is the
conversation so far under the target's chat template (or, for a target without one, its plain text). Times are taken
from outside, as a user would: from submission to the first token, and to the last.

Example: two conversations of two turns at batch 2 are four requests in two waves.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from outrider.bench.plan import Group
from outrider.bench.unit import Answer
from outrider.bench.workloads import Conversation
from outrider.engine import Engine
from outrider.sampling import Sampling
from outrider.text import encode

__all__ = ["Dialogue", "Rules", "answer_seed", "longest_text", "play"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How answers are written: the limits and seeds that all contenders share.

    max_new_tokens  caps each conversation's own limit, if given
    max_len         longest text in tokens, prompt and answer
    """

    temperature: float
    repeat: int
    seed: int
    max_new_tokens: int | None
    max_len: int
    ignore_eos: bool

    def limit(self, conversation: Conversation) -> int:
        cap = conversation.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        return min(conversation.max_new_tokens, cap)

    def sampling(self, conversation: Conversation, turn: int) -> Sampling:
        return Sampling(temperature=self.temperature, seed=answer_seed(self.seed, conversation.id, turn, self.repeat))


def answer_seed(seed: int, conversation: str, turn: int, repeat: int) -> int:
    """Another seed for each answer and repeat, and the same one for every method."""
    digest = hashlib.sha256(f"{seed} {conversation} {turn} {repeat}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


@dataclass
class Dialogue:
    """A conversation so far."""

    conversation: Conversation
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.conversation.system is not None:
            self.messages.append({"role": "system", "content": self.conversation.system})

    def ask(self, turn: int, tokenizer: Any) -> list[int]:
        """Say the user's message; the tokens of the prompt."""
        self.messages.append({"role": "user", "content": self.conversation.turns[turn]})
        if tokenizer is not None and not tokenizer.chat_template:
            return encode(tokenizer, "\n\n".join(message["content"] for message in self.messages) + "\n\n")
        return encode(tokenizer, self.messages)

    def answer(self, tokens: Sequence[int], tokenizer: Any) -> None:
        """Take in the model's answer."""
        text = tokenizer.decode(list(tokens), skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": text})


def longest_text(conversation: Conversation, tokenizer: Any, rules: Rules) -> int:
    """An upper bound on the tokens of the whole conversation, its answers as long as they may be."""
    dialogue = Dialogue(conversation)
    for turn in range(len(conversation.turns)):
        prompt = dialogue.ask(turn, tokenizer)
        dialogue.answer([], tokenizer)
    # An answer's text may be cut into tokens anew, and rarely into more than it was written with.
    return len(prompt) + (len(conversation.turns) + 1) * (rules.limit(conversation) + 16)


def play(engine: Engine, group: Group, rules: Rules) -> list[Answer]:
    """All answers of a group, turn by turn; a conversation ends early where its next prompt leaves no room."""
    dialogues = [Dialogue(conversation) for conversation in group]
    answers: list[Answer] = []
    for turn in range(max(len(conversation.turns) for conversation in group)):
        asked: dict[int, _Asked] = {}
        for dialogue in [dialogue for dialogue in dialogues if turn < len(dialogue.conversation.turns)]:
            conversation = dialogue.conversation
            start, prompt, sampling = (
                perf_counter(),
                dialogue.ask(turn, engine.tokenizer),
                rules.sampling(conversation, turn),
            )
            if len(prompt) >= rules.max_len:
                dialogues.remove(dialogue)
                continue
            request = engine.add(
                prompt, max_new_tokens=rules.limit(conversation), sampling=sampling, ignore_eos=rules.ignore_eos
            )
            asked[request] = _Asked(
                dialogue,
                start,
                Answer(
                    conversation=conversation.id,
                    turn=turn,
                    request=request,
                    seed=sampling.seed,
                    num_prompt_tokens=len(prompt),
                    tokens=(),
                ),
            )
        answers += _listen(engine, asked)
    return answers


@dataclass
class _Asked:
    dialogue: Dialogue
    start: float
    answer: Answer


def _listen(engine: Engine, asked: dict[int, _Asked]) -> list[Answer]:
    for event in engine.run():
        event.raise_for_error()
        one = asked[event.request]
        waited = perf_counter() - one.start
        one.answer = replace(
            one.answer,
            tokens=one.answer.tokens + event.tokens,
            ttft_s=waited if one.answer.ttft_s is None else one.answer.ttft_s,
            latency_s=waited,
            finished=event.finished,
        )
    for one in asked.values():
        one.dialogue.answer(one.answer.tokens, engine.tokenizer)
    return [one.answer for one in asked.values()]
