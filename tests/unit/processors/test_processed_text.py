"""Requests with processors through the engine: text, ends, log-probabilities, and what an exception leaves."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider.draft import Draft, Tree
from outrider.engine import Engine
from outrider.errors import RequestError
from outrider.params import SamplingParams, StructuredOutputs
from outrider.processors.start import start_processors
from outrider.proposers import proposer_class
from outrider.proposers.none import NoProposer
from outrider.sampling import choose_one
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing import RandomTrees, Scripted
from outrider.testing.directory import write_tiny_model

PROMPTS = ("hello hello hello", "abcabcabcab", "say x")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "tags": {"enum": ["one", "two"]}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}
FORM = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)
SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.3},
    {"bad_words": ["e", "ab", "xy"], "logit_bias": {70: 3, 80: -4}, "min_tokens": 9},
    {"structured_outputs": FORM},
    {"structured_outputs": StructuredOutputs(regex="(ab|ba){2,9}c?"), "frequency_penalty": 0.5},
]
METHODS = ("ngram", "suffix", "eagle3", "draft_model", "medusa", "mtp", "pard", "hybrid")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_positions=160)


@pytest.fixture(scope="module")
def target(directory: Path) -> Target:
    return load_target(str(directory), dtype="float64", device="cpu")


def params_of(settings: dict[str, Any], seed: int, length: int = 24) -> SamplingParams:
    return SamplingParams(temperature=(0.0, 0.8)[seed % 2], seed=seed, max_tokens=length, **settings)


def plainly(target: Target, prompt: list[int], params: SamplingParams) -> list[int]:
    """The text by its definition: before every token, the processors are started anew and read all of the answer."""
    session = target.open(target.plan(1, target.spec.max_positions, 1))
    session.prefill([0], [prompt[:-1]])
    tokens = list(prompt)
    start = start_processors(params, prompt, target.tokenizer, target.spec.vocab_size, target.spec.eos_ids)
    assert start is not None
    while len(tokens) < len(prompt) + params.max_tokens:
        logits_V = session.forward([0], [tokens[-1]], Draft.empty(1)).logits_BMV[0][0]  # a reference, not the loop
        session.cache.commit([0], [[]])
        state = start.fork()
        for token in tokens[len(prompt) :]:
            state.advance(token)
        tokens.append(choose_one(state.transform(logits_V), len(tokens), params))
        if tokens[-1] in target.spec.eos_ids:
            break
    return tokens[len(prompt) :]


def encoded(target: Target) -> list[list[int]]:
    return [target.tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("method", METHODS)
def test_text_is_that_of_plain_decoding_whatever_drafts(target: Target, method: str) -> None:
    proposer = proposer_class(method).example(target, 2)
    engine = Engine(target, proposer, max_batch=3)
    for seed, settings in enumerate([*SETTINGS, *SETTINGS]):
        prompts, params = encoded(target), params_of(settings, seed % 5)
        want = [plainly(target, prompt, params) for prompt in prompts]
        assert [list(answer.tokens) for answer in engine.generate(prompts, params)] == want


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_greedy_text_is_the_same_under_every_rule(target: Target, rule: str) -> None:
    proposer = proposer_class("ngram").example(target, 0)
    engine = Engine(target, proposer, max_batch=2, verification=rule)
    for settings in SETTINGS:
        params = params_of(settings, 0)
        want = [plainly(target, prompt, params) for prompt in encoded(target)]
        assert [list(answer.tokens) for answer in engine.generate(encoded(target), params)] == want


def test_neighbours_without_processors_keep_their_text(target: Target) -> None:
    plain = SamplingParams(temperature=0.9, seed=4, max_tokens=16)
    prompts = encoded(target)
    want = Engine(target, NoProposer()).generate(prompts[0], plain)[0].tokens
    engine = Engine(target, RandomTrees(target).proposer(), max_batch=3)
    answers = engine.generate(prompts, [plain, params_of(SETTINGS[0], 1), params_of(SETTINGS[2], 1)])
    assert answers[0].tokens == want


@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_equals_transformers(directory: Path, seed: int) -> None:
    path = write_tiny_model(directory / f"seed{seed}", seed=seed, dtype=torch.float32)
    target = load_target(str(path), dtype="float32", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer, eos = target.tokenizer, target.spec.eos_ids[0]
    prompt = tokenizer.encode(PROMPTS[seed % 3])
    free = Engine(target, NoProposer()).generate(prompt, SamplingParams(max_tokens=3, ignore_eos=True))[0].tokens
    words = [tokenizer.decode([free[0]]), tokenizer.decode(list(free[1:3]))]
    bad = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    bias = {eos: 4.0, int(free[2]): -2.0, 65: 1.0}
    wanted = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=24,
        min_new_tokens=7,
        do_sample=False,
        repetition_penalty=1.4,
        bad_words_ids=bad,
        sequence_bias=[[[token], value] for token, value in bias.items()],
        eos_token_id=eos,
        pad_token_id=eos,
    )[0, len(prompt) :].tolist()
    params = SamplingParams(
        max_tokens=24, min_tokens=7, repetition_penalty=1.4, bad_words=words, logit_bias=bias
    )  # fmt: skip
    for method in ("none", "ngram"):
        answer = Engine(target, proposer_class(method).example(target, 1)).generate([prompt], params)[0]
        assert list(answer.tokens) == wanted
    assert len(wanted) >= 7


def test_structured_answers_parse(target: Target) -> None:
    engine = Engine(target, proposer_class("suffix").example(target, 1), max_batch=8)
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=100, structured_outputs=FORM) for seed in range(64)]
    answers = engine.generate([PROMPTS[seed % 3] for seed in range(64)], params)
    for answer in answers:
        assert answer.finished == "eos"
        found = json.loads(answer.text)
        assert list(found) == ["name", "tags"]
        assert found["tags"] in ("one", "two")
        assert len(found["name"]) <= 6
    assert len({answer.text for answer in answers}) > 32


def test_behind_a_complete_form_only_the_end_follows(target: Target) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True, structured_outputs=StructuredOutputs(choice=["ab"]))
    [answer] = Engine(target, NoProposer()).generate("x", params)
    assert answer.text == "ab"
    assert answer.tokens[2:] == tuple(target.spec.eos_ids) * 4


def test_a_mask_that_leaves_no_token_gives_way_to_the_form(target: Target) -> None:
    form = StructuredOutputs(choice=["ab"])
    params = SamplingParams(max_tokens=9, min_tokens=5, bad_words=["b"], structured_outputs=form)
    [answer] = Engine(target, NoProposer()).generate("x", params)
    assert (answer.text, answer.finished) == ("ab", "eos")


def test_stop_strings_wait_for_min_tokens(target: Target) -> None:
    form = StructuredOutputs(choice=["ababab"])
    params = SamplingParams(max_tokens=9, min_tokens=3, stop="b", structured_outputs=form)
    [answer] = Engine(target, NoProposer()).generate("x", params)
    assert (answer.text, answer.finished) == ("aba", "stop")


def test_logprobs_are_those_of_the_raw_logits(target: Target) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, logprobs=4, repetition_penalty=1.5)
    prompt = encoded(target)[1]
    [answer] = Engine(target, proposer_class("ngram").example(target, 1)).generate([prompt], params)
    text = list(prompt)
    for token, found in zip(answer.tokens, answer.logprobs, strict=True):
        session = target.open(target.plan(1, target.spec.max_positions, 1))
        session.prefill([0], [text[:-1]])
        logits_V = session.forward([0], [text[-1]], Draft.empty(1)).logits_BMV[0][0]  # a reference, not the loop
        logprobs_V = logits_V.log_softmax(-1)
        assert found.token == token
        assert found.logprob == pytest.approx(float(logprobs_V[token]), abs=1e-9)
        assert found.rank == 1 + sum(value > float(logprobs_V[token]) for value in logprobs_V.tolist())
        best = sorted(range(len(logprobs_V)), key=lambda one: -float(logprobs_V[one]))[:4]
        assert [one for one, _ in found.top] == best
        text.append(token)


def test_no_logprobs_unless_asked(target: Target) -> None:
    [answer] = Engine(target, NoProposer()).generate("x", SamplingParams(max_tokens=3))
    assert answer.logprobs == ()
    [answer] = Engine(target, NoProposer()).generate("x", SamplingParams(max_tokens=3, logprobs=0))
    assert [one.top for one in answer.logprobs] == [(), (), ()]


@pytest.mark.parametrize("settings", SETTINGS)
def test_after_an_exception_the_state_is_that_of_the_text(target: Target, settings: dict[str, Any]) -> None:
    calls = 0
    params = params_of(settings, 1)
    want = [plainly(target, prompt, params) for prompt in encoded(target)[:2]]
    texts = [[*prompt, *answer] for prompt, answer in zip(encoded(target), want, strict=False)]

    def script(tokens: Any, sampling: SamplingParams, limit: Any) -> Tree:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        text = next(text for text in texts if text[: len(tokens)] == tokens)
        right = text[len(tokens) : len(tokens) + 2]
        return Tree([7, *right, 8], [-1, -1, 1, 2]) if len(right) == 2 else Tree([], [])

    engine = Engine(target, Scripted(script, 8), max_batch=2)
    ids = [engine.add(prompt, params) for prompt in encoded(target)[:2]]
    got: dict[int, list[int]] = {id: [] for id in ids}
    while engine.busy:
        try:
            for event in engine.run():
                got[event.request] += event.tokens
        except KeyboardInterrupt:
            continue
    assert list(got.values()) == want


@pytest.mark.parametrize(
    ("form", "start"),
    [
        (StructuredOutputs(regex="a("), "regex of structured_outputs cannot be compiled: "),
        (StructuredOutputs(json={"type": "wrong"}), "json of structured_outputs cannot be compiled: "),
        (StructuredOutputs(grammar="start: ???"), "grammar of structured_outputs cannot be compiled: "),
    ],
)
def test_a_form_that_cannot_be_compiled_is_refused(target: Target, form: StructuredOutputs, start: str) -> None:
    with pytest.raises(RequestError) as error:
        Engine(target, NoProposer()).add("x", SamplingParams(structured_outputs=form))
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


def test_without_llguidance_the_remedy_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    fresh = load_target(str(directory), dtype="float64", device="cpu")
    with pytest.raises(RequestError, match=r"pip install 'outrider\[structured\]'"):
        Engine(fresh, NoProposer()).add("x", SamplingParams(structured_outputs=FORM))


def test_a_deep_form_is_compiled_and_a_longer_one_refused(target: Target) -> None:
    # on the stack of an ordinary thread, 2,500 references end the process
    links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(2500)}
    deep = {"$ref": "#/$defs/a0", "$defs": {**links, "a2500": {"const": 1}}}
    [answer] = Engine(target, NoProposer()).generate(
        "abc", SamplingParams(max_tokens=8, structured_outputs=StructuredOutputs(json=deep))
    )
    assert answer.text == "1"
    with pytest.raises(RequestError, match="characters; at most 131072 can be compiled"):
        Engine(target, NoProposer()).add("abc", SamplingParams(structured_outputs=StructuredOutputs(regex="a" * 2**18)))


def test_a_bad_word_without_logits_is_no_setting(target: Target) -> None:
    params = SamplingParams(bad_words=["abc"])
    assert start_processors(params, [1], target.tokenizer, 1, (0,)) is None
    assert start_processors(params, [1], target.tokenizer, target.spec.vocab_size, (0,)) is not None


def test_a_ban_that_is_over_costs_nothing(target: Target) -> None:
    state = start_processors(SamplingParams(min_tokens=2), [1], target.tokenizer, target.spec.vocab_size, (0,))
    assert state is not None
    assert not state.is_idle
    state.advance(5)
    state.advance(6)
    assert state.is_idle


def test_a_choice_may_have_thousands_of_strings(target: Target) -> None:
    choice = [f"{number:b}" for number in range(3000)] + ["a.b\n$^", "(é|#) -&~"]
    for params in (
        SamplingParams(),
        SamplingParams(logit_bias={7: 100, 65: 100}),
        SamplingParams(temperature=1, seed=5),
    ):
        form = StructuredOutputs(choice=choice)
        [answer] = Engine(target, NoProposer()).generate("x", replace(params, max_tokens=40, structured_outputs=form))
        assert answer.finished == "eos"
        assert answer.text in choice
    special = SamplingParams(structured_outputs=StructuredOutputs(choice=["a.b*c"]), max_tokens=9)
    assert Engine(target, NoProposer()).generate("x", special)[0].text == "a.b*c"


@pytest.mark.parametrize("grammar", ["start: start", "root ::= root"])
def test_a_form_without_a_first_token_is_refused_before_decoding(target: Target, grammar: str) -> None:
    wanted = SamplingParams(structured_outputs=StructuredOutputs(grammar=grammar))
    with pytest.raises(RequestError) as refused:
        Engine(target, NoProposer()).add("x", wanted)
    assert str(refused.value).startswith("grammar of structured_outputs cannot be compiled: ")
    assert str(refused.value).isprintable()


def test_a_form_that_fails_on_the_way_says_why_on_one_line(target: Target) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="(a{1000}){1000}"), max_tokens=5)
    engine = Engine(target, NoProposer())
    try:
        [answer] = engine.generate("x", params)
    except RequestError as error:  # llguidance notices it at the first token or behind it
        said = str(error)
    else:
        assert answer.error is not None
        said = answer.error
    assert "too many expressions" in said
    assert said.isprintable()
    assert len(said) < 400
