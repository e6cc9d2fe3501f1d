"""What SGLang and llama.cpp say, as recorded, and what is made of it.

Sources, each beside its text: SGLang's documentation and pull requests, a pull request of vLLM, and llama-server as
llama-cpp-python 0.3.36 carries it, run with `--spec-type ngram-simple --spec-ngram-simple-size-m 4 --metrics` on
SmolLM2-135M-Instruct (Q4_1) for one prompt of 11 tokens.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from outrider.bench.serving.client import Client
from outrider.bench.serving.contender import believed
from outrider.bench.serving.dialect import CompletionRequest, Reply
from outrider.bench.serving.prometheus import counters_in
from outrider.errors import RunError
from outrider.results.counters import Counters, Seen, figures_of

LLAMA_PAGE = """\
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 24
llamacpp:tokens_predicted_seconds_total 8.20266
llamacpp:n_decode_total 19
llamacpp:spec_decode_num_draft_tokens_total 16
llamacpp:spec_decode_num_accepted_tokens_total 5
llamacpp:spec_decode_num_drafts_total 7
llamacpp:predicted_tokens_seconds 2.80397
llamacpp:n_busy_slots_per_decode 1
# HELP llamacpp:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position
# TYPE llamacpp:spec_decode_num_accepted_tokens_per_pos_total counter
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 3
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 2
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="2"} 0
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="3"} 0
"""
TOKENS = [1296, 582, 827, 1296, 582, 827, 1296, 827, 827, 827, 827, 827]
TOKENS += [198, 198, 504, 1230, 282, 827, 827, 827, 1296, 582, 827, 827]
LLAMA_ANSWER = {
    "index": 0,
    "tokens": TOKENS,
    "stop": True,
    "tokens_predicted": 24,
    "tokens_evaluated": 11,
    "stop_type": "limit",
    "timings": {
        "cache_n": 0,
        "prompt_n": 11,
        "prompt_ms": 916.158,
        "predicted_n": 24,
        "predicted_ms": 8202.657,
        "draft_n": 16,
        "draft_n_accepted": 5,
    },
}

# docs.sglang.io/references/production_metrics.html
SGLANG_PAGE = """\
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="meta-llama/Llama-3.1-8B-Instruct"} 8.128902e+06
# HELP sglang:generation_tokens_total Number of generation tokens processed.
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="meta-llama/Llama-3.1-8B-Instruct"} 7.557572e+06
# HELP sglang:token_usage The token usage
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.28
"""

# github.com/sgl-project/sglang/pull/13425, the names until then; its answer is this list of tokens
OLD_TOKENS = [6377, 978, 1115, 376, 11639, 613, 376, 482, 1115, 29871, 29941, 29900, 29913, 2]
OLD_META = {
    "id": "05c466dca22d4397b91b31c8f7422aaf",
    "finish_reason": {"type": "stop", "matched": 2},
    "prompt_tokens": 58,
    "completion_tokens": 14,
    "spec_accept_rate": 0.45,
    "spec_accept_length": 3.5,
    "spec_verify_ct": 4,
    "spec_accept_token_num": 9,
    "spec_draft_token_num": 20,
}
# github.com/sgl-project/sglang/pull/33518: an answer of 106 tokens with today's names
NEW_META = {
    "finish_reason": {"type": "length", "length": 106},
    "prompt_tokens": 58,
    "completion_tokens": 106,
    "spec_accept_rate": 0.2930232558139535,
    "spec_accept_length": 2.4651162790697674,
    "spec_num_correct_drafts": 63,
    "spec_num_proposed_drafts": 215,
    "spec_verify_ct": 43,
    "spec_correct_drafts_histogram": [11, 14, 11, 4, 0, 3],
}

# github.com/vllm-project/vllm/pull/24049, eight replicas in one server
VLLM_DRAFTS = (22, 15, 29, 20, 25, 24, 27, 26)
REAL = httpx.AsyncClient


def request(num_prompt: int, limit: int, **more: Any) -> CompletionRequest:
    settings = {"temperature": 0.0, "seed": 7, "ends": (2, 1), "ignore_eos": False} | more
    return CompletionRequest(prompt=[5] * num_prompt, limit=limit, vocab_size=50_000, **settings)


def asked(
    owner: str,
    answer: Callable[[], httpx.Response],
    sent: CompletionRequest,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[httpx.Request] | None = None,
) -> Reply:
    """The reply of a server that names its engine in its list of models."""

    def serve(given: httpx.Request) -> httpx.Response:
        if given.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": owner}]})
        (seen if seen is not None else []).append(given)
        return answer()

    def fake(**given: Any) -> httpx.AsyncClient:
        return REAL(transport=httpx.MockTransport(serve), headers=given["headers"])

    monkeypatch.setattr(httpx, "AsyncClient", fake)

    async def work() -> Reply:
        client = Client("http://server/v1", stall_s=7.0)
        try:
            return await client.ask(sent, await client.model())
        finally:
            await client.close()

    return asyncio.run(work())


def stream(*events: dict[str, Any]) -> Callable[[], httpx.Response]:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return lambda: httpx.Response(200, text=text)


def test_llama_cpp_answers_in_one_piece_with_its_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []
    found = asked("llamacpp", lambda: httpx.Response(200, json=LLAMA_ANSWER), request(11, 24), monkeypatch, seen)
    assert (found.tokens, found.bursts, found.reason) == (TOKENS, [], "length")
    assert found.counters == Counters(num_generation_tokens=24, num_draft_tokens=16, num_accepted_tokens=5)
    body = json.loads(seen[0].content)
    assert seen[0].url.path == "/completion"
    assert (body["n_predict"], body["samplers"], body["cache_prompt"]) == (24, ["temperature"], False)


def test_the_page_of_llama_cpp_adds_drafts_and_positions() -> None:
    page = counters_in(LLAMA_PAGE)
    assert page == Counters(
        num_generation_tokens=24,
        num_drafts=7,
        num_draft_tokens=16,
        num_accepted_tokens=5,
        num_accepted_tokens_per_pos=(3, 2, 0, 0),
    )
    told = Counters(num_generation_tokens=24, num_draft_tokens=16, num_accepted_tokens=5)
    assert believed(page, [told]) == page
    figures = figures_of(page, Seen(num_tokens=23, num_bursts=0))
    assert figures["tau"] == pytest.approx(23 / 18)  # the server's 19 calls less the one that read the prompt
    assert figures["mean_acceptance_length"] == pytest.approx(1 + 5 / 7)


def test_without_a_page_the_number_of_drafts_is_unknown() -> None:
    told = Counters(num_generation_tokens=24, num_draft_tokens=16, num_accepted_tokens=5)
    figures = figures_of(told, Seen(num_tokens=23, num_bursts=0))
    assert (figures["draft_coverage"], figures["mean_acceptance_length"]) == (None, None)
    assert figures["draft_acceptance_rate"] == 5 / 16


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "lost tokens": ({"tokens": TOKENS[1:]}, "wrote 24 tokens and sent 23"),
    "too many": ({"tokens": [*TOKENS, 3]}, "wrote more than the 24 tokens"),
    "another prompt": ({"tokens_evaluated": 12}, "read 12 tokens where 11 were sent"),
    "no ids": ({"tokens": None}, "did not answer as llama.cpp"),
    "no reason": ({"stop_type": "none"}, "for the reason 'None'"),
    "another model": ({"tokens": [60_000]}, "it serves another model"),
    "no times": ({"timings": {**LLAMA_ANSWER["timings"], "predicted_ms": "x"}}, "'predicted_ms' is"),  # type: ignore[dict-item]
    "a wrong count": ({"timings": {**LLAMA_ANSWER["timings"], "draft_n": -1}}, "'draft_n' is -1"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_answer_of_llama_cpp_that_is_not_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = FAULTS[name]
    with pytest.raises(RunError, match=message):
        asked("llamacpp", lambda: httpx.Response(200, json=LLAMA_ANSWER | change), request(11, 24), monkeypatch)


def test_sglang_sends_all_tokens_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []
    begin = {"finish_reason": None, "prompt_tokens": 58, "completion_tokens": 4}
    events = ({"output_ids": OLD_TOKENS[:4], "meta_info": begin}, {"output_ids": OLD_TOKENS, "meta_info": OLD_META})
    found = asked("sglang", stream(*events), request(58, 99), monkeypatch, seen)
    assert (found.tokens, found.bursts, found.reason) == (OLD_TOKENS, [4, 10], "stop")
    assert found.counters == Counters(
        num_generation_tokens=14, num_drafts=4, num_draft_tokens=20, num_accepted_tokens=9
    )
    assert seen[0].url.path == "/generate"
    sampling = json.loads(seen[0].content)["sampling_params"]
    assert (sampling["stop_token_ids"], sampling["max_new_tokens"], "sampling_seed" in sampling) == ([1, 2], 99, False)


def test_sglang_counts_by_position_and_may_send_new_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = {"finish_reason": None, "prompt_tokens": 58, "completion_tokens": 100}
    events = (
        {"output_ids": [3] * 100, "meta_info": begin},
        {"output_ids": [4] * 6, "meta_info": NEW_META},
    )
    found = asked("sglang", stream(*events), request(58, 106, temperature=0.5, ignore_eos=True), monkeypatch)
    assert found.tokens == [3] * 100 + [4] * 6
    assert found.counters is not None
    assert (found.counters.num_drafts, found.counters.num_draft_tokens) == (43, 215)
    # drafts accepted at least that deep: 43 - 11, less 14, less 11, less 4
    assert found.counters.num_accepted_tokens_per_pos == (32, 18, 7, 3, 3)
    assert sum(found.counters.num_accepted_tokens_per_pos) == found.counters.num_accepted_tokens == 63


def test_an_older_sglang_that_counts_verifications_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {key: value for key, value in OLD_META.items() if not key.endswith("token_num")}
    found = asked("sglang", stream({"output_ids": OLD_TOKENS, "meta_info": told}), request(58, 99), monkeypatch)
    assert found.counters is None


def test_sglang_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="did not answer as SGLang"):
        asked("sglang", stream({"text": "hi"}), request(58, 99), monkeypatch)
    taken_back = {"finish_reason": None, "prompt_tokens": 58, "completion_tokens": 2}
    events = ({"output_ids": [3, 4], "meta_info": taken_back}, {"output_ids": OLD_TOKENS, "meta_info": OLD_META})
    with pytest.raises(RunError, match="took back tokens"):
        asked("sglang", stream(*events), request(58, 99), monkeypatch)


def test_the_page_of_sglang_has_counts_only_while_it_does_not_speculate() -> None:
    assert counters_in(SGLANG_PAGE) == Counters(num_generation_tokens=7_557_572)
    # the gauge's name and labels as SGLang writes them, its value made up
    gauge = 'sglang:spec_accept_length{dp_rank="0",tp_rank="0"} 2.46\n'
    assert counters_in(SGLANG_PAGE + gauge) is None
    assert counters_in(SGLANG_PAGE + gauge.replace("2.46", "0.0")) == Counters(num_generation_tokens=7_557_572)


def test_the_replicas_of_a_vllm_are_added() -> None:
    lines = [
        f'vllm:spec_decode_num_drafts_total{{engine="{engine}",model_name="/home/models/Qwen3-0.6B"}} {drafts}.0'
        for engine, drafts in enumerate(VLLM_DRAFTS)
    ]
    page = counters_in("\n".join(['vllm:generation_tokens_total{engine="0"} 500.0', *lines]))
    assert page is not None
    assert page.num_drafts == 188


def test_answers_are_believed_over_a_page_that_contradicts_them() -> None:
    page = Counters(num_generation_tokens=9, num_drafts=3, num_draft_tokens=9, num_accepted_tokens=6)
    told = Counters(num_generation_tokens=9, num_draft_tokens=8, num_accepted_tokens=5)
    assert believed(page, [told]) == told
    assert believed(None, [told, told]).num_draft_tokens == 16  # type: ignore[union-attr]
    assert believed(page, [told, None]) == page
    assert believed(None, [None]) is None
