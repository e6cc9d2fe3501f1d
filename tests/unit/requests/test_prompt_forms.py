"""What is taken as a prompt and as the settings of a request, and the sentence that everything else gets."""

import math
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch

from outrider import ConfigError, Engine, RequestError, SamplingParams
from outrider.proposers.none import NoProposer
from outrider.requests.prompts import as_prompt, as_prompts
from outrider.testing import tiny_target

USER = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Why?", ["Why?"]),
        (np.str_("Why?"), ["Why?"]),
        (["Why?", "How?"], ["Why?", "How?"]),
        (("Why?",), ["Why?"]),
        ((text for text in ("Why?", "How?")), ["Why?", "How?"]),
        (np.array(["Why?", "How?"]), ["Why?", "How?"]),
        ([USER], [[USER]]),
        ([[USER], "How?"], [[USER], "How?"]),
        ([UserDict(USER)], [[USER]]),
        ([3, 4], [[3, 4]]),
        ([[3, 4], [5]], [[3, 4], [5]]),
        (range(3), [[0, 1, 2]]),
        (torch.tensor([3, 4]), [[3, 4]]),
        (torch.tensor([[3, 4], [5, 6]]), [[3, 4], [5, 6]]),
        (list(torch.tensor([3, 4])), [[3, 4]]),
        ([torch.tensor([3]), np.array([4, 5], dtype=np.int32)], [[3], [4, 5]]),
        ([np.int64(3), 4], [[3, 4]]),
        ([], []),
    ],
)
def test_prompts_in_every_form(given: Any, prompts: list[Any]) -> None:
    assert as_prompts(given) == prompts


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "the prompt is None; give a string"),
        (5, "the prompt is 5; give a string"),
        (torch.tensor(5), r"the prompt is tensor\(5\)"),
        ({1, 2}, "the prompt is {1, 2}"),
        (b"Why?", "the prompt is bytes; decode it"),
        (USER, "a single dict; give a list of messages"),
        ({"input_ids": [1]}, "a single dict; give its input_ids"),
        ("", "the prompt is empty"),
        (["Why?", ""], "prompt 1 is empty"),
        ([[]], "prompt 0 is empty"),
        (["Why?", None], "prompt 1 is None"),
        ([1, "a"], "holds the string 'a'"),
        ([["a", "b"]], "prompt 0 is a list that holds the string 'a'"),
        ([[[1]]], "prompt 0 is a list of lists"),
        ([1, 2.5], "token 1 of the prompt=2.5 must be a whole number"),
        ([1.0], "must be a whole number"),
        ([math.nan], "must be a whole number"),
        ([True], "token 0 of the prompt=True must be a whole number"),
        (torch.tensor([0.5]), "must be a whole number"),
        (torch.tensor([True]), "must be a whole number"),
        ("half \ud83d", r"half of a surrogate pair, U\+D83D, at character 5"),
        ([USER, "Why?"], "message 1 of the prompt is 'Why\\?'"),
        ([{"content": "a"}], "message 0 of the prompt has the role None"),
        ([{"role": 3, "content": "a"}], "has the role 3"),
        ([{"role": "user"}], "has the content None"),
        ([{"role": "user", "content": None}], "has the content None"),
        ([{"role": "user", "content": 5}], "has the content 5"),
        ([{"role": "user", "content": b"a"}], "has the content b'a'"),
        ([{"role": "user", "content": "half \ud83d"}], "surrogate"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "only parts of text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "only parts of text"),
        ([{"role": "user", "content": [None]}], "only parts of text"),
    ],
)
def test_what_is_no_prompt(given: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        as_prompts(given)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Why "}, "is ", {"text": "it?"}]
    assert as_prompt([{"role": "user", "content": parts}]) == [{"role": "user", "content": "Why is it?"}]


def test_a_message_that_calls_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert as_prompt([call]) == [{"role": "assistant", "tool_calls": [{"name": "f"}]}]


def test_settings_in_every_form() -> None:
    found = SamplingParams(max_tokens=np.int64(3), stop=None, ignore_eos=np.bool_(True))  # type: ignore[arg-type]
    assert (found.max_tokens, found.temperature, found.stop, found.ignore_eos) == (3, 0.0, (), True)
    assert SamplingParams(max_tokens=10**30, seed=2, stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b", "a"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=np.array([5, 6])).stop_token_ids == (5, 6)
    assert SamplingParams(top_k=-1).filters is False


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"max_tokens": -(10**400)}, "must be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens=1.5 must be a whole number"),
        ({"max_tokens": None}, "max_tokens=None"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"stop_token_ids": 5}, "stop_token_ids=5 must be a list of token ids"),
        ({"stop_token_ids": ["a"]}, "a stop token='a' must be a whole number"),
        ({"stop": 5}, "stop=5 must be a string or a list of strings"),
        ({"stop": b"END"}, "stop=b'END'"),
        ({"stop": {"END": 1}}, "must be a string or a list"),
        ({"stop": [b"END"]}, "is a bytes; give strings"),
        ({"stop": [None]}, "is a NoneType; give strings"),
        ({"stop": ""}, "a stop string is empty"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"stop": "\udc80"}, "the byte 0x80 at character 0, which is not UTF-8"),
        ({"ignore_eos": "false"}, "ignore_eos='false' must be True or False"),
    ],
)
def test_settings_that_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        SamplingParams(**change)


@pytest.mark.parametrize("params", [0.7, {"temperature": 1}, "greedy"])
def test_settings_of_another_type_are_refused(params: Any) -> None:
    with pytest.raises(RequestError, match="must be a SamplingParams"):
        Engine(tiny_target(), NoProposer()).add([1], params)


def test_each_prompt_may_have_settings_of_its_own() -> None:
    engine = Engine(tiny_target(), NoProposer(), max_batch=2)
    short, long = (SamplingParams(max_tokens=limit, ignore_eos=True) for limit in (2, 5))
    answers = engine.generate([[3, 4], [5]], [short, long])
    assert [len(answer.tokens) for answer in answers] == [2, 5]
    with pytest.raises(RequestError, match="params has 1 items for 2 prompts"):
        engine.generate([[3, 4], [5]], [short])


def test_a_stop_token_ends_the_answer_and_is_part_of_it() -> None:
    engine = Engine(tiny_target(), NoProposer())
    [whole] = engine.generate([3, 4], SamplingParams(max_tokens=8, ignore_eos=True))
    last = whole.tokens.index(whole.tokens[4])
    [cut] = engine.generate([3, 4], SamplingParams(max_tokens=8, ignore_eos=True, stop_token_ids=[whole.tokens[4]]))
    assert (cut.tokens, cut.finished) == (whole.tokens[: last + 1], "stop")


def test_a_completion_says_what_it_is() -> None:
    [answer] = Engine(tiny_target(), NoProposer()).generate([3, 4], SamplingParams(max_tokens=6, ignore_eos=True))
    assert (answer.tau, answer.num_forwards) == (1.0, 6)
    assert repr(answer) == "Completion('', 6 tokens, tau 1.00, finished='length')"


def test_one_prompt_is_one_answer() -> None:
    engine = Engine(tiny_target(), NoProposer(), max_batch=np.int64(2))
    want = engine.generate([[3, 4, 5]], SamplingParams(max_tokens=6))
    for given in ([3, 4, 5], torch.tensor([3, 4, 5]), torch.tensor([[3, 4, 5]]), iter([[3, 4, 5]])):
        found = engine.generate(given, SamplingParams(max_tokens=np.int32(6)))
        assert [answer.tokens for answer in found] == [want[0].tokens]
        assert {type(token) for token in found[0].prompt} == {int}
    assert [event.request for event in engine.stream([3, 4, 5], SamplingParams(max_tokens=2))] == [0, 0]
    assert engine.generate([]) == []


@pytest.mark.parametrize(
    ("given", "sentence"), [([10**5000], r"token 2\*\*16609 is outside"), ([-1], "token -1"), ("Why?", "no tokenizer")]
)
def test_a_refused_request_leaves_the_engine_idle(given: Any, sentence: str) -> None:
    engine = Engine(tiny_target(), NoProposer())
    with pytest.raises(RequestError, match=sentence):
        engine.generate([[1, 2], given], SamplingParams(max_tokens=3))
    assert not engine.busy
    assert len(engine.generate([1, 2], SamplingParams(max_tokens=3))) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_batch": 0}, "max_batch=0 must be at least 1"),
        ({"max_batch": 1.0}, "max_batch=1.0 must be a whole number"),
        ({"max_batch": True}, "max_batch=True"),
        ({"max_batch": 10**400}, r"max_batch=2\*\*1328 must be at least 1"),
        ({"max_len": "8"}, "max_len='8' must be a whole number"),
        ({"max_len": math.nan}, "max_len=nan"),
        ({"max_len": 10**30}, "max_len=.* must be between"),
        ({"num_nodes": 2.5}, "num_nodes=2.5"),
        ({"num_nodes": -1}, "num_nodes=-1 must be between"),
        ({"verification": None}, "unknown verification 'None'"),
        ({"verification": ["coupled"]}, "unknown verification"),
        ({"budget": 5}, "unknown budget '5'"),
        ({"budget": []}, "unknown budget"),
        ({"record": 5}, "record=5 must be a function"),
        ({"target": "smollm2-135m"}, "target='smollm2-135m' must be a target"),
        ({"proposer": "ngram"}, "proposer='ngram' must be a proposer"),
    ],
)
def test_engine_settings_that_are_refused(change: dict[str, Any], sentence: str) -> None:
    usual: dict[str, Any] = {"target": tiny_target(), "proposer": NoProposer()}
    with pytest.raises(ConfigError, match=sentence):
        Engine(**(usual | change))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": True},
        {"temperature": 10**400},
        {"top_k": math.nan},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_k": -(10**400)},
        {"top_p": math.nan},
        {"top_p": "0.9"},
        {"min_p": math.nan},
        {"min_p": [0.1]},
        {"seed": 1.5},
        {"seed": None},
        {"seed": "7"},
        {"seed": 10**400},
    ],
)
def test_sampling_that_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(settings))}="):
        SamplingParams(**settings)


def test_sampling_takes_numbers_of_every_library() -> None:
    given = SamplingParams(
        temperature=np.float32(0.5), top_k=np.int64(4), top_p=torch.tensor(0.5), min_p=0, seed=torch.tensor(3)
    )
    assert given == SamplingParams(temperature=0.5, top_k=4, top_p=0.5, min_p=0.0, seed=3)
    assert {type(value) for value in given.law} == {float, int}
    assert hash(given) == hash(SamplingParams(temperature=0.5, top_k=4, top_p=0.5, seed=3))
