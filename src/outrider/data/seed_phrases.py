"""Prompts that the target writes itself (Magpie: Xu et al., arXiv 2406.08464).

A chat model has learnt what users write. Given the chat template up to the place where the user's text would stand, and
nothing more, it continues with a text that a user could have written there:

    <|im_start|>user\\n  ->  "How can I manage my time better?"<|im_end|>

The place is found in the tokenizer's own template: a conversation is rendered with a marker as the user's text, and cut
before it. What follows the marker says how a user's turn ends. So nothing here knows any one template.

From an empty seed phrase a model writes what it saw most. Most prompts therefore begin with the first words of a kind
of task, drawn from `SEED_PHRASES`, with one of several temperatures. Everything that is drawn for a prompt is a
function of the seed and of the prompt's number.

Example: `draw(seed=0, number=7, seed_phrases=SEED_PHRASES)` may be the seed phrase "Translate" of the kind
    "translation".
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from outrider.errors import ConfigError
from outrider.requests.chat import render

__all__ = ["SEED_PHRASES", "SeedPhrase", "UserTurn", "draw", "read_seed_phrases", "user_turn"]

MARKER = "xMARKERx"
FREE_SHARE = 0.2
"""Share of prompts that begin with nothing given."""

SEED_PHRASES: Mapping[str, tuple[str, ...]] = {
    "question": ("What", "How", "Why", "Which", "When", "Who", "Is", "Does", "What is the difference between"),
    "request": ("Can you", "Could you", "I need", "I am", "I have", "My", "Please", "Help me", "Give me", "Suggest"),
    "explanation": ("Explain", "Describe", "Compare", "Define", "Tell me about"),
    "writing": (
        "Write",
        "Write a short story",
        "Write a letter",
        "Write an email",
        "Write a poem",
        "Compose",
        "Imagine",
    ),
    "code": (
        "Write a Python function",
        "Write a program",
        "Write a SQL query",
        "Implement",
        "How do I use",
        "What does this code do?\n\n```python\n",
        "Fix the bug in this code:\n\n```python\n",
        "Add comments to this code:\n\n```python\n",
    ),
    "maths": (
        "Solve",
        "Calculate",
        "Find the",
        "If",
        "A train",
        "A farmer",
        "How many",
        "What is the value of",
        "Prove that",
    ),
    "translation": ("Translate", "Translate the following sentence", "Translate this text into", "How do you say"),
    "summary": (
        "Summarize",
        "Summarize the following text:\n\n",
        "Summarize this article in three sentences:\n\n",
        "Extract the key points from the following text:\n\n",
    ),
    "document": (
        "Read the following passage and answer the question.\n\n",
        "Based on the text below, answer the question.\n\n",
        "Here is an email that I received:\n\n",
    ),
    "editing": (
        "Rewrite",
        "Rewrite the following paragraph",
        "Correct the grammar of the following text:\n\n",
        "Make this text more concise:\n\n",
        "Proofread",
        "Paraphrase",
    ),
    "structure": (
        "List",
        "Create a table",
        "Generate a JSON object",
        "Classify",
        "Extract",
        "Convert",
        "Make a list of",
    ),
    "idea": ("Brainstorm", "Plan", "Design", "Create", "Develop", "Act as", "You are"),
}


class SeedPhrase(NamedTuple):
    """The beginning of one prompt: its kind, its first words, and the noise it is written with."""

    kind: str
    words: str
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class UserTurn:
    """The beginning and the end of a user's text in a conversation.

    text        rendered up to the first character of the user's text
    end_tokens  tokens that end it
    end_text    the string that ends it, where the template marks the end in plain text; may be empty
    """

    text: str
    end_tokens: frozenset[int]
    end_text: str


def read_seed_phrases(path: Path | None) -> Mapping[str, tuple[str, ...]]:
    """Return our own seed phrases, or those of a file: one a line, `\\n` standing for a line's end.

    Raises:
        ConfigError: if the file cannot be read or is empty.
    """
    if path is None:
        return SEED_PHRASES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the seed phrases in {path} cannot be read ({error}); give one seed phrase a line, in UTF-8"
        ) from error
    words = tuple(line.replace("\\n", "\n") for line in lines if line.strip())
    if not words:
        raise ConfigError(f"{path} holds no seed phrase; give one a line")
    return {path.stem: words}


def draw(
    *, seed: int, number: int, turn: int, seed_phrases: Mapping[str, Sequence[str]], temperatures: Sequence[float]
) -> SeedPhrase:
    """Draw the beginning of turn `turn` of prompt `number`; nothing is given to a turn that follows an answer."""
    chance = random.Random(f"outrider {seed} {number} {turn}")
    temperature, noise = chance.choice(temperatures), chance.getrandbits(62)
    if turn > 0 or chance.random() < FREE_SHARE:
        return SeedPhrase("free", "", temperature, noise)
    kind = chance.choice(sorted(seed_phrases))
    return SeedPhrase(kind, chance.choice(seed_phrases[kind]), temperature, noise)


def user_turn(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> UserTurn:
    """Render these messages up to the user's next turn.

    Raises:
        ConfigError: if the tokenizer has no chat template, or one that does not show the user's text as it is.
        RequestError: if the template refuses these messages.
    """
    if tokenizer is None or not tokenizer.chat_template:
        raise ConfigError("this target has no chat template, so it cannot write prompts; give some with --source")
    asked = [*messages, {"role": "user", "content": MARKER}]
    text = render(tokenizer, asked)
    before, found, after = text.rpartition(MARKER)
    if not found:
        raise ConfigError("the chat template does not show the user's text as it is; give prompts with --source")
    first = tokenizer(after.strip(), add_special_tokens=False)["input_ids"][:1] if after.strip() else []
    if first and first[0] in special_ids(tokenizer):
        return UserTurn(text=before, end_tokens=frozenset(first), end_text="")
    return UserTurn(text=before, end_tokens=frozenset(), end_text=after.strip())


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that stand for no text."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))
