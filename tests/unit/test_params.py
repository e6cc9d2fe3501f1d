"""Settings of a request: each value is checked in one sentence, and what is given in several forms becomes one."""

from dataclasses import replace
from typing import Any

import pytest

from outrider.engine import Engine
from outrider.errors import RequestError
from outrider.params import SamplingParams, StructuredOutputs
from outrider.proposers.none import NoProposer
from outrider.testing import tiny_target

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 2.1}, "presence_penalty=2.1 must be between -2 and 2"),
    ({"frequency_penalty": -3}, "frequency_penalty=-3.0 must be between -2 and 2"),
    ({"repetition_penalty": 0}, "repetition_penalty=0.0 must be between 0.01 and 100; 1 is no penalty"),
    ({"logit_bias": {3: 101}}, "logit_bias of token 3 is 101.0 and must be between -100 and 100"),
    ({"logit_bias": {"a": 1}}, "a token of logit_bias='a' must be a whole number"),
    ({"logit_bias": {3: "much"}}, "logit_bias of token 3='much' must be a number that a float can hold"),
    ({"logit_bias": 5}, "logit_bias=5 must be a dict from token ids to numbers"),
    ({"min_tokens": -1}, "min_tokens=-1 must be between 0 and max_tokens=128"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 must be between 0 and max_tokens=8"),
    ({"bad_words": ["a", ""]}, "a bad word is empty; give at least one character"),
    ({"bad_words": [3]}, "the bad word 3 is a int; give strings"),
    ({"logprobs": -1}, "logprobs=-1 must be None or between 0 and 1000"),
    ({"logprobs": 1.5}, "logprobs=1.5 must be a whole number"),
    (
        {"structured_outputs": {"choice": ["a"]}},
        "structured_outputs={'choice': ['a']} must be a StructuredOutputs, for example "
        "StructuredOutputs(choice=['yes', 'no'])",
    ),
]
WRONG_FORMS: list[tuple[dict[str, Any], str]] = [
    ({}, "structured_outputs sets nothing; set one of json, json_object, regex, choice, grammar"),
    (
        {"regex": "a", "choice": ["a"]},
        "structured_outputs sets regex and choice; set one of json, json_object, regex, choice, grammar",
    ),
    ({"choice": []}, "choice is empty; give at least one string"),
    ({"choice": [""]}, "a choice is empty; give at least one character"),
    ({"regex": ""}, "regex='' must be a string of at least one character"),
    ({"grammar": 3}, "grammar=3 must be a string of at least one character"),
    ({"json": "[1]"}, "json='[1]' must be a JSON schema: a dict, or the text of a JSON object"),
    ({"json_object": "yes"}, "json_object='yes' must be True or False"),
]


@pytest.mark.parametrize(("fields", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_in_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**fields)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("fields", "sentence"), WRONG_FORMS, ids=lambda value: str(value)[:40])
def test_a_wrong_form_is_refused_in_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        StructuredOutputs(**fields)
    assert str(error.value) == sentence


@pytest.mark.parametrize("schema", ["{", "nothing", {"a": {1, 2}}])
def test_a_schema_that_is_no_json_is_refused(schema: Any) -> None:
    with pytest.raises(RequestError, match=r"^json=.* is no JSON schema \(.*\); give a dict or text$"):
        StructuredOutputs(json=schema)


def test_equal_settings_in_other_forms_are_equal_and_can_be_keys() -> None:
    one = SamplingParams(
        logit_bias={3: 1, 4: -2.5}, bad_words="no", structured_outputs=StructuredOutputs(json={"type": "object"})
    )
    other = SamplingParams(
        logit_bias=((3, 1.0), (4, -2.5)),
        bad_words=["no"],
        structured_outputs=StructuredOutputs(json='{"type": "object"}'),
    )
    assert one == other == replace(one, seed=0)
    assert len({one, other}) == 1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (SamplingParams(logit_bias={99: 1}), "token 99 of logit_bias is outside the vocabulary of 31"),
        (SamplingParams(bad_words=["a"]), "bad words need a tokenizer, and this target has none"),
        (
            SamplingParams(structured_outputs=StructuredOutputs(regex="a")),
            "structured outputs need a tokenizer, and this target has none",
        ),
    ],
)
def test_an_engine_refuses_what_its_target_cannot_serve(params: SamplingParams, sentence: str) -> None:
    engine = Engine(tiny_target(), NoProposer())
    with pytest.raises(RequestError) as error:
        engine.add([1, 2], params)
    assert str(error.value) == sentence
    assert not engine.busy


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"json_object": True}, ("json", '{"type": "object"}')),
        ({"json": {"type": "string"}}, ("json", '{"type": "string"}')),
        ({"choice": ["yes", "no"]}, ("choice", '["yes", "no"]')),
        ({"regex": "[ab]+"}, ("regex", "[ab]+")),
        ({"grammar": "root ::= [a]"}, ("grammar", "root ::= [a]")),
    ],
)
def test_a_form_is_told_by_its_kind_and_text(fields: dict[str, Any], form: tuple[str, str]) -> None:
    assert StructuredOutputs(**fields).form == form
