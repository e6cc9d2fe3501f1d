"""Known answers as texts, along which any proposer can be replayed: a server's, or those of a run that goes on.

A prompt is rebuilt from its conversation and the answers before it, as it was asked. Heads read hidden states, which
neither a server nor a file gives: one forward over each text gives them, where the target's weights are here.

Example: a conversation of two answered turns gives two texts; the second's prompt holds the first answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import Conversation
from outrider.target import Target
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.texts import Text

__all__ = ["rebuilt", "with_states"]


def rebuilt(
    conversation: Conversation, answers: Mapping[int, Sequence[int]], target: Target, rules: Rules
) -> Iterator[Text]:
    """Yield the texts of a conversation whose turns have these answers."""
    dialogue = Dialogue(conversation)
    for turn, answer in sorted(answers.items()):
        prompt = dialogue.ask(turn, target.tokenizer)
        dialogue.answer(answer, target.tokenizer)
        sampling = replace(rules.sampling(conversation, turn), max_tokens=rules.limit(conversation))
        yield Text(conversation.id, turn, KnownText(tuple(prompt), tuple(answer)), sampling)


def with_states(text: Text, target: Target, layers: Sequence[int]) -> Text:
    """Return a text with the states that the target has behind each of its tokens but the last."""
    if not layers:
        return text
    return replace(text, known=replace(text.known, states_TLE=_states(text.known.tokens[:-1], target, layers)))


def _states(tokens: Sequence[int], target: Target, layers: Sequence[int]) -> Tensor:
    session = target.open(target.plan(1, len(tokens) + 1, 1), tuple(layers))
    [states_TF] = session.prefill([0], [tokens])
    assert states_TF is not None, "layers were asked for"
    return states_TF.view(len(tokens), len(layers), -1)
