"""What a client makes of answers, whole and not, and of counters; against a transport that answers from a list."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from outrider.bench.serving.client import Client
from outrider.bench.serving.dialect import CompletionRequest, Reply
from outrider.errors import RunError

REQUEST = CompletionRequest(
    prompt=[5, 6, 7], limit=8, vocab_size=20, temperature=0.5, seed=2**40 + 3, ends=(2, 1), ignore_eos=False
)
REAL = httpx.AsyncClient
Answer = Callable[[httpx.Request], httpx.Response]


def event(tokens: list[int] | None = None, reason: str | None = None, **more: Any) -> str:
    choices = [] if tokens is None else [{"text": "x", "token_ids": tokens, "finish_reason": reason}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


def usage(prompt: int = 3, written: int = 3) -> str:
    return event(usage={"prompt_tokens": prompt, "completion_tokens": written})


WHOLE = (event([9]), event([10, 2], "stop"), usage(), "data: [DONE]\n\n")


def streamed(*events: str) -> Answer:
    return lambda request: httpx.Response(200, text="".join(events))


def asking(answer: Answer, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Client], Any]) -> Any:
    def fake(**given: Any) -> httpx.AsyncClient:
        return REAL(transport=httpx.MockTransport(answer), headers=given["headers"])

    monkeypatch.setattr(httpx, "AsyncClient", fake)

    async def work() -> Any:
        client = Client("http://server/v1/", stall_s=7.0)
        try:
            return await ask(client)
        finally:
            await client.close()

    return asyncio.run(work())


def reply(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> Reply:
    found = asking(answer, monkeypatch, lambda client: client.ask(REQUEST, "m"))
    assert isinstance(found, Reply)
    return found


def test_an_answer_comes_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reply(streamed(*WHOLE), monkeypatch)
    assert (found.tokens, found.bursts, found.reason) == ([9, 10, 2], [1, 2], "stop")
    assert found.first is not None
    assert found.last is not None
    assert found.start < found.first <= found.last


def test_what_is_asked_leaves_nothing_to_the_servers_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return streamed(*WHOLE)(request)

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    reply(answer, monkeypatch)
    body = json.loads(seen[0].content)
    assert body["prompt"] == [5, 6, 7]
    assert body["stop_token_ids"] == [1, 2]
    assert body["seed"] == 3
    assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, -1, 1.0)
    assert body["stream_options"] == {"include_usage": True}
    assert seen[0].headers["authorization"] == "Bearer key"
    assert str(seen[0].url) == "http://server/v1/completions"


NOT_WHOLE = {
    "no end": (WHOLE[:-1], "cut its answer off before the end"),
    "no counts": ((*WHOLE[:2], WHOLE[3]), "its counts are missing"),
    "no reason": ((event([9, 10, 2]), *WHOLE[2:]), "for the reason 'None'"),
    "aborted": ((event([9, 10, 2], "abort"), *WHOLE[2:]), "for the reason 'abort'"),
    "lost tokens": ((*WHOLE[:2], usage(written=4), WHOLE[3]), "wrote 4 tokens and sent 3"),
    "another prompt": ((*WHOLE[:2], usage(prompt=4), WHOLE[3]), "read 4 tokens where 3 were sent"),
    "empty": ((event([], "stop"), usage(written=0), WHOLE[3]), "an empty answer"),
    "an error": ((WHOLE[0], 'data: {"error": {"message": "dead\\nengine"}}\n\n'), "an error: dead engine"),
    "no ids": (('data: {"choices": [{"text": "hi"}]}\n\n', WHOLE[3]), "gives no token ids"),
    "no JSON": (("data: {", WHOLE[3]), "did not answer as an OpenAI-compatible server"),
    "no choices": (("data: {}\n\n", WHOLE[3]), "did not answer as an OpenAI-compatible server"),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_an_answer_that_is_not_whole_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events, message = NOT_WHOLE[name]
    with pytest.raises(RunError, match=message) as caught:
        reply(streamed(*events), monkeypatch)
    assert str(caught.value).startswith("http://server/v1/completions ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ReadTimeout(""), "sent nothing new for 7 s"),
        (httpx.ConnectError("refused"), r"cannot be reached \(refused\)"),
        (httpx.RemoteProtocolError("peer closed"), "cut its answer off"),
    ],
)
def test_a_connection_that_fails(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(RunError, match=message):
        reply(answer, monkeypatch)


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"error": {"message": "too long"}}', "too long"), ("not JSON", "not JSON"), ("", "no reason given")],
)
def test_a_refusal_is_told_in_the_servers_words(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=rf"refuses with status 400 \({said}\)"):
        reply(lambda request: httpx.Response(400, text=text), monkeypatch)


def test_the_model_is_found_or_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def serving(*names: str) -> Answer:
        return lambda request: httpx.Response(200, json={"data": [{"id": name} for name in names]})

    assert asking(serving("m"), monkeypatch, lambda client: client.model()) == "m"
    assert asking(serving("m", "n"), monkeypatch, lambda client: client.model("n")) == "n"
    with pytest.raises(RunError, match=r"serves 2 models \(m, n\)"):
        asking(serving("m", "n"), monkeypatch, lambda client: client.model())
    with pytest.raises(RunError, match="no model 'mo'"):
        asking(serving("model"), monkeypatch, lambda client: client.model("mo"))
    with pytest.raises(RunError, match="OpenAI-compatible"):
        asking(lambda request: httpx.Response(200, json={}), monkeypatch, lambda client: client.model())


PAGE = """
# HELP vllm:generation_tokens_total tokens
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a{b} \\"c\\""} 10.0
vllm:generation_tokens_total{engine="1"} 2e1 1700000000
vllm:generation_tokens_created{engine="1"} 1.7e9
vllm:spec_decode_num_drafts_total{engine="0"} 4.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 8.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 3.0
python_gc_objects_collected_total{generation="0"} 41.0
"""


def test_counters_of_several_engines_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asking(lambda request: httpx.Response(200, text=PAGE), monkeypatch, lambda client: client.counters())
    assert found.num_generation_tokens == 30
    assert (found.num_drafts, found.num_draft_tokens, found.num_accepted_tokens) == (4, 8, 5)
    assert found.num_accepted_tokens_per_pos == (3, 2)


@pytest.mark.parametrize("response", [httpx.Response(404), httpx.Response(200, text="up 1\n")])
def test_a_server_without_counters(response: httpx.Response, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asking(lambda request: response, monkeypatch, lambda client: client.counters()) is None


def test_counters_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert asking(answer, monkeypatch, lambda client: client.counters()) is None
