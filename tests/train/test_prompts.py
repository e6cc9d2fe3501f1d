"""Prompts: every layout is read, a bad line is named, and any chat template can be opened."""

import json
from pathlib import Path

import pytest

from outrider.data.dialogue import Dialogue
from outrider.data.generator import Job, Written
from outrider.data.identity import Identity
from outrider.data.prompts import FilePrompts, Prompt, SelfWritten
from outrider.data.seed_phrases import SEED_PHRASES, draw, read_seed_phrases, user_turn
from outrider.data.workloads import Conversation
from outrider.errors import ConfigError
from outrider.testing.generator import ScriptedGenerator
from writing import tiny_identity, words


def quiet(jobs: int, tokens: int) -> None:
    pass


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return tiny_identity(tmp_path_factory.mktemp("tiny") / "model")


SAID = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]
SAID += [{"role": "assistant", "content": "never read"}, {"role": "user", "content": "b"}]
LAYOUTS = [
    ({"messages": SAID}, ("a", "b"), "be brief"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]}, ("a",), None),
    ({"turns": ["a", "b"], "id": "mt-1"}, ("a", "b"), None),
    ({"prompt": "a", "system": "s"}, ("a",), "s"),
    ({"question": "a", "answer": "never read"}, ("a",), None),
    ({"instruction": "a"}, ("a",), None),
    ({"text": "a"}, ("a",), None),
    ({"messages": []}, (), None),
]


@pytest.mark.parametrize(("fields", "turns", "system"), LAYOUTS)
def test_every_layout_is_read(fields: object, turns: tuple[str, ...], system: str | None, tmp_path: Path) -> None:
    (found,) = FilePrompts(write(tmp_path / "p.jsonl", fields)).take(0, 5, quiet)
    assert (found.turns, found.system, found.num_turns) == (turns, system, len(turns))
    assert found.fault == (None if turns else "empty")


def test_a_file_can_be_entered_anywhere(tmp_path: Path) -> None:
    source = FilePrompts(write(tmp_path / "p.jsonl", *({"prompt": f"p{number}"} for number in range(9)), ""))
    assert [one.turns[0] for one in source.take(4, 3, quiet)] == ["p4", "p5", "p6"]
    assert [one.turns[0] for one in source.take(7, 3, quiet)] == ["p7", "p8"]
    assert [one.turns[0] for one in source.take(1, 2, quiet)] == ["p1", "p2"]
    assert source.take(9, 2, quiet) == []


def test_turns_are_limited_and_the_rest_follows_in_order(tmp_path: Path) -> None:
    place = write(tmp_path / "p.jsonl", {"turns": ["a", "b", "c"]})
    (found,) = FilePrompts(place, max_turns=2, system="s").take(0, 1, quiet)
    assert (found.turns, found.system) == (("a", "b"), "s")
    dialogue = Dialogue(Conversation(id="", category="", turns=found.turns))
    assert FilePrompts(place).follow([(found, dialogue)], 1)[0].text == "b"


def test_a_hub_column_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "a"}, {"turns": ["b", "c"]}, {"messages": SAID}]
    monkeypatch.setattr("outrider.data.prompt_rows.hub_fields", lambda place: iter(rows))
    found = FilePrompts("hub:some/data:train:prompt").take(0, 9, quiet)
    assert [one.turns for one in found] == [("a",), ("b", "c"), ("a", "b")]
    with pytest.raises(ConfigError, match="must be hub:name:split:field"):
        FilePrompts("hub:some/data")


BAD = [
    ('{"prompt": "a"', "p.jsonl:2 is not JSON"),
    ("[1]", "p.jsonl:2 is not a JSON object"),
    ('{"answer": "a"}', "p.jsonl:2 has none of messages"),
    ('{"turns": {"a": 1}}', "'turns' in .*p.jsonl:2 must hold text"),
    ('{"turns": ["a"], "system": 5}', "'system' in .*p.jsonl:2 is 5 but must be text"),
    ('{"prompt": 3}', "'prompt' in .*p.jsonl:2 must hold text"),
    ('{"messages": ["a"]}', "a message in .*p.jsonl:2"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    source = FilePrompts(write(tmp_path / "p.jsonl", {"prompt": "good"}, line))
    with pytest.raises(ConfigError, match=said):
        source.take(0, 5, quiet)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        FilePrompts(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        FilePrompts(str(tmp_path / "p.jsonl")).take(0, 1, quiet)


LLAMA = (
    "{{ '<|im_start|>' }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)
CHATS = [
    (None, "<|im_start|>user\n", True, ""),
    (LLAMA, "<|im_start|><|im_start|>user\n\n", True, ""),
    (INST, "[INST] ", False, "[/INST]"),
]


@pytest.mark.parametrize(("template", "before", "ends_in_token", "end_text"), CHATS)
def test_the_users_turn_is_found_in_any_template(
    template: str | None, before: str, ends_in_token: bool, end_text: str, tmp_path: Path
) -> None:
    tokenizer = tiny_identity(tmp_path / "model").tokenizer
    tokenizer.chat_template = template or tokenizer.chat_template
    place = user_turn(tokenizer, [])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (place.text, place.end_tokens, place.end_text) == (before, frozenset([end] * ends_in_token), end_text)
    later = user_turn(tokenizer, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
    assert later.text.endswith(before[-6:])
    assert "hi" in later.text
    assert "yes" in later.text


def test_a_template_that_hides_the_user_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_identity(tmp_path / "model").tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not show the user's text"):
        user_turn(tokenizer, [])
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        user_turn(tokenizer, [])


def test_what_is_drawn_is_a_function_of_seed_and_number() -> None:
    drawn = [draw(seed=1, number=n, turn=0, seed_phrases=SEED_PHRASES, temperatures=(0.5, 1.0)) for n in range(400)]
    assert drawn == [
        draw(seed=1, number=n, turn=0, seed_phrases=SEED_PHRASES, temperatures=(0.5, 1.0)) for n in range(400)
    ]
    assert {one.kind for one in drawn} == {"free", *SEED_PHRASES}
    assert {one.temperature for one in drawn} == {0.5, 1.0}
    assert len({one.seed for one in drawn}) == 400
    assert draw(seed=2, number=0, turn=0, seed_phrases=SEED_PHRASES, temperatures=(0.5,)).seed != drawn[0].seed
    assert draw(seed=1, number=5, turn=1, seed_phrases=SEED_PHRASES, temperatures=(0.5,)).words == ""


def test_seed_phrases_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "german.txt").write_text("Wie\n\nFasse zusammen:\\n\\n\n")
    assert read_seed_phrases(tmp_path / "german.txt") == {"german": ("Wie", "Fasse zusammen:\n\n")}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no seed phrase"):
        read_seed_phrases(tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_seed_phrases(tmp_path / "none.txt")


def own(identity: Identity, generator: ScriptedGenerator, max_prompt_tokens: int = 200) -> SelfWritten:
    return SelfWritten(
        generator,
        identity.tokenizer,
        seed_phrases={"one": ("Tell me",)},
        temperatures=(0.7,),
        top_p=0.9,
        seed=3,
        max_tokens=40,
        max_prompt_tokens=max_prompt_tokens,
        turns=2,
    )


def test_the_target_is_given_the_opening_and_what_it_writes_is_the_prompt(identity: Identity) -> None:
    encode = identity.tokenizer.encode
    generator = ScriptedGenerator(lambda job: Written((*encode(" about bees "), identity.eos_ids[0]), "stop"))
    found = own(identity, generator).take(0, 20, quiet)
    assert {one.turns[0] for one in found} == {"about bees", "Tell me about bees"}
    assert {identity.tokenizer.decode(job.prompt) for job in generator.jobs} == {
        "<|im_start|>user\n",
        "<|im_start|>user\nTell me",
    }
    assert [one.num_turns for one in found] == [1, 2] * 10
    assert all(job.ends == set(identity.eos_ids) and job.sampling.top_p == 0.9 for job in generator.jobs)


def test_prompts_are_drawn_once_and_are_the_same_wherever_one_starts(identity: Identity) -> None:
    def script(job: Job) -> Written:
        return Written((*identity.tokenizer.encode(words(job.sampling.seed, 3)), identity.eos_ids[0]), "end")

    source = own(identity, ScriptedGenerator(script))
    first = source.take(0, 8, quiet)
    generator = ScriptedGenerator(script)
    assert own(identity, generator).take(5, 3, quiet) == first[5:]
    again = own(identity, generator)
    again.take(0, 8, quiet)
    num_jobs = len(generator.jobs)
    assert again.take(2, 8, quiet)[:6] == first[2:]
    assert len(generator.jobs) == num_jobs + 2


@pytest.mark.parametrize(
    ("text", "finished", "wanted"),
    [("fine words", "length", "unfinished"), ("fine <|im_start|>words", "end", "special token")],
)
def test_what_is_no_turn_is_named(identity: Identity, text: str, finished: str, wanted: str) -> None:
    tokens = identity.tokenizer(text, add_special_tokens=False)["input_ids"]
    generator = ScriptedGenerator(lambda job: Written(tuple(tokens), finished))  # type: ignore[arg-type]
    assert {one.fault for one in own(identity, generator).take(0, 4, quiet)} == {wanted}


def test_no_turn_is_opened_in_a_conversation_that_is_too_long(identity: Identity) -> None:
    generator = ScriptedGenerator(lambda job: Written((65,), "end"))
    dialogue = Dialogue(Conversation(id="", category="", turns=("x",)), [{"role": "user", "content": "x" * 60}])
    found = own(identity, generator, max_prompt_tokens=50).follow([(Prompt(number=0), dialogue)], 1)
    assert (found[0].fault, generator.jobs) == ("length", [])
