"""From prompts to texts: the target answers each user's turn, and every token that it wrote is marked.

The prompt of a turn is the conversation so far in the target's own chat template, token for token what it is served
with (`outrider.requests.text.encode`). After the first turn that is a new rendering, in which earlier answers are text
that was cut into tokens anew. Mostly it continues the tokens of the turn before, and the conversation is one text in
which every answer is learnt:

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

from outrider.data.dialogue import Dialogue, answer_seed
from outrider.data.filters import PromptFilter
from outrider.data.generator import Job, Listener, TextGenerator, Written
from outrider.data.prompts import Prompt, Prompts
from outrider.data.shards import Text, prompt_hash
from outrider.data.workloads import Conversation
from outrider.sampling import SamplingParams

__all__ = ["AnswerRules", "ConversationWriter", "GrowingConversation", "Turn", "pieces"]


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """Settings of the answers.

    temperatures        taken in rotation, by the prompt's number
    max_prompt_tokens   longest conversation that is answered, rendered
    """

    temperatures: tuple[float, ...]
    top_p: float
    seed: int
    max_new_tokens: int
    max_prompt_tokens: int

    def sampling(self, prompt: Prompt, turn: int) -> SamplingParams:
        temperature = self.temperatures[prompt.number % len(self.temperatures)]
        seed = answer_seed(self.seed, str(prompt.number), turn, 0)
        return SamplingParams(temperature=temperature, top_p=self.top_p if temperature else 1.0, seed=seed)


class Turn(NamedTuple):
    """One request: the tokens that the target read, and those that it wrote."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(eq=False)
class GrowingConversation:
    """A conversation in the making."""

    prompt: Prompt
    dialogue: Dialogue
    turns: list[Turn] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def texts(self) -> list[Text]:
        """Texts to train on."""
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
    """Return the texts of a conversation, their hash 0."""
    texts: list[Text] = []
    for prompt, answer in turns:
        before = texts[-1] if texts else Text((), (), 0)
        # a template that keeps earlier turns as they were needs one text for the whole conversation
        if before.tokens == prompt[: len(before.tokens)] and texts:
            texts.pop()
        else:
            before = Text((), (), 0)
        unlearnt = len(prompt) - len(before.tokens)
        learn = (*before.learn, *[False] * unlearnt, *[True] * len(answer))
        texts.append(Text((*prompt, *answer), learn, 0))
    return texts


@final
class ConversationWriter:
    """Turns prompts into conversations; counts what is left out and why.

    Args:
        tokenizer: the target's.
        prompt_filter: judges prompts; it remembers those that are kept.
    """

    def __init__(
        self,
        generator: TextGenerator,
        prompts: Prompts,
        prompt_filter: PromptFilter,
        tokenizer: Any,
        rules: AnswerRules,
    ) -> None:
        self._generator, self._prompts, self._filter = generator, prompts, prompt_filter
        self._tokenizer, self._rules = tokenizer, rules

    def judge(self, prompt: Prompt) -> str | None:
        """Return why a prompt is not answered; remember a prompt that is."""
        if prompt.fault is not None:
            return prompt.fault
        text, prompt_filter = prompt.turns[0], self._filter
        if (
            len(Dialogue(_conversation(prompt.turns, prompt.system)).ask(0, self._tokenizer))
            > self._rules.max_prompt_tokens
        ):
            return "length"
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        given = "\n".join(prompt.turns)
        fault = (
            prompt_filter.fault(text, tokens)
            if prompt.written_by_target
            else prompt_filter.seen(text) or prompt_filter.overlaps(given)
        )
        if fault is None:
            prompt_filter.keep(text)
        return fault

    def answer(self, prompts: Sequence[Prompt], dropped: Counter[str], listen: Listener) -> list[GrowingConversation]:
        """Return the conversations of these prompts that got at least one answer."""
        conversations = [
            GrowingConversation(prompt, Dialogue(_conversation(prompt.turns, prompt.system))) for prompt in prompts
        ]
        for turn in range(max((prompt.num_turns for prompt in prompts), default=0)):
            going = [
                conversation
                for conversation in conversations
                if turn < conversation.prompt.num_turns and len(conversation.turns) == turn and _open(conversation)
            ]
            if turn > 0:
                going = self._follow(going, turn, dropped)
            self._ask(going, turn, dropped, listen)
        for conversation in conversations:
            if not conversation.turns:
                self._filter.forget(conversation.prompt.turns[0])
        return [conversation for conversation in conversations if conversation.turns]

    def _follow(
        self, conversations: Sequence[GrowingConversation], turn: int, dropped: Counter[str]
    ) -> list[GrowingConversation]:
        """Return the conversations that continue with a further turn of the user."""
        found = self._prompts.follow(
            [(conversation.prompt, conversation.dialogue) for conversation in conversations], turn
        )
        kept = []
        for conversation, (text, fault) in zip(conversations, found, strict=True):
            if text is not None and conversation.prompt.written_by_target:
                tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                fault = self._filter.wrong_form(text, tokens) or self._filter.overlaps(text)
            if text is None or fault is not None:
                dropped[f"follow-up: {fault}"] += 1
                continue
            said = conversation.dialogue.conversation
            conversation.dialogue.conversation = replace(said, turns=(*said.turns[:turn], text))
            kept.append(conversation)
        return kept

    def _ask(
        self, conversations: Sequence[GrowingConversation], turn: int, dropped: Counter[str], listen: Listener
    ) -> None:
        asked: list[tuple[GrowingConversation, Job]] = []
        for conversation in conversations:
            prompt = tuple(conversation.dialogue.ask(turn, self._tokenizer))
            if len(prompt) > self._rules.max_prompt_tokens:
                conversation.dialogue.messages.pop()  # ends before this turn
                continue
            sampling = self._rules.sampling(conversation.prompt, turn)
            asked.append(
                (conversation, Job(prompt=prompt, max_new_tokens=self._rules.max_new_tokens, sampling=sampling))
            )
        written = self._generator.write([job for _, job in asked], listen)
        for (conversation, job), one in zip(asked, written, strict=True):
            fault = self._fault(one)
            if fault is not None:
                conversation.dialogue.messages.pop()
                dropped[fault if turn == 0 else f"follow-up: {fault}"] += 1
                continue
            _take(conversation, job, one, self._tokenizer)

    def _fault(self, one: Written) -> str | None:
        """Return why an answer is not kept, or None."""
        if one.finished == "lost":
            return "answer: token ids unknown"
        if len(one.tokens) < 2:
            return "answer: empty"
        found = self._filter.overlaps(self._tokenizer.decode(list(one.tokens), skip_special_tokens=True))
        return None if found is None else f"answer: {found}"


def _open(conversation: GrowingConversation) -> bool:
    """Return whether the conversation may go on."""
    return not conversation.answers or conversation.answers[-1]["finished"] == "end"


def _take(conversation: GrowingConversation, job: Job, one: Written, tokenizer: Any) -> None:
    conversation.dialogue.answer(one.tokens, tokenizer)
    conversation.turns.append(Turn(job.prompt, one.tokens))
    conversation.answers.append(
        {
            "finished": one.finished,
            "num_tokens": len(one.tokens),
            "temperature": job.sampling.temperature,
            "seed": job.sampling.seed,
        }
    )


def _conversation(turns: Sequence[str], system: str | None) -> Conversation:
    return Conversation(id="", category="", turns=tuple(turns), system=system)
