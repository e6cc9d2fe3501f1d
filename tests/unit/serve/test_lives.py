"""The lives of requests: waiting, leaving, failing, and the end of the server."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from server_calls import METHOD, Served, Serving, chunks, posted

from outrider.bench.serving.client import Client
from outrider.bench.serving.dialect import CompletionRequest
from outrider.results.counters import Counters

LONG = {"prompt": "abc abc", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


def until(is_true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


class Slow:
    """A target session whose forwards wait for permission."""

    def __init__(self, server: Served) -> None:
        [self.lane] = server.service.worker._lanes.values()
        self.session = self.lane.engine.target
        self.gate = threading.Event()
        self.forward = self.session.forward

    def __enter__(self) -> "Slow":
        def forward(*given: Any) -> Any:
            self.gate.wait(60)
            return self.forward(*given)

        self.session.forward = forward
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self.session.forward = self.forward


def test_a_full_queue_says_when_to_come_back(serving: Serving) -> None:
    server = serving(max_batch=1, max_waiting=1)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            answers.append(http.post("/v1/completions", json=LONG))

    with Slow(server) as slow:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(server.service.worker.open) == 2)
        refused = server.http.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "service_unavailable_error"
        page = server.http.get("/metrics").text
        assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' in page
        assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0' in page
        slow.gate.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert posted(server, "completions", **LONG)["choices"][0]["text"] == answers[0].json()["choices"][0]["text"]


def leave(url: str, stream: bool) -> None:
    with httpx.Client(base_url=url, timeout=0.5, trust_env=False) as http:
        http.post("/v1/completions", json=LONG | {"stream": stream})


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(serving: Serving, stream: bool) -> None:
    server = serving()
    with Slow(server) as slow:
        with pytest.raises(httpx.ReadTimeout):
            leave(server.url, stream)
        until(lambda: len(server.service.worker.open) == 1)
        slow.gate.set()
        until(lambda: not server.service.worker.open)
        written = slow.lane.engine.num_steps
    assert written < 60, "of some 200 tokens"
    assert not slow.lane.engine.busy
    assert posted(server, "completions", **LONG)["usage"]["completion_tokens"] == 200


def test_a_step_that_fails_ends_its_requests_alone(serving: Serving) -> None:
    server = serving()
    expected = posted(server, "completions", **LONG)["choices"]
    [lane] = server.service.worker._lanes.values()
    session, real = lane.engine.target, lane.engine.target.forward
    num_calls = 0

    def failing(*given: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise RuntimeError("the device is on fire")
        return real(*given)

    session.forward = failing
    response = server.http.post("/v1/completions", json=LONG)
    assert response.status_code == 500
    assert "on fire" in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "server_error"
    assert posted(server, "completions", **LONG)["choices"] == expected
    num_calls = 0
    stream = chunks(server, "completions", **LONG)
    assert "on fire" in stream[-1]["error"]["message"], "a stream ends with the error"
    assert server.http.get("/health").status_code == 200
    assert posted(server, "completions", **LONG)["choices"] == expected


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, KeyboardInterrupt, MemoryError, RecursionError, StopIteration]
)
def test_a_proposer_that_fails_in_any_way_ends_its_requests_alone(serving: Serving, kind: type[BaseException]) -> None:
    server = serving()
    expected = posted(server, "completions", **LONG)["choices"]
    [lane] = server.service.worker._lanes.values()

    def failing(*given: Any) -> Any:
        raise kind("the proposer is on fire")

    lane.engine.session.propose = failing
    response = server.http.post("/v1/completions", json=LONG)
    is_memory = kind is MemoryError
    assert response.status_code == (503 if is_memory else 500)
    wanted = "memory ended in a step" if is_memory else f"({kind.__name__}: the proposer is on fire)"
    assert wanted in response.json()["error"]["message"]
    assert posted(server, "completions", **LONG)["choices"] == expected
    assert not lane.tickets
    assert not lane.engine.busy


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_engine_that_cannot_be_opened_anew_is_used_again(serving: Serving, kind: type[BaseException]) -> None:
    server = serving()
    expected = posted(server, "completions", **LONG)["choices"]
    [lane] = server.service.worker._lanes.values()
    engine = lane.engine

    def failing(*given: Any) -> Any:
        raise kind("the proposer is on fire")

    lane._open = failing
    engine.session.release = failing
    # outside of the guard, so that the engine is sound and asks its session to release
    record, engine.record = engine.record, failing
    assert server.http.post("/v1/completions", json=LONG).status_code == 500
    engine.record = record
    assert posted(server, "completions", **LONG)["choices"] == expected
    assert lane.engine is engine
    assert not lane.tickets
    assert not engine.busy


def test_a_stop_lets_answers_finish_and_takes_no_more(serving: Serving) -> None:
    server = serving(grace_s=60)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            answers.append(http.post("/v1/completions", json=LONG))

    with Slow(server) as slow:
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: len(server.service.worker.open) == 1)
        server.stop()
        until(lambda: server.http.get("/health").status_code == 503)
        refused = server.http.post("/v1/completions", json=LONG)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        slow.gate.set()
        thread.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 200
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_a_stop_waits_no_longer_than_the_grace_time(serving: Serving) -> None:
    server = serving(grace_s=0.1)
    with Slow(server) as slow:
        threading.Timer(0.6, slow.gate.set).start()
        threading.Timer(0.2, server.stop).start()
        response = server.http.post("/v1/completions", json=LONG)
    assert response.status_code == 503
    assert "stopped" in response.json()["error"]["message"]
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_the_bench_client_reads_answers_and_counters(serving: Serving) -> None:
    server = serving()

    async def ask() -> tuple[list[Any], Counters, Counters]:
        client = Client(f"{server.url}/v1", stall_s=60)
        try:
            model = await client.model()
            before = await client.counters()
            prompts = [tuple(range(1, 60)), tuple(range(30, 60)), (5, 6, 7) * 20]
            request = {
                "limit": 50,
                "vocab_size": 258,
                "temperature": 0.0,
                "seed": 3,
                "ends": (257,),
                "ignore_eos": False,
            }
            replies = await asyncio.gather(
                *(client.ask(CompletionRequest(prompt=prompt, **request), model) for prompt in prompts)
            )
            after = await client.counters()
            assert before is not None
            assert after is not None
            return replies, before, after
        finally:
            await client.close()

    replies, before, after = asyncio.run(ask())
    grown = after - before
    assert grown.is_growth_of(sum(len(reply.tokens) for reply in replies))
    num_steps = sum(len(reply.bursts) for reply in replies)
    assert grown.num_accepted_tokens == sum(len(reply.tokens) for reply in replies) - num_steps, "a bonus in each step"
    assert sum(grown.num_accepted_tokens_per_pos) == grown.num_accepted_tokens > 0
    assert METHOD.startswith("ngram")
