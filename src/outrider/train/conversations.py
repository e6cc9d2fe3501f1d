"""From prompts to texts: the target answers each user's turn, and every token that it wrote is marked.

The prompt of a turn is the conversation so far in the target's own chat template, token for token what it is served
with (`outrider.text.encode`). After the first turn that is a new rendering, in which earlier answers are text that was
cut into tokens anew. Mostly it continues the tokens of the turn before, and the conversation is one text in which every
answer is learnt:

    turn 1    P1 A1            learn  00 11
    turn 2    P1 A1 U2 A2      learn  00 11 00 11

Where it does not (a template that hides earlier reasoning, an answer that is spelled with other tokens), the text so
far is kept by itself and the new rendering begins another one, in which only the new answer is learnt. So no text holds
a context that the target would never see.

An answer that reached the limit is kept without an end-of-text token, and ends its conversation.

Example: `pieces([Turn((1, 2), (3, 4)), Turn((1, 2, 3, 4, 5), (6,))])` is one text of six tokens, three of them learnt.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

from outrider.bench.play import Dialogue, answer_seed
from outrider.bench.workloads import Conversation
from outrider.sampling import Sampling
from outrider.train.author import Author, Job, Listener, Written
from outrider.train.prompts import Prompt, Prompts
from outrider.train.shards import Text, prompt_hash
from outrider.train.sieve import Sieve

__all__ = ["AnswerRules", "Talk", "Talks", "Turn", "pieces"]


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """How answers are written.

    temperatures        taken in rotation, by the prompt's number
    max_prompt_tokens   longest conversation that is answered, rendered
    """

    temperatures: tuple[float, ...]
    top_p: float
    seed: int
    max_new_tokens: int
    max_prompt_tokens: int

    def sampling(self, prompt: Prompt, turn: int) -> Sampling:
        temperature = self.temperatures[prompt.number % len(self.temperatures)]
        seed = answer_seed(self.seed, str(prompt.number), turn, 0)
        return Sampling(temperature=temperature, top_p=self.top_p if temperature else 1.0, seed=seed)


class Turn(NamedTuple):
    """One request: the tokens that the target read, and those that it wrote."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(eq=False)
class Talk:
    """A conversation in the making."""

    prompt: Prompt
    dialogue: Dialogue
    turns: list[Turn] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def texts(self) -> list[Text]:
        """What is trained on."""
        number = prompt_hash(self.prompt.turns[0])
        return [Text(text.tokens, text.learn, number) for text in pieces(self.turns)]

    @property
    def record(self) -> dict[str, Any]:
        """The line for people."""
        return {
            "prompt_hash": f"{prompt_hash(self.prompt.turns[0]):016x}",
            "num_texts": len(pieces(self.turns)),
            "messages": self.dialogue.messages,
            "answers": self.answers,
            "origin": dict(self.prompt.origin),
        }

    @property
    def num_cut(self) -> int:
        return sum(answer["finished"] == "length" for answer in self.answers)


def pieces(turns: Sequence[Turn]) -> list[Text]:
    """The texts of a conversation, their hash 0."""
    texts: list[Text] = []
    for prompt, answer in turns:
        before = texts[-1] if texts else Text((), (), 0)
        if before.tokens == prompt[: len(before.tokens)] and texts:
            texts.pop()
        else:
            before = Text((), (), 0)
        unlearnt = len(prompt) - len(before.tokens)
        learn = (*before.learn, *[False] * unlearnt, *[True] * len(answer))
        texts.append(Text((*prompt, *answer), learn, 0))
    return texts


@final
class Talks:
    """Turns prompts into conversations; counts what is left out and why.

    Args:
        tokenizer: the target's.
        sieve: judges prompts; it remembers those that are kept.
    """

    def __init__(self, author: Author, prompts: Prompts, sieve: Sieve, tokenizer: Any, rules: AnswerRules) -> None:
        self._author, self._prompts, self._sieve = author, prompts, sieve
        self._tokenizer, self._rules = tokenizer, rules

    def judge(self, prompt: Prompt) -> str | None:
        """Why a prompt is not answered; remembers it if it is."""
        if prompt.fault is not None:
            return prompt.fault
        text, sieve = prompt.turns[0], self._sieve
        if (
            len(Dialogue(_conversation(prompt.turns, prompt.system)).ask(0, self._tokenizer))
            > self._rules.max_prompt_tokens
        ):
            return "length"
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        given = "\n".join(prompt.turns)
        fault = sieve.fault(text, tokens) if prompt.written_by_target else sieve.seen(text) or sieve.overlaps(given)
        if fault is None:
            sieve.keep(text)
        return fault

    def answer(self, prompts: Sequence[Prompt], dropped: Counter[str], listen: Listener) -> list[Talk]:
        """Conversations of these prompts, as many as come to at least one answer."""
        talks = [Talk(prompt, Dialogue(_conversation(prompt.turns, prompt.system))) for prompt in prompts]
        for turn in range(max((prompt.num_turns for prompt in prompts), default=0)):
            going = [talk for talk in talks if turn < talk.prompt.num_turns and len(talk.turns) == turn and _open(talk)]
            if turn > 0:
                going = self._follow(going, turn, dropped)
            self._ask(going, turn, dropped, listen)
        for talk in talks:
            if not talk.turns:
                self._sieve.forget(talk.prompt.turns[0])
        return [talk for talk in talks if talk.turns]

    def _follow(self, talks: Sequence[Talk], turn: int, dropped: Counter[str]) -> list[Talk]:
        """Those whose user says something more that is worth an answer."""
        found = self._prompts.follow([(talk.prompt, talk.dialogue) for talk in talks], turn)
        kept = []
        for talk, (text, fault) in zip(talks, found, strict=True):
            if text is not None and talk.prompt.written_by_target:
                tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                fault = self._sieve.wrong_form(text, tokens) or self._sieve.overlaps(text)
            if text is None or fault is not None:
                dropped[f"follow-up: {fault}"] += 1
                continue
            said = talk.dialogue.conversation
            talk.dialogue.conversation = replace(said, turns=(*said.turns[:turn], text))
            kept.append(talk)
        return kept

    def _ask(self, talks: Sequence[Talk], turn: int, dropped: Counter[str], listen: Listener) -> None:
        asked: list[tuple[Talk, Job]] = []
        for talk in talks:
            prompt = tuple(talk.dialogue.ask(turn, self._tokenizer))
            if len(prompt) > self._rules.max_prompt_tokens:
                talk.dialogue.messages.pop()
                continue
            sampling = self._rules.sampling(talk.prompt, turn)
            asked.append((talk, Job(prompt=prompt, max_new_tokens=self._rules.max_new_tokens, sampling=sampling)))
        written = self._author.write([job for _, job in asked], listen)
        for (talk, job), one in zip(asked, written, strict=True):
            fault = self._fault(one)
            if fault is not None:
                talk.dialogue.messages.pop()
                dropped[fault if turn == 0 else f"follow-up: {fault}"] += 1
                continue
            _take(talk, job, one, self._tokenizer)

    def _fault(self, one: Written) -> str | None:
        """Why an answer is not kept."""
        if one.finished == "lost":
            return "answer: token ids unknown"
        if len(one.tokens) < 2:
            return "answer: empty"
        found = self._sieve.overlaps(self._tokenizer.decode(list(one.tokens), skip_special_tokens=True))
        return None if found is None else f"answer: {found}"


def _open(talk: Talk) -> bool:
    """Whether the conversation may go on."""
    return not talk.answers or talk.answers[-1]["finished"] == "end"


def _take(talk: Talk, job: Job, one: Written, tokenizer: Any) -> None:
    talk.dialogue.answer(one.tokens, tokenizer)
    talk.turns.append(Turn(job.prompt, one.tokens))
    talk.answers.append(
        {
            "finished": one.finished,
            "num_tokens": len(one.tokens),
            "temperature": job.sampling.temperature,
            "seed": job.sampling.seed,
        }
    )


def _conversation(turns: Sequence[str], system: str | None) -> Conversation:
    return Conversation(id="", category="", turns=tuple(turns), system=system)
