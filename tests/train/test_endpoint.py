"""Servers: prompts go out as token ids, what comes back is the target's tokens or nothing, failures are told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import FakeServer, serving

import outrider
from outrider.data.config import SynthesisConfig
from outrider.data.endpoint import ServerConfig, ServerGenerator
from outrider.data.generator import EngineGenerator, Job, Written
from outrider.data.identity import Identity
from outrider.data.synthesis import synthesize
from outrider.errors import ConfigError, EndpointError, RunError
from outrider.sampling import SamplingParams
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from writing import files_of, tiny_identity

END = 257  # of the tiny model
JOB = Job(prompt=(1, 2, 3), max_new_tokens=9, sampling=SamplingParams(temperature=0.5, top_p=0.9, seed=7))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return tiny_identity(tmp_path_factory.mktemp("tiny") / "model")


def completion(body: dict[str, Any], **choice: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": choice.pop("completion_tokens", None)}
    return {"choices": [{"text": "", "finish_reason": "stop", **choice}], "usage": usage}


def generator(server: FakeServer, identity: Identity, **changes: Any) -> ServerGenerator:
    config = ServerConfig(url=server.url, **({"backoff_s": 0.001, "num_retries": 3} | changes))
    return ServerGenerator(config, identity.tokenizer, (END,))


def written(server: FakeServer, identity: Identity, job: Job = JOB) -> Written:
    one = generator(server, identity)
    try:
        return one.write([job])[0]
    finally:
        one.close()


IDS = [
    ({"token_ids": [5, 6, END]}, Written((5, 6, END), "end")),
    ({"token_ids": [5, 6]}, Written((5, 6, END), "end")),
    ({"token_ids": [5, 6], "finish_reason": "length"}, Written((5, 6), "length")),
]


@pytest.mark.parametrize(("choice", "wanted"), IDS)
def test_token_ids_are_taken_as_they_are(identity: Identity, choice: dict[str, Any], wanted: Written) -> None:
    with serving(lambda body: (200, completion(body, **choice))) as server:
        assert written(server, identity) == wanted
        (body,) = server.bodies
    assert body["prompt"] == [1, 2, 3]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (9, 0.5, 0.9, 7)
    assert body["return_token_ids"] is True


def test_a_jobs_own_ends_are_asked_for_and_cut_at(identity: Identity) -> None:
    job = Job(prompt=(1,), max_new_tokens=9, sampling=SamplingParams(), ends=frozenset({6}), stop=("[/X]",))
    with serving(lambda body: (200, completion(body, token_ids=[5, 6, 7, 8]))) as server:
        assert written(server, identity, job) == Written((5, 6), "stop")
        assert (server.bodies[0]["stop_token_ids"], server.bodies[0]["stop"]) == ([6], ["[/X]"])
    with serving(lambda body: (200, completion(body, token_ids=[5, 7], stop_reason="[/X]"))) as server:
        assert written(server, identity, job) == Written((5, 7), "stop")


def refusing_ids(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[int, Any]]:
    def script(body: dict[str, Any]) -> tuple[int, Any]:
        if "return_token_ids" in body:
            return 400, {"error": {"message": "unknown field return_token_ids"}}
        return 200, answer(body)

    return script


def test_text_is_cut_anew_where_no_ids_come_back(identity: Identity) -> None:
    tokens = tuple(identity.tokenizer.encode("hello"))
    with serving(refusing_ids(lambda body: completion(body, text="hello", completion_tokens=6))) as server:
        one = generator(server, identity)
        assert one.write([JOB, JOB, JOB]) == [Written((*tokens, END), "end")] * 3
        num_asked = sum("return_token_ids" in body for body in server.bodies)
        assert one.write([JOB]) == [Written((*tokens, END), "end")]
        assert sum("return_token_ids" in body for body in server.bodies) == num_asked
        one.close()


@pytest.mark.parametrize(("text", "num_tokens"), [("hello", 3), ("hello", 9), ("<|im_start|>", 2)])
def test_text_that_was_other_tokens_is_lost(identity: Identity, text: str, num_tokens: int) -> None:
    answer = {"text": text, "completion_tokens": num_tokens, "finish_reason": "length"}
    with serving(refusing_ids(lambda body: completion(body, **answer))) as server:
        assert written(server, identity) == Written((), "lost")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(identity: Identity, status: int) -> None:
    left = [status, status]
    with serving(lambda body: (left.pop(), {}) if left else (200, completion(body, token_ids=[5]))) as server:
        assert written(server, identity) == Written((5, END), "end")
        assert len(server.bodies) == 3


REFUSALS = [
    (401, {"error": {"message": "wrong key"}}, r"status 401 \(wrong key\)"),
    (404, b"<html>nothing here</html>", r"status 404 \(<html>nothing here</html>\)"),
    (503, {"detail": "overloaded"}, "status 503 .*overloaded"),
    (400, {"message": "prompt too long"}, r"status 400 \(prompt too long\)"),
    (200, b"not json", "did not answer in JSON"),
    (200, [1], "answered with a list"),
    (200, {"choices": []}, "gave no completion"),
    (200, {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {"prompt_tokens": 99}}, "read 99 tokens"),
]


@pytest.mark.parametrize(("status", "content", "said"), REFUSALS)
def test_a_refusal_ends_the_run_in_the_servers_words(identity: Identity, status: int, content: Any, said: str) -> None:
    with serving(lambda body: (status, content)) as server, pytest.raises(RunError, match=said):
        written(server, identity)


WRONG = [
    ({"token_ids": [5, 300]}, "gave the token id 300, but the target has 258 tokens"),
    ({"token_ids": [5, -1]}, "gave the token id -1"),
    ({"token_ids": [5.0]}, "'token_ids' holds 5.0"),
    ({"token_ids": list(range(10))}, "wrote 10 tokens where 9 were asked for"),
    ({"token_ids": [5, 6], "completion_tokens": 3}, "wrote 3 tokens and sent 2"),
    ({"token_ids": [5], "completion_tokens": "1"}, "'usage' holds '1'"),
    ({"token_ids": [5], "finish_reason": "abort"}, "for the reason 'abort'"),
    ({"token_ids": [5], "finish_reason": None}, "for the reason 'None'"),
    ({"text": None}, "'text' is None"),
    ({"text": "\ud800"}, "'text' is"),
    ({"token_ids": [5], "index": 3}, "other choices"),
]


@pytest.mark.parametrize(("choice", "said"), WRONG)
def test_an_answer_that_does_not_fit_what_was_asked_is_refused(
    identity: Identity, choice: dict[str, Any], said: str
) -> None:
    with serving(lambda body: (200, completion(body, **choice))) as server:
        one = ServerGenerator(
            ServerConfig(url=server.url, num_retries=0), identity.tokenizer, (END,), identity.vocab_size
        )
        with pytest.raises(EndpointError, match=re.escape(said)) as caught:
            one.write([JOB])
        assert str(caught.value).startswith(f"{server.url}/completions ")
        assert str(caught.value).isprintable()


def test_a_full_answer_gets_no_token_more(identity: Identity) -> None:
    full = list(range(1, 10))
    with serving(lambda body: (200, completion(body, token_ids=full))) as server:
        assert written(server, identity) == Written(tuple(full), "length")


@pytest.mark.parametrize("names", [b'{"data": [{"id": 3}]}', b'{"data": {}}', b'{"data": ["m"]}', b"[]", b"\xff"])
def test_a_list_of_models_that_is_none_is_refused(identity: Identity, names: bytes) -> None:
    said = "did not answer as an OpenAI-compatible server"
    with serving(lambda body: (200, {}), models=names) as server, pytest.raises(EndpointError, match=said):
        generator(server, identity, num_retries=0)


def test_a_server_that_is_not_there_is_named(identity: Identity) -> None:
    with serving(lambda body: (200, {})) as server:
        gone = server.url
    with pytest.raises(RunError, match=f"{gone}/models cannot be reached"):
        ServerGenerator(ServerConfig(url=gone, num_retries=1, backoff_s=0.001), identity.tokenizer, (END,))


def test_the_model_must_be_served(identity: Identity) -> None:
    with serving(lambda body: (200, {}), models=("tiny", "other")) as server:
        with pytest.raises(ConfigError, match=r"serves 2 models \(tiny, other\)"):
            generator(server, identity)
        with pytest.raises(ConfigError, match="no model 'tinny'; did you mean 'tiny'"):
            generator(server, identity, model="tinny")
        generator(server, identity, model="other").close()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="endpoint=localhost:8000"):
        ServerConfig(url="localhost:8000")
    with pytest.raises(ConfigError, match="concurrency=0"):
        ServerConfig(url="http://x/v1", concurrency=0)


def test_a_key_is_sent(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-secret")
    with serving(lambda body: (200, completion(body, token_ids=[5]))) as server:
        written(server, identity)
        assert server.headers[0]["Authorization"] == "Bearer not-a-secret"


def test_a_server_writes_the_same_data_as_the_engine(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    target = load_target(str(directory), dtype="float64")
    engine = outrider.Engine(target, outrider.load_proposer("none", target), max_len=300)
    identity = Identity.of(target)

    def script(body: dict[str, Any]) -> tuple[int, Any]:
        (answer,) = engine.generate([body["prompt"]], SamplingParams(max_tokens=body["max_tokens"]))
        reason = "stop" if answer.finished == "eos" else "length"
        return 200, completion(body, token_ids=list(answer.tokens), finish_reason=reason)

    (tmp_path / "p.jsonl").write_text('{"prompt": "hello there"}\n{"prompt": "good evening"}\n')
    config = SynthesisConfig(
        source=str(tmp_path / "p.jsonl"), temperatures=(0.0,), max_new_tokens=8, max_prompt_tokens=200
    )
    synthesize(config, tmp_path / "ours", identity, EngineGenerator(target, max_batch=2, max_len=208))
    with serving(script) as server:
        one = generator(server, identity, concurrency=1)
        synthesize(config, tmp_path / "theirs", identity, one)
        one.close()
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
