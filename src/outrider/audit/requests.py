"""The requests of an audit: prompts as tokens, and the settings of each answer.

    none         temperature alone
    penalties    presence, frequency and repetition penalties
    biases       raised and lowered logits of the prompt's own tokens, and a least length
    structured   a form (a sentence of letters), where llguidance and a tokenizer are at hand

Every request has a seed of its own, so that their answers are independent.

Example: `Requests.of(config, target).params(0, 0.7, "penalties")` are the settings of the first prompt.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice, zip_longest

from outrider.audit.config import AuditConfig, Processing
from outrider.data.dialogue import Dialogue, answer_seed
from outrider.data.workloads import CATEGORIES, Conversation, load_category, load_prompts
from outrider.errors import ConfigError
from outrider.params import SamplingParams, StructuredOutputs
from outrider.target import Target

__all__ = ["Requests", "asked_texts", "can_structure", "identity_of"]

LONGEST_PROMPT = 512
CHARACTERS_A_TOKEN = 4
FORM = StructuredOutputs(regex="[A-Z][a-z ]{8,60}[.]")
NUM_BIASES = 16


@dataclass(frozen=True)
class Requests:
    """Prompts of an audit, and what their answers may be asked for.

    names     the prompts' names
    prompts   token ids
    """

    names: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    seed: int

    @classmethod
    def of(cls, config: AuditConfig, target: Target) -> "Requests":
        """Return the requests of an audit: one prompt of each category, then the next of each.

        Raises:
            ConfigError: if no prompt leaves room for an answer, or a file cannot be read.
        """
        num_prompts, max_tokens = config.size
        longest = min(LONGEST_PROMPT, target.spec.max_positions - max_tokens)
        if longest < 1:
            raise ConfigError(
                f"max_new_tokens={max_tokens} leaves no room for a prompt in {target.spec.max_positions} positions"
            )
        named = _random(target, longest, num_prompts) if target.tokenizer is None else _read(config, target, longest)
        if not named:
            raise ConfigError(f"no prompt has at most {longest} tokens; give shorter prompts")
        return cls(tuple(named), tuple(named.values()), max_tokens, config.seed)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the prompts' tokens."""
        return identity_of(self.prompts)

    def params(
        self, index: int, temperature: float, processing: Processing, *, repeat: int = 0, ignore_eos: bool = False
    ) -> SamplingParams:
        """Return the settings of one answer; each repeat of a prompt has another seed."""
        seed = answer_seed(self.seed, self.names[index], 0, repeat)
        plain = SamplingParams(temperature=temperature, seed=seed, max_tokens=self.max_tokens, ignore_eos=ignore_eos)
        if processing == "penalties":
            return replace(plain, presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.15)
        if processing == "biases":
            tokens = list(dict.fromkeys(self.prompts[index]))[-NUM_BIASES:]
            biases = {token: (-4.0, 2.0)[place % 2] for place, token in enumerate(tokens)}
            return replace(plain, logit_bias=biases, min_tokens=self.max_tokens // 2)
        return replace(plain, structured_outputs=FORM) if processing == "structured" else plain


def can_structure(target: Target) -> bool:
    """Return whether forms can be asked of this target here."""
    return target.tokenizer is not None and find_spec("llguidance") is not None


def asked_texts(config: AuditConfig) -> dict[str, str]:
    """Return the prompts of an audit as plain text, by name, for servers whose tokenizer nobody knows.

    Raises:
        ConfigError: if no prompt is short enough, or a file cannot be read.
    """
    texts = ((one.id, "\n\n".join(filter(None, (one.system, one.turns[0])))) for one in _conversations(config))
    longest = CHARACTERS_A_TOKEN * LONGEST_PROMPT
    found = dict(islice(((name, f"{text}\n\n") for name, text in texts if len(text) <= longest), config.size[0]))
    if not found:
        raise ConfigError(f"no prompt has at most {longest} characters; give shorter prompts")
    return found


def identity_of(prompts: Sequence[str | Sequence[int]]) -> str:
    """Return the SHA-256 (hex) of prompts."""
    return hashlib.sha256(repr(tuple(prompts)).encode(errors="backslashreplace")).hexdigest()


def _conversations(config: AuditConfig) -> Iterator[Conversation]:
    """Return the first prompt of each group, then the second of each."""
    groups = [load_prompts(path) for path in config.prompts] or [load_category(name) for name in CATEGORIES[::-1]]
    return (one for row in zip_longest(*groups) for one in row if one is not None)


def _read(config: AuditConfig, target: Target, longest: int) -> dict[str, tuple[int, ...]]:
    asked = ((one.id, tuple(Dialogue(one).ask(0, target.tokenizer))) for one in _conversations(config))
    return dict(islice(((name, tokens) for name, tokens in asked if len(tokens) <= longest), config.size[0]))


def _random(target: Target, longest: int, num_prompts: int) -> dict[str, tuple[int, ...]]:
    """Return repeated phrases of random tokens, for a target without a tokenizer."""
    draw, vocab_size = random.Random(0), target.spec.vocab_size
    phrases = [[draw.randrange(vocab_size) for _ in range(draw.randint(2, 6))] for _ in range(num_prompts)]
    return {f"random {index}": tuple((phrase * 4)[:longest]) for index, phrase in enumerate(phrases)}
