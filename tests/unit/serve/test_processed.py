"""Settings that processors of logits take, over HTTP: the library's own answers, and OpenAI's forms of them."""

import json

import openai
import pytest
from server_calls import Served, chunks, posted
from test_answers import plainly

from outrider.requests.chat import tokenize
from outrider.target import Target

PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1, "min_tokens": 3}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def test_penalties_and_biases_are_those_of_the_library(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz")
    expected = plainly(target, ids, max_tokens=24, logit_bias={70: 3.0}, **PENALTIES)
    found = posted(
        server,
        "completions",
        prompt=ids,
        temperature=0,
        max_tokens=24,
        logit_bias={"70": 3.0},
        **PENALTIES,
        return_token_ids=True,
    )
    assert found["choices"][0]["token_ids"] == list(expected.tokens)


def test_logprobs_are_those_of_the_library(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz")
    expected = plainly(target, ids, max_tokens=6, logprobs=2)
    [choice] = posted(server, "completions", prompt=ids, temperature=0, max_tokens=6, logprobs=2)["choices"]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([one.logprob for one in expected.logprobs])
    stream = chunks(server, "completions", prompt=ids, temperature=0, max_tokens=6, logprobs=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in stream]
    assert [value for part in parts for value in part["text_offset"]] == choice["logprobs"]["text_offset"]


def test_a_schema_and_logprobs_through_the_openai_package(server: Served) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "ok?"}],
            max_completion_tokens=60,
            seed=0,
            logprobs=True,
            top_logprobs=2,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
            extra_body={"structured_outputs": None},
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(answer.choices[0].message.content or "")["ok"], bool)
        assert answer.choices[0].logprobs is not None
        assert all(len(one.top_logprobs) == 2 for one in answer.choices[0].logprobs.content or ())
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "ok?"}],
                response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": 5}}},
            )
