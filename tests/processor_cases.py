"""Requests with processors on toy vocabularies: their laws by plain formulas, and by enumeration of the engine's code.

Tokens are a, b, c and the end of the text. `wanted_law` computes every step from the whole text, with dicts and lists;
`emitted_law` runs the production rules over states that are advanced and forked as the engine does it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from outrider import verify
from outrider.audit.enumerate import Drafter, EnumeratingChance, branches
from outrider.draft import Draft
from outrider.params import SamplingParams, StructuredOutputs
from outrider.processors.start import start_processors
from outrider.sampling import distribution

Text = tuple[int, ...]
EOS, VOCAB = 3, 4
PROMPT = (0, 2)


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE(vocab={"a": 0, "b": 1, "c": 2, "<end>": EOS}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@dataclass(frozen=True)
class Case:
    """Settings of a request, and what they mean: bad words as tokens, and the texts of its form."""

    name: str
    params: SamplingParams
    bad_words: tuple[Text, ...] = ()
    language: frozenset[str] | None = field(default=None)

    def __str__(self) -> str:
        return self.name


WORDS = ("abc", "acb", "b", "bca", "cab", "cabc")
CASES = [
    Case("repetition", SamplingParams(temperature=0.7, repetition_penalty=1.7)),
    Case("repetition below one", SamplingParams(temperature=1.3, repetition_penalty=0.6, top_k=3)),
    Case("frequency and presence", SamplingParams(temperature=1.0, frequency_penalty=0.8, presence_penalty=-0.5)),
    Case("bias", SamplingParams(temperature=1.0, logit_bias={1: 1.5, 3: -2})),
    Case("bad words", SamplingParams(temperature=1.0, bad_words=["ab", "c"]), bad_words=((0, 1), (2,))),
    Case("min tokens", SamplingParams(temperature=1.0, min_tokens=2, stop_token_ids=[1])),
    Case("choice", SamplingParams(temperature=1.0, structured_outputs=StructuredOutputs(choice=WORDS)),
         language=frozenset(WORDS)),
    Case(
        "all",
        SamplingParams(
            temperature=0.8,
            top_p=0.9,
            repetition_penalty=1.3,
            presence_penalty=0.4,
            logit_bias={0: 1.0},
            min_tokens=2,
            bad_words=["bc"],
            structured_outputs=StructuredOutputs(regex="[ab]c?b|c[abc]{1,2}|bca"),
        ),
        bad_words=((1, 2),),
        language=frozenset(
            ["ab", "acb", "bb", "bcb", "bca", *("c" + "".join(x) for n in (1, 2) for x in product("abc", repeat=n))]
        ),
    ),
]  # fmt: skip


@cache
def raw_logits(seed: int, text: Text) -> Tensor:
    generator = torch.Generator().manual_seed(hash((seed, *text)) % 2**31)
    return 2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64)


@cache
def wanted_probs(case: Case, seed: int, text: Text) -> Tensor:
    """The distribution behind an answer, from the definition of every setting."""
    params, logits = case.params, raw_logits(seed, text).tolist()
    allowed = set(range(VOCAB))
    written = "".join("abc"[token] for token in text if token != EOS)
    if EOS in text and case.language is not None:
        allowed = {EOS}
    elif case.language is not None:
        allowed = {t for t in range(3) if any(word.startswith(written + "abc"[t]) for word in case.language)}
        allowed |= {EOS} if written in case.language else set()
    ends = {EOS, *params.stop_token_ids} if len(text) < params.min_tokens else set()
    for banned in ({word[-1] for word in case.bad_words if (*text, word[-1])[-len(word) :] == word}, ends):
        allowed = allowed - banned or allowed
    for token, bias in dict(params.logit_bias).items():
        logits[token] += bias
    for token in range(VOCAB):
        if token in PROMPT or token in text:
            factor = params.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        logits[token] -= params.frequency_penalty * text.count(token)
        logits[token] -= params.presence_penalty * (token in text)
    masked = [logit if token in allowed else -torch.inf for token, logit in enumerate(logits)]
    return distribution(torch.tensor([masked], dtype=torch.float64), params)[0]


def wanted_law(case: Case, seed: int, length: int, start: Text = ()) -> dict[Text, float]:
    """The probability of every answer of that length behind `start`; an end-of-text token is a token like others."""
    law: dict[Text, float] = {start: 1.0}
    for _ in range(length - len(start)):
        law = {
            (*text, token): weight * p
            for text, weight in law.items()
            for token, p in enumerate(wanted_probs(case, seed, text).tolist())
            if p > 0
        }
    return law


def emitted_law(case: Case, seed: int, drafter: Drafter, rule: str, length: int, num_steps: int) -> dict[Text, float]:
    """The same law of what the production code emits in so many steps; the rest of a text is plainly decoded."""
    law: dict[Text, float] = defaultdict(float)
    start = start_processors(case.params, PROMPT, toy_tokenizer(), VOCAB, (EOS,))
    assert start is not None

    def decode(chance: EnumeratingChance) -> Text:
        state, text = start.fork(), ()
        for _ in range(num_steps):
            guess = drafter(text, chance)
            texts: list[Text] = [text]
            for token, parent in zip(*guess.tree, strict=True):
                texts.append((*texts[parent + 1], token))
            logits_MV = torch.stack([raw_logits(seed, row) for row in texts])
            draft = Draft.of_trees([guess.tree], probs_BMV=None if guess.q_MV is None else guess.q_MV[None])
            given = verify.VerifyInput(logits_MV[None], [len(text) - 1], [case.params], [state])
            path = verify.VERIFIERS[rule](draft, given)[0]
            emitted = [*path.tokens, path.bonus][: length - len(text)]
            for token in emitted:
                state.advance(token)
            text = (*text, *emitted)
            if len(text) == length:
                break
        return text

    def chosen(chance: EnumeratingChance) -> Callable[..., int]:
        return lambda logits_V, position, sampling: chance.pick(distribution(logits_V[None], sampling)[0], position)

    def procedure(chance: EnumeratingChance) -> Text:
        with (
            patch.object(verify, "_chance", lambda given, slot: chance),
            patch.object(verify, "choose_one", chosen(chance)),
        ):
            return decode(chance)

    starts: dict[Text, float] = defaultdict(float)
    for branch in branches(procedure):
        starts[branch.outcome] += branch.probability
    for text, weight in starts.items():
        for whole, probability in wanted_law(case, seed, length, text).items():
            law[whole] += weight * probability
    return law


def law_error(case: Case, seed: int, drafter: Drafter, rule: str, *, length: int = 3, num_steps: int = 3) -> float:
    """The largest difference between both laws."""
    want, got = wanted_law(case, seed, length), emitted_law(case, seed, drafter, rule, length, num_steps)
    return max(abs(want.get(text, 0.0) - got.get(text, 0.0)) for text in {*want, *got})


def drafted_tokens(text: Sequence[int]) -> Text:
    """A draft that depends on the text, wrong as often as right."""
    return tuple((len(text) + sum(text) + step) % VOCAB for step in range(2))
