"""`outrider tune --endpoint` against servers that look like vLLM's and llama.cpp's, and what is no such server."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider.bench.preset import chosen
from outrider.bench.serving.service import Launched
from outrider.cli import main
from outrider.llama_cpp.environment import find_llama
from outrider.testing.fake_llama import write_programs
from outrider.testing.fake_vllm import write_environment
from outrider.vllm.environment import find_vllm

PROMPTS = ("abc abc abc", "xyz xyz", "one two one two", "again and again", "six", "seven")
SPECULATION = ("--speculative-config", '{"method": "m", "num_speculative_tokens": 3}')
Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that somebody else would run; gives their addresses."""
    vllm = find_vllm(write_environment(tmp_path / "vllm"))
    llama = find_llama(write_programs(tmp_path / "llama"))
    services: list[Launched] = []

    def start(*flags: str, engine: str = "vllm", fault: str = "") -> str:
        def command(host: str, port: int) -> list[str]:
            where = ["--host", host, "--port", str(port), *flags]
            return [*vllm.launcher, "m", *where] if engine == "vllm" else [str(llama.server), "--model", "m", *where]

        service = Launched(
            engine,
            command,
            environment=os.environ | {"FAKE_VLLM_FAULT": fault},
            log=tmp_path / f"{len(services)}.log",
            timeout_s=120,
        )
        services.append(service)
        return service.start()

    yield start
    for service in services:
        service.stop()


@pytest.fixture
def words(tiny_model: Path, prompts: Path) -> Callable[..., list[str]]:
    def command(*more: str) -> list[str]:
        return [
            *("tune", str(tiny_model), "--prompts", str(prompts), "--concurrency", "1", "2", "--time", "2h"),
            *("--dtype", "float64", "--run-dir", "run", "--endpoint", *more),
        ]

    return command


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def last_words(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_a_server_that_does_not_draft_is_the_baseline_of_its_predictions(
    engine: str, words: Callable[..., list[str]], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    url = serve("--metrics", engine=engine)
    assert main(words(url)) == 0
    found = result(capsys)
    served = found["served"]
    assert (served["url"], served["drafts"], served["baseline"]) == (url, False, url)
    assert served["engine"] == {"vllm": None, "llama.cpp": "llama.cpp"}[engine]  # the fake vLLM names no owner
    assert {(row["method"], row["batch"], row["tau"]) for row in served["rows"]} == {("none", 1, 1.0), ("none", 2, 1.0)}
    # no n-gram of a fake's text repeats in it, so a lookup in the text alone is never right
    lookups = [one for one in found["forecasts"] if one["method"].startswith("ngram")]
    assert lookups
    assert all(max(one["speedups"]) <= 1.0 for one in lookups)
    if engine == "llama.cpp":  # which has no lookup in earlier texts
        assert found["sentence"].startswith(
            "Leave it off: the server does not draft, and the best that was predicted, "
        )
        assert found["method"] == "none"
    assert found["is_prediction"]
    assert any("lookups alone were tried" in note for note in found["notes"])
    methods = {one["method"].partition(":")[0] for one in found["forecasts"]}
    assert methods == ({"ngram"} if engine == "llama.cpp" else {"ngram", "suffix"})
    assert chosen(found["recipe"], {}).endpoints == (url,)


def test_drafts_are_compared_with_a_second_server(
    words: Callable[..., list[str]], serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drafting, plain = serve(*SPECULATION), serve()
    assert main(words(drafting, f"none={plain}")) == 0
    found = result(capsys)
    assert found["served"]["baseline"] == plain
    assert [one["concurrency"] for one in found["speedups"]] == [1, 2]
    rows = {(row["method"], row["batch"]): row for row in found["served"]["rows"]}
    for batch in (1, 2):
        row = rows["served", batch]
        # a draft of three is accepted whole or not at all, in turn: 4 and 1 tokens a step
        assert 2 <= row["tau"] <= 4
        assert 0.5 <= row["draft_acceptance_rate"] <= 1
        assert row["equality"]["num_equal"] == row["equality"]["num_answers"] > 0
        assert rows["none", batch]["tau"] == 1
    assert found["method"] == ("served" if found["sentence"].startswith("Use what the server does now: ") else "none")
    # the same command again asks for nothing twice
    units = (tmp_path / "run/rounds/units.jsonl").read_text()
    assert main(words(drafting, f"none={plain}")) == 0
    assert (tmp_path / "run/rounds/units.jsonl").read_text() == units


def test_our_own_server_is_asked_not_to_draft(
    words: Callable[..., list[str]], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    url = serve(*SPECULATION, "--owned-by", "outrider")
    assert main(words(url)) == 0
    served = result(capsys)["served"]
    assert (served["engine"], served["drafts"], served["baseline"]) == ("outrider", True, url)
    taus = {(row["method"], row["batch"]): row["tau"] for row in served["rows"]}
    assert taus["none", 1] == taus["none", 2] == 1
    assert min(taus["served", 1], taus["served", 2]) >= 2


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_what_cannot_be_measured_on_a_server_that_drafts_is_said(
    engine: str, words: Callable[..., list[str]], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = SPECULATION if engine == "vllm" else ("--metrics", "--spec-type", "ngram-simple")
    assert main(words(serve(*flags, engine=engine))) == 0
    found = result(capsys)
    assert found["sentence"].startswith("Keep what the server does now, unproven: its drafts pay while a step costs ")
    assert "as a second --endpoint none=URL" in found["sentence"]
    assert (found["method"], found["speedups"], found["served"]["baseline"]) == ("served", [], None)
    assert {row["method"] for row in found["served"]["rows"]} == {"served"}
    assert {row["speedup"] for row in found["served"]["rows"]} == {None}
    assert any(note.startswith("not measured: plain decoding") for note in found["notes"])


def test_an_interrupt_says_where_the_work_is_and_nothing_is_asked_twice(
    words: Callable[..., list[str]],
    serve: Serve,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    url = serve()
    with monkeypatch.context() as patched:
        patched.setattr("outrider.tuning.endpoint.run.replayed", interrupt)
        assert main(words(url)) == 130
    place = tmp_path / "run"
    assert last_words(capsys) == (
        f"outrider: interrupted; what is finished is in {place}, and the same command goes on there"
    )
    before = [(place / name / "units.jsonl").read_text() for name in ("answers", "rounds")]
    assert main(words(url)) == 0
    assert [(place / name / "units.jsonl").read_text() for name in ("answers", "rounds")] == before


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unhealthy", r"the server is not ready: http://.*/health refuses with status 503 (.*); wait until it is"),
        ("mute", "shows no counters of its tokens and drafts, neither on http"),
        ("refuse", "refuses with status 500 (the engine is dead)"),
    ],
)
def test_a_server_that_cannot_be_measured_is_one_sentence(
    fault: str,
    said: str,
    words: Callable[..., list[str]],
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outrider.bench.serving.service._is_healthy", lambda address: listens(address))
    assert main(words(serve(fault=fault))) == 2
    words_of_it = last_words(capsys)
    assert words_of_it.startswith("outrider: ")
    assert all(part in words_of_it for part in said.split(".*"))
    assert not Path("run").exists()


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition("/")[0].partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_dead_endpoint_is_one_sentence(words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(words(f"http://127.0.0.1:{port}/v1")) == 2
    said = last_words(capsys)
    assert said.startswith(f"outrider: http://127.0.0.1:{port}/health cannot be reached (")
    assert said.endswith("; start the server, or give its address up to and with /v1")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        (("http://a/v1", "http://b/v1"), "tune looks at one server, beside none=URL, and 2 are given"),
        (("localhost:8000",), "endpoint localhost:8000 must begin with http://"),
        (("http://a/v1", "--hardware", "h100"), "leave out --hardware or --endpoint"),
    ],
)
def test_bad_words_are_one_sentence(
    endpoints: tuple[str, ...], said: str, words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(*endpoints)) == 2
    assert said in last_words(capsys)


def test_a_second_server_must_not_draft(
    words: Callable[..., list[str]], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    drafting = serve(*SPECULATION)
    assert main(words(drafting, f"none={serve(*SPECULATION)}")) == 2
    assert "is not plain decoding, for it drafted" in last_words(capsys)
