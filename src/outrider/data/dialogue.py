"""A conversation whose answers are the model's own, and the limits and seeds of those answers.

The prompt of a turn is the conversation so far under the target's chat template (or, for a target without one, its
plain text).

Example: `Dialogue(conversation).ask(0, tokenizer)` is the token ids of the first prompt.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.data.workloads import Conversation
from outrider.requests.text import encode
from outrider.sampling import SamplingParams

__all__ = ["Dialogue", "Rules", "answer_seed", "longest_text"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits and seeds of the answers, shared by all contenders.

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

    def sampling(self, conversation: Conversation, turn: int) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, seed=answer_seed(self.seed, conversation.id, turn, self.repeat)
        )


def answer_seed(seed: int, conversation: str, turn: int, repeat: int) -> int:
    """Return another seed for each answer and repeat, the same for every method."""
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
    """Return an upper bound on the tokens of the whole conversation, its answers at their limits."""
    dialogue = Dialogue(conversation)
    for turn in range(len(conversation.turns)):
        prompt = dialogue.ask(turn, tokenizer)
        dialogue.answer([], tokenizer)
    # An answer's text may be cut into tokens anew, and rarely into more than it was written with.
    return len(prompt) + (len(conversation.turns) + 1) * (rules.limit(conversation) + 16)
