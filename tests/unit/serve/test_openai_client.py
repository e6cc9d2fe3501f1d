"""The `openai` package as a client: plain, streamed, with tools, and its exceptions."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_calls import Served, served
from test_answers import MESSAGES, plainly

from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import TEMPLATE, write_tiny_model

HERMES = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call with <tool_call></tool_call>.<|im_end|>\n{% endif %}" + TEMPLATE
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_whole_and_streamed_answers(client: openai.OpenAI, target: Target) -> None:
    [model] = client.models.list().data
    expected = plainly(target, MESSAGES, max_tokens=30, temperature=0.7, seed=3)
    asked = {"model": model.id, "messages": MESSAGES, "max_completion_tokens": 30, "temperature": 0.7, "seed": 3}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.tokens)
    stream = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected.text
    assert stream[-1].usage == whole.usage
    old = client.completions.create(model=model.id, prompt=list(expected.prompt), max_tokens=30, temperature=0)
    assert old.choices[0].text == plainly(target, expected.prompt, max_tokens=30).text


def test_its_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served"):
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="n=3") as refused:
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=3)
    assert refused.value.param == "n"


def test_tools_reach_the_template_and_calls_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_target(str(write_tiny_model(tmp_path / "hermes", max_positions=1024)), dtype="float64")
    model.tokenizer.chat_template = HERMES
    with served(model, max_len=1024) as server:
        [lane] = server.service.worker._lanes.values()
        prompts: list[str] = []
        add = lane.engine.add

        def scripted(prompt: list[int], params: object) -> int:
            prompts.append(model.tokenizer.decode(prompt))
            return add(prompt, params)

        monkeypatch.setattr(lane.engine, "add", scripted)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 3}
            client.chat.completions.create(**asked, tools=[TOOL])
            client.chat.completions.create(**asked, tools=[TOOL], tool_choice="none")
            called = {
                "id": "c1",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps({"city": "Rome"})},
            }
            turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [called]}]
            client.chat.completions.create(**asked | {"messages": [*turns, {"role": "tool", "content": "sunny"}]})
            with pytest.raises(openai.BadRequestError, match="tool_choice"):
                client.chat.completions.create(**asked, tools=[TOOL], tool_choice="required")
    assert '"weather"' in prompts[0]
    assert '"weather"' not in prompts[1]
    assert "sunny" in prompts[2]
