"""The server's answers as known texts, along which any proposer can be replayed without the server.

A prompt is rebuilt from its conversation and the answers before it, as it was asked. Heads read hidden states, which no
server gives: where the target's weights are here, one forward over each text gives them.

Example: a conversation of two answered turns gives two texts; the second's prompt holds the first answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import Conversation
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Key
from outrider.tuning.replays.texts import Text

__all__ = ["texts_of", "with_states"]


def texts_of(
    units: Iterable[UnitResult], conversations: Sequence[Conversation], target: Target, rules: Rules
) -> dict[Key, Text]:
    """Return the answers of these units, in order."""
    known = {one.id: one for one in conversations}
    found: dict[Key, Text] = {}
    for unit in units:
        dialogues = {id: Dialogue(known[id]) for id in unit.conversations if id in known}
        for answer in sorted(unit.answers, key=lambda answer: answer.turn):
            dialogue = dialogues.get(answer.conversation)
            if dialogue is None:
                continue
            prompt = dialogue.ask(answer.turn, target.tokenizer)
            dialogue.answer(answer.tokens, target.tokenizer)
            sampling = replace(
                rules.sampling(dialogue.conversation, answer.turn), max_tokens=rules.limit(dialogue.conversation)
            )
            text = Text(answer.conversation, answer.turn, KnownText(tuple(prompt), answer.tokens), sampling)
            found[text.key] = text
    return found


def with_states(texts: Mapping[Key, Text], target: Target, layers: Sequence[int]) -> dict[Key, Text]:
    """Return the texts with the states that the target has behind each of their tokens but the last."""
    if not layers:
        return dict(texts)
    return {
        key: replace(text, known=replace(text.known, states_TLE=_states(text.known.tokens[:-1], target, layers)))
        for key, text in texts.items()
    }


def _states(tokens: Sequence[int], target: Target, layers: Sequence[int]) -> Tensor:
    session = target.open(target.plan(1, len(tokens) + 1, 1), tuple(layers))
    [states_TF] = session.prefill([0], [tokens])
    assert states_TF is not None, "layers were asked for"
    return states_TF.view(len(tokens), len(layers), -1)
