"""Playing conversations: the user's messages are given, the answers are the model's own.

Each turn of a conversation is one request; it waits until the group's earlier turns are answered. The prompt is the
conversation so far under the target's chat template (or, for a target without one, its plain text). Times are taken
from outside, as a user would: from submission to the first token, and to the last.

Example: two conversations of two turns at batch 2 are four requests in two waves.
"""

from dataclasses import dataclass, replace
from time import perf_counter

from outrider.bench.plan import Group
from outrider.data.dialogue import Dialogue, Rules
from outrider.engine import Engine
from outrider.results.unit import Answer

__all__ = ["play"]


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
                prompt, replace(sampling, max_tokens=rules.limit(conversation), ignore_eos=rules.ignore_eos)
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
