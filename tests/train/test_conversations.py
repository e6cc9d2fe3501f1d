"""Conversations become texts that hold exactly what the target is served with."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.data.contamination import Sought
from outrider.data.conversations import AnswerRules, ConversationWriter, GrowingConversation, Turn, pieces
from outrider.data.filters import PromptFilter
from outrider.data.generator import Job, Written
from outrider.data.identity import Identity
from outrider.data.prompts import FilePrompts, Prompt
from outrider.requests.text import encode
from outrider.testing.generator import ScriptedGenerator
from writing import tiny_identity

RULES = AnswerRules(temperatures=(0.0, 0.7), top_p=1.0, seed=0, max_new_tokens=20, max_prompt_tokens=150)
tokens = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return tiny_identity(tmp_path_factory.mktemp("tiny") / "model")


@given(st.lists(st.tuples(tokens, tokens, st.booleans()), min_size=1, max_size=5))
def test_every_answer_is_learnt_once_after_the_prompt_it_had(steps: list[tuple[tuple[int, ...], ...]]) -> None:
    turns: list[Turn] = []
    for said, answer, continues in steps:
        before = turns[-1].prompt + turns[-1].answer if turns and continues else ()
        turns.append(Turn((*before, *said), answer))  # type: ignore[arg-type]
    texts = pieces(turns)
    learnt = [token for text in texts for token, flag in zip(text.tokens, text.learn, strict=True) if flag]
    assert learnt == [token for turn in turns for token in turn.answer]
    for turn in turns:
        whole = turn.prompt + turn.answer
        assert any(
            text.tokens[: len(whole)] == whole and all(text.learn[len(turn.prompt) : len(whole)]) for text in texts
        )


def conversation(
    identity: Identity, generator: ScriptedGenerator, tmp_path: Path, *turns: str, rules: AnswerRules = RULES
) -> tuple[list[GrowingConversation], Counter[str]]:
    (tmp_path / "p.jsonl").write_text("{}")
    prompt_filter = PromptFilter(max_tokens=100, evaluation={"chat": Sought(["one two three four five six"])})
    conversations = ConversationWriter(
        generator, FilePrompts(str(tmp_path / "p.jsonl")), prompt_filter, identity.tokenizer, rules
    )
    prompt = Prompt(number=0, turns=turns, num_turns=len(turns))
    assert conversations.judge(prompt) is None
    dropped = Counter[str]()
    return conversations.answer([prompt], dropped, lambda jobs, tokens: None), dropped


def says(identity: Identity, *texts: str, finished: str = "end") -> ScriptedGenerator:
    left = list(texts)

    def script(job: Job) -> Written:
        return Written((*identity.tokenizer.encode(left.pop(0)), identity.eos_ids[0]), finished)  # type: ignore[arg-type]

    return ScriptedGenerator(script)


def test_turns_are_rendered_as_they_are_served(identity: Identity, tmp_path: Path) -> None:
    generator = says(identity, "yes", "no")
    (found,), dropped = conversation(identity, generator, tmp_path, "hello there", "really?")
    assert not dropped
    messages = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "yes"}]
    messages.append({"role": "user", "content": "really?"})
    assert [list(job.prompt) for job in generator.jobs] == [
        encode(identity.tokenizer, messages[:1]),
        encode(identity.tokenizer, messages),
    ]
    (text,) = found.texts
    assert identity.tokenizer.decode([t for t, flag in zip(text.tokens, text.learn, strict=True) if flag]) == (
        "yes<|im_end|>no<|im_end|>"
    )
    assert found.dialogue.messages[-1] == {"role": "assistant", "content": "no"}


def test_a_template_that_changes_earlier_answers_gives_two_texts(tmp_path: Path) -> None:
    identity = tiny_identity(tmp_path / "model")
    identity.tokenizer.chat_template = identity.tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    (found,), _ = conversation(identity, says(identity, "hm</think>yes", "no"), tmp_path, "hello there", "really?")
    first, second = found.texts
    decode = identity.tokenizer.decode
    assert decode(first.tokens).endswith("assistant\nhm</think>yes<|im_end|>")
    assert "hm" not in decode(second.tokens)
    assert decode([t for t, flag in zip(second.tokens, second.learn, strict=True) if flag]) == "no<|im_end|>"
    assert first.prompt_hash == second.prompt_hash
    assert found.record["num_texts"] == 2


def test_an_answer_at_the_limit_is_kept_and_ends_the_conversation(identity: Identity, tmp_path: Path) -> None:
    generator = ScriptedGenerator(lambda job: Written(tuple(identity.tokenizer.encode("so long")), "length"))
    (found,), _ = conversation(identity, generator, tmp_path, "hello there", "really?")
    assert (len(found.answers), found.num_cut) == (1, 1)
    assert found.texts[0].tokens[-1] not in identity.eos_ids


@pytest.mark.parametrize(
    ("text", "finished", "wanted"),
    [
        ("", "end", "answer: empty"),
        ("x", "lost", "answer: token ids unknown"),
        ("well, one two three four five six!", "end", "answer: overlap with chat"),
    ],
)
def test_an_answer_that_is_none_is_counted(
    identity: Identity, tmp_path: Path, text: str, finished: str, wanted: str
) -> None:
    found, dropped = conversation(identity, says(identity, text, finished=finished), tmp_path, "hello there", "really?")
    assert (found, dropped) == ([], {wanted: 1})


def test_a_follow_up_that_does_not_fit_is_not_asked(identity: Identity, tmp_path: Path) -> None:
    (found,), _ = conversation(identity, says(identity, "yes"), tmp_path, "hello there", "x" * 200)
    assert [one["content"] for one in found.dialogue.messages] == ["hello there", "yes"]


def test_temperatures_rotate_and_greedy_takes_no_filter() -> None:
    rules = AnswerRules(temperatures=(0.0, 0.7), top_p=0.9, seed=0, max_new_tokens=20, max_prompt_tokens=150)
    drawn = [rules.sampling(Prompt(number=number), turn=0) for number in range(3)]
    assert [(one.temperature, one.top_p) for one in drawn] == [(0.0, 1.0), (0.7, 0.9), (0.0, 1.0)]
    assert len({one.seed for one in drawn} | {rules.sampling(Prompt(number=0), turn=1).seed}) == 4
