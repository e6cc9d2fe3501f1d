"""Held-out text: prompts under the chat template, and the answers that the reference writes to them.

No model at hand was trained on the prompts of `workloads/`, and none wrote them: their perplexity is a language
model's. The answers are the reference's greedy text, where agreement is the share of tokens at which the candidate
would have gone on with the same text.

    prompts   all tokens but the first, of at most 256 tokens each
    answers   at most 64 tokens each, behind a whole prompt of at most 256 tokens

Example: 4,096 tokens of prompts are about 40 prompts of all ten categories.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, tee, zip_longest
from typing import NamedTuple

from outrider.data.dialogue import Dialogue
from outrider.data.workloads import CATEGORIES, Conversation, load_category, load_prompts
from outrider.engine import Engine
from outrider.errors import ConfigError, RunError
from outrider.proposers.method_spec import load_method, method_specs
from outrider.quality.compare import Passage
from outrider.quality.config import QualityConfig
from outrider.records.progress import Listener, Progress
from outrider.results.rows import PLAIN
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["Texts", "conversations_of", "held_out"]

LONGEST_PROMPT, LONGEST_ANSWER, SLOTS = 256, 64, 8


class Texts(NamedTuple):
    """Passages of prompts and of answers to them."""

    prompts: list[Passage]
    answers: list[Passage]


def conversations_of(config: QualityConfig) -> list[Conversation]:
    """Return the prompts to choose from, in order: one of each category, then the next of each.

    Raises:
        ConfigError: if a file cannot be read.
    """
    if config.num_tokens < 1:
        raise ConfigError(f"num_tokens={config.num_tokens} must be at least 1")
    groups = [load_prompts(path) for path in config.prompts] or [load_category(name) for name in CATEGORIES]
    return [one for row in zip_longest(*groups) for one in row if one is not None]


def held_out(conversations: Sequence[Conversation], reference: Target, num_tokens: int, listen: Listener) -> Texts:
    """Return passages with at least `num_tokens` positions of prompts and half as many of answers, where there are so
    many.

    Raises:
        RequestError: without a tokenizer, or if the chat template refuses a prompt.
        ConfigError: if no prompt is short enough for an answer.
        RunError: if the reference's logits are not numbers.
    """
    longest = min(LONGEST_PROMPT, reference.spec.max_positions // 2)
    asked, again = tee(Dialogue(one).ask(0, reference.tokenizer) for one in conversations)  # read as far as needed
    prompts = list(_until(num_tokens, (Passage(tokens[:longest]) for tokens in asked if len(tokens) > 1)))
    whole = (tokens for tokens in again if 1 < len(tokens) <= longest)
    answers = list(_until(-(-num_tokens // 2), _answers(whole, longest, reference, listen)))
    if not answers:
        raise ConfigError(f"no prompt has at most {longest} tokens; give shorter prompts")
    return Texts(prompts, answers)


def _answers(
    prompts: Iterator[list[int]], longest_prompt: int, reference: Target, listen: Listener
) -> Iterator[Passage]:
    """Yield each prompt with the reference's greedy answer."""
    longest = min(LONGEST_ANSWER, reference.spec.max_positions // 4)
    engine = Engine(
        reference,
        load_method(method_specs([PLAIN])[0], reference),
        max_batch=SLOTS,
        max_len=longest_prompt + longest,
    )
    done = 0
    while group := list(islice(prompts, SLOTS)):
        listen(Progress(done, None, f"{reference.spec.name} writes answers"))
        for answer in engine.generate(group, SamplingParams(max_tokens=longest)):
            if answer.error is not None:
                raise RunError(f"{reference.spec.name} cannot write answers: {answer.error}")
            yield Passage([*answer.prompt, *answer.tokens], len(answer.prompt))
        done += len(group)


def _until(num_positions: int, passages: Iterator[Passage]) -> Iterator[Passage]:
    """Yield passages until they have so many positions; the last one is cut."""
    for passage in passages:
        left = num_positions
        num_positions -= passage.num_positions
        yield Passage(passage.tokens[: passage.start + left], passage.start)
        if num_positions <= 0:
            return
