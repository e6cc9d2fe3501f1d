"""The audit of a server by text, against servers whose texts and log-probabilities are scripted."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from outrider.audit.config import AuditConfig
from outrider.audit.report import AuditReport
from outrider.audit.servers.compare import audit_server
from outrider.errors import ConfigError, OutriderError, RunError
from outrider.records.progress import Progress

PROMPTS = {"cat": "the cat sat", "dog": "a dog ran"}
Tokens = Sequence[tuple[str, dict[str, float]]]
Script = Callable[[str, int], Tokens | int]
"""From the prompt and the number of the request to tokens with their alternatives, or to a status."""

TEXTS = {"cat": ["on", " the", " mat", "."], "dog": ["after", " a", " car"]}


def plain(word: str, number: int) -> Tokens:
    return [(token, {token: -0.1, "zz": -3.0}) for token in TEXTS[word]]


def instead(place: int, token: str, base: Script = plain) -> Script:
    """The same texts, but the cat's has another token at one place."""

    def script(word: str, number: int) -> Tokens | int:
        found = base(word, number)
        assert not isinstance(found, int)
        change = {token: -0.1, "zz": -3.0}
        return [(token, change) if word == "cat" and at == place else one for at, one in enumerate(found)]

    return script


def close(distance: float) -> Script:
    """Plain decoding to which " hat" was so many nats less likely than " mat"."""

    def script(word: str, number: int) -> Tokens:
        return [
            (token, {" mat": -0.7, " hat": -0.7 - distance, "zz": -5.0} if token == " mat" else {token: -0.1})
            for token in TEXTS[word]
        ]

    return script


@contextmanager
def serving(
    script: Script,
    *,
    offers: bool = True,
    chat_form: bool = False,
    timings: dict[str, Any] | None = None,
    accepted: int | None = None,
    owner: str | None = None,
) -> Iterator[str]:
    """A server.

    Args:
        offers: whether it answers requests for log-probabilities.
        timings: what it tells with each answer, as llama.cpp does.
        accepted: drafted tokens that its page of metrics counts with each request; None: it has no such page.
        owner: engine that it names in its list of models.
    """
    number, counted = iter(range(10_000)), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                return self.answer(200, {"data": [{"id": "tiny"} | ({"owned_by": owner} if owner else {})]})
            if accepted is None:
                return self.answer(404, {})
            page = f"vllm:generation_tokens_total 9\nvllm:spec_decode_num_accepted_tokens_total {7 + counted[0]}\n"
            return self.answer(200, page)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0.0, 24)
            if "logprobs" in body and not offers:
                return self.answer(400, {"error": {"message": "no logprobs with speculation"}})
            counted[0] += accepted or 0
            [word] = [word for word, prompt in PROMPTS.items() if body["prompt"] == f"{prompt}\n\n"]
            tokens = script(word, next(number))
            if isinstance(tokens, int):
                return self.answer(tokens, {"error": {"message": "out of <memory>"}})
            choice: dict[str, Any] = {"text": "".join(token for token, _ in tokens), "finish_reason": "length"}
            if "logprobs" in body:
                choice["logprobs"] = in_chat_form(tokens) if chat_form else in_form(tokens)
            return self.answer(200, {"choices": [choice]} | ({} if timings is None else {"timings": timings}))

        def answer(self, status: int, content: Any) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_form(tokens: Tokens) -> dict[str, Any]:
    return {
        "tokens": [token for token, _ in tokens],
        "token_logprobs": [top[token] for token, top in tokens],
        "top_logprobs": [top for _, top in tokens],
    }


def in_chat_form(tokens: Tokens) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token,
                "logprob": top[token],
                "top_logprobs": [{"token": one, "logprob": value} for one, value in top.items()],
            }
            for token, top in tokens
        ]
    }


@pytest.fixture
def config(tmp_path: Path) -> AuditConfig:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": name, "prompt": text}) for name, text in PROMPTS.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return AuditConfig(endpoint="http://x", prompts=(path,), max_new_tokens=24)


def audited(
    config: AuditConfig, script: Script, base: Script = plain, told: list[AuditReport] | None = None, **kind: Any
) -> AuditReport:
    with serving(script, **kind) as url, serving(base, **kind) as baseline:
        given = replace(config, endpoint=url, baseline=baseline)
        return audit_server(given, ended=([] if told is None else told).append)


def details(report: AuditReport) -> dict[str, str]:
    return {one.name: one.detail for one in report.layers[0].findings}


def test_equal_texts_pass_and_the_planted_fault_is_caught(config: AuditConfig) -> None:
    report = audited(config, plain)
    # "on the mat." and "after a car": 11 characters each
    assert (report.verdict, report.status, report.num_compared, report.unit) == ("PASS", 0, 22, "characters")
    control, _ = report.layers[1].findings
    assert control.detail.startswith("caught: character 5 differs")
    assert "1 of 8 characters" in report.sentence  # 1 - 0.05^(1/22) = 0.127


@pytest.mark.parametrize("offers", [True, False])
def test_another_token_is_a_violation(config: AuditConfig, offers: bool) -> None:
    report = audited(config, instead(2, " hat"), offers=offers)
    assert (report.verdict, report.status, report.num_violations) == ("FAIL", 3, 1)
    said = ": no likely token by the baseline" if offers else ", and no log-probabilities explain it"
    assert details(report)["cat"] == f"character 7 differs ('mat.' became 'hat.'){said}"
    assert details(report)["dog"] == "all 11 characters are equal"


@pytest.mark.parametrize("chat_form", [True, False])
@pytest.mark.parametrize(("distance", "verdict"), [(0.04, "PASS"), (0.06, "FAIL")])
def test_a_tie_is_within_the_margin(config: AuditConfig, distance: float, verdict: str, chat_form: bool) -> None:
    report = audited(config, instead(2, " hat"), close(distance), chat_form=chat_form)
    assert (report.verdict, report.num_ties) == (verdict, int(verdict == "PASS"))
    assert f"{distance:.3g} nats apart by the baseline" in details(report)["cat"]
    # up to the tie, 7 + 1 characters, and the other text
    assert report.num_compared == 8 + 11


@pytest.mark.parametrize(
    ("dtype", "logits", "said", "verdict"),
    [
        # in bf16, numbers from 16 to 32 are multiples of 1/8, from 8 to 16 of 1/16
        (torch.bfloat16, [20.1, 20.0, 18.3, 17.7, 16.6], "0.125 nats apart by the baseline in steps of 0.125", "PASS"),
        (torch.bfloat16, [20.1, 19.9, 18.3, 17.7, 16.6], "0.25 nats apart by the baseline in steps of 0.125", "PASS"),
        (torch.bfloat16, [20.1, 19.7, 18.3, 17.7, 16.6], "0.375 nats apart by the baseline in steps of 0.125", "FAIL"),
        (torch.bfloat16, [15.1, 14.95, 13.3, 12.7, 12], "0.188 nats apart by the baseline in steps of 0.0625", "FAIL"),
        (torch.float32, [20.125, 20.0, 18.3, 17.7, 16.6], "0.125 nats apart by the baseline", "FAIL"),
    ],
)
def test_rounded_logits_tie_within_two_of_their_steps(
    config: AuditConfig, dtype: torch.dtype, logits: list[float], said: str, verdict: str
) -> None:
    told = torch.tensor(logits).to(dtype).float().log_softmax(-1).tolist()
    values = dict(zip((" mat", " hat", "b", "c", "d"), told, strict=True))

    def base(word: str, number: int) -> Tokens:
        return [(token, values if token == " mat" else {token: -0.1}) for token in TEXTS[word]]

    report = audited(config, instead(2, " hat"), base)
    assert report.verdict == verdict
    assert details(report)["cat"].endswith(said)


def test_a_close_second_does_not_excuse_a_third_token(config: AuditConfig) -> None:
    report = audited(config, instead(2, " rug"), close(0.01))
    assert report.verdict == "FAIL"
    assert "no likely token by the baseline" in details(report)["cat"]


def test_a_text_that_ends_early_is_a_violation(config: AuditConfig) -> None:
    report = audited(config, instead(3, ""))
    assert report.verdict == "FAIL"
    assert "character 10 differs ('.' became the end)" in details(report)["cat"]


@pytest.mark.parametrize("who", ["server", "baseline"])
def test_a_server_that_does_not_repeat_itself_leaves_it_open(config: AuditConfig, who: str) -> None:
    def moody(word: str, number: int) -> Tokens:
        return [(token, {token: -0.1}) for token in (TEXTS[word] if word == "dog" else [f"answer {number}"])]

    report = audited(config, moody) if who == "server" else audited(config, plain, moody)
    assert (report.verdict, report.status, report.num_violations) == ("INCONCLUSIVE", 4, 0)
    assert f"the {who} does not repeat its own text" in details(report)["cat"]


def test_empty_texts_prove_nothing(config: AuditConfig) -> None:
    report = audited(config, lambda word, number: [], lambda word, number: [])
    assert (report.verdict, report.num_compared, report.rate) == ("INCONCLUSIVE", 0, None)
    assert "nothing was compared" in report.sentence


def test_a_server_that_fails_is_one_sentence_and_nothing_is_lost(config: AuditConfig) -> None:
    def failing(word: str, number: int) -> Tokens | int:
        return plain(word, number) if number == 0 else 500

    told: list[AuditReport] = []
    with pytest.raises(RunError, match=r"status 500 \(out of <memory>\); 1 of 2 prompts were compared"):
        audited(config, failing, told=told)
    [report] = told
    assert list(details(report)) == ["cat"]
    assert report.verdict == "INCONCLUSIVE"
    with pytest.raises(OutriderError, match="cannot be reached"):
        audit_server(replace(config, endpoint="http://127.0.0.1:9/v1", baseline="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("kind", "verdict", "said"),
    [
        (
            {"timings": {"predicted_n": 4, "draft_n": 8, "draft_n_accepted": 3}},
            "PASS",
            "6 drafted tokens were accepted",
        ),
        ({"timings": {"predicted_n": 4}}, "INCONCLUSIVE", "no drafted token was accepted"),
        ({"timings": {}, "accepted": 5}, "PASS", "10 drafted tokens were accepted"),
        ({"accepted": 5}, "PASS", "10 drafted tokens were accepted"),
        ({"accepted": 0}, "INCONCLUSIVE", "no drafted token was accepted"),
        ({}, "PASS", "whether it drafts, the server does not tell"),
    ],
)
def test_equal_texts_of_a_server_that_drafts_nothing_prove_nothing(
    config: AuditConfig, kind: dict[str, Any], verdict: str, said: str
) -> None:
    """Two prompts, one answer each."""
    report = audited(config, plain, **kind)
    assert report.verdict == verdict
    [finding] = [one for layer in report.layers for one in layer.findings if one.name == "speculation"]
    assert finding.detail.startswith(said)
    assert ("does not tell" in report.sentence) == (kind == {})


@pytest.mark.parametrize("engines", [("vllm", "llamacpp"), ("vllm", "vllm"), ("vllm", None)])
def test_a_violation_between_different_engines_names_the_better_reference(
    config: AuditConfig, engines: tuple[str | None, str | None]
) -> None:
    with serving(instead(2, " rug"), owner=engines[0]) as url, serving(plain, owner=engines[1]) as baseline:
        report = audit_server(replace(config, endpoint=url, baseline=baseline))
    assert report.verdict == "FAIL"
    assert ("different engines" in report.sentence) == (engines == ("vllm", "llamacpp"))


def test_an_interruption_tells_what_was_compared(config: AuditConfig) -> None:
    told: list[AuditReport] = []

    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    with serving(plain) as url, serving(plain) as baseline, pytest.raises(KeyboardInterrupt):
        audit_server(replace(config, endpoint=url, baseline=baseline), listen=stop, ended=told.append)
    assert [list(details(report)) for report in told] == [["cat"]]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"tokens": ["on"], "token_logprobs": [], "top_logprobs": []}, "no log-probabilities"),
        ({"content": [{"token": 5}]}, "no log-probabilities"),
        ({"tokens": ["other", "text"], "token_logprobs": [0, 0], "top_logprobs": [None, None]}, "no log-probabilities"),
        ([1, 2], "no log-probabilities"),
        (None, "no log-probabilities"),
    ],
)
def test_damaged_log_probabilities_count_as_not_offered(
    config: AuditConfig, told: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "in_form", lambda tokens: told)
    report = audited(config, instead(2, " hat"), close(0.0))
    assert report.verdict == "FAIL"
    assert said in details(report)["cat"]


def test_settings_of_a_server_need_one() -> None:
    with pytest.raises(ConfigError, match="give --endpoint URL"):
        AuditConfig(baseline="http://localhost:8000/v1")
