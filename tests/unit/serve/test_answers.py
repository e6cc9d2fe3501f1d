"""Answers over HTTP are those of the library, token for token, in OpenAI's form."""

import pytest
from server_calls import Served, chunks, posted

from outrider.engine import Engine
from outrider.proposers import load_proposer
from outrider.requests.chat import tokenize
from outrider.requests.events import Completion
from outrider.requests.prompts import Prompt
from outrider.sampling import SamplingParams
from outrider.target import Target

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abc abc abc"}]
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 7}


def plainly(target: Target, prompt: Prompt, **params: object) -> Completion:
    """Plain decoding by the library."""
    [answer] = Engine(target, load_proposer("none", target)).generate([prompt], SamplingParams(**params))
    return answer


@pytest.mark.parametrize("settings", [{"temperature": 0}, SAMPLED], ids=["greedy", "sampled"])
def test_a_chat_is_plain_decoding(server: Served, target: Target, settings: dict[str, float]) -> None:
    expected = plainly(target, MESSAGES, max_tokens=40, **settings)
    whole = posted(
        server, "chat/completions", messages=MESSAGES, max_tokens=40, return_token_ids=True, model="tiny", **settings
    )
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["token_ids"] == list(expected.tokens)
    assert whole["prompt_token_ids"] == list(expected.prompt)
    read, written = len(expected.prompt), len(expected.tokens)
    assert whole["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
    assert choice["finish_reason"] == {"eos": "stop", "length": "length"}[expected.finished]
    stream = chunks(
        server,
        "chat/completions",
        messages=MESSAGES,
        max_completion_tokens=40,
        return_token_ids=True,
        stream_options={"include_usage": True},
        **settings,
    )
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert stream[0]["prompt_token_ids"] == list(expected.prompt)
    parts = [chunk["choices"][0] for chunk in stream[1:-1]]
    assert "".join(part["delta"]["content"] for part in parts) == expected.text
    assert [token for part in parts for token in part["token_ids"]] == list(expected.tokens)
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in stream}) == 1


def test_completions_take_text_and_tokens(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz xyz")
    expected = plainly(target, ids, max_tokens=16)
    for prompt in ("xyz xyz xyz", ids, ["xyz xyz xyz"], [ids]):
        [choice] = posted(server, "completions", prompt=prompt, temperature=0)["choices"]
        assert choice["text"] == expected.text, "16 tokens unless asked for more"
    more = posted(server, "completions", prompt=["abc", ids], temperature=0, max_tokens=9, return_token_ids=True)
    assert [choice["index"] for choice in more["choices"]] == [0, 1]
    for choice, prompt in zip(more["choices"], (tokenize(target.tokenizer, "abc"), ids), strict=True):
        assert choice["prompt_token_ids"] == prompt
        assert choice["token_ids"] == list(plainly(target, prompt, max_tokens=9).tokens)
    stream = chunks(server, "completions", prompt=["abc", ids], temperature=0, max_tokens=9, return_token_ids=True)
    for index, choice in enumerate(more["choices"]):
        own = [chunk["choices"][0] for chunk in stream if chunk["choices"][0]["index"] == index]
        assert [token for part in own for token in part["token_ids"]] == choice["token_ids"]
        assert [part["prompt_token_ids"] for part in own if "prompt_token_ids" in part] == [choice["prompt_token_ids"]]


def test_answers_end_where_they_are_told_to(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz xyz")
    free = plainly(target, ids, max_tokens=30)
    word = free.text[5:8]
    [by_text] = posted(server, "completions", prompt=ids, temperature=0, max_tokens=30, stop=word)["choices"]
    assert by_text["text"] == free.text[: free.text.index(word)]
    assert (by_text["finish_reason"], by_text["stop_reason"]) == ("stop", word)
    token = free.tokens[6]
    [by_token] = posted(server, "completions", prompt=ids, temperature=0, max_tokens=30, stop_token_ids=[token])[
        "choices"
    ]
    assert (by_token["finish_reason"], by_token["stop_reason"]) == ("stop", token)
    assert by_token["text"] == plainly(target, ids, max_tokens=30, stop_token_ids=[token]).text
    full = posted(server, "completions", prompt=ids, temperature=0, max_tokens=10_000, ignore_eos=True)
    assert full["choices"][0]["finish_reason"] == "length"
    assert full["usage"]["total_tokens"] == 256, "the context limit"


def test_a_step_is_shown_with_its_draft(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz xyz")
    asked = {"prompt": ids, "temperature": 0, "max_tokens": 60, "ignore_eos": True, "return_steps": True}
    stream = chunks(server, "completions", return_token_ids=True, **asked)
    written = list(ids)
    kinds = set()
    for chunk in stream:
        choice, step = chunk["choices"][0], chunk["outrider"]
        tokens, draft = step["tokens"], step["draft"]
        assert [token["id"] for token in tokens] == choice["token_ids"]
        assert "".join(token["text"] for token in tokens) == choice["text"]
        accepted = [draft["ids"][node] for node in draft["accepted"]]
        assert accepted == [token["id"] for token in tokens if token["by"] == "draft"]
        assert [draft["parents"][node] for node in draft["accepted"]] == [-1, *draft["accepted"]][: len(accepted)]
        last = tokens[len(accepted) :]
        assert [token["by"] for token in last] == ["bonus" if draft["ids"] else "plain"] * len(last)
        if draft["ids"]:
            [plain] = Engine(target, load_proposer("none", target)).generate([written], SamplingParams(max_tokens=1))
            has_best = draft["ids"][0] == plain.tokens[0]
            assert (draft["probs"][0] == max(draft["probs"][0], 1 - draft["probs"][0])) <= has_best
            assert all(0 <= prob <= 1 for prob in draft["probs"])
        assert step["ms"]["total"] == pytest.approx(sum(step["ms"].values()) - step["ms"]["total"], abs=0.01)
        written += choice["token_ids"]
        kinds |= {token["by"] for token in tokens}
    assert kinds == {"draft", "bonus", "plain"}
    assert [chunk["outrider"]["step"] for chunk in stream] == sorted({chunk["outrider"]["step"] for chunk in stream})


def test_a_request_may_draft_less(server: Served, target: Target) -> None:
    ids = tokenize(target.tokenizer, "xyz xyz xyz")
    expected = list(plainly(target, ids, max_tokens=60, ignore_eos=True).tokens)
    for more, most in (({}, 4), ({"outrider_num_nodes": 2}, 2), ({"outrider_method": "none"}, 0)):
        asked = {"prompt": ids, "temperature": 0, "max_tokens": 60, "ignore_eos": True, "return_steps": True}
        stream = chunks(server, "completions", **asked, **more, return_token_ids=True)
        assert [token for chunk in stream for token in chunk["choices"][0]["token_ids"]] == expected
        assert max(len(chunk["outrider"]["draft"]["ids"]) for chunk in stream) == most


def test_the_server_tells_of_itself(server: Served) -> None:
    assert server.http.get("/health").status_code == 200
    [model] = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 256)
    info = server.http.get("/outrider/info").json()
    assert info["method"].startswith("ngram")
    assert {"none", info["method"]} <= set(info["methods"])
    assert (info["num_nodes"], info["budget"], info["max_len"]) == (4, "fixed", 256)
