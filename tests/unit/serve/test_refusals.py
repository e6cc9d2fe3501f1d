"""What cannot be served gets an error in OpenAI's form, with a status and the name of the field."""

import json
import socket
from typing import Any

import httpx
import pytest
from server_calls import Served, Serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "abc"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, 400, None),
        ({"model": "other"}, 404, "model"),
        ({"n": 2}, 400, "n"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"stop": ["x"] * 65}, 400, "stop"),
        ({"stop": "x" * 1025}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"outrider_method": "telepathy"}, 400, "outrider_method"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    ],
)
def test_a_bad_field_is_named(server: Served, change: dict[str, Any], status: int, param: str | None) -> None:
    body = json.dumps(CHAT | change)  # ASCII, also of a lone surrogate
    response = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize("change", [{"echo": True}, {"best_of": 3}, {"prompt": []}, {"prompt": ""}, {"prompt": [999]}])
def test_a_bad_completion_is_refused(server: Served, change: dict[str, Any]) -> None:
    response = server.http.post("/v1/completions", json={"prompt": "abc"} | change)
    assert response.status_code == 400
    assert "error" in response.json()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'"abc"', b"\xff", b"[" * 100_000, b'{"n":' + b"9" * 5000]
)
def test_a_body_that_is_no_request_is_refused(server: Served, body: bytes) -> None:
    for path in ("chat/completions", "completions"):
        response = server.http.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_fields_are_ignored(server: Served) -> None:
    response = server.http.post(
        "/v1/chat/completions", json=CHAT | {"user": "me", "no_such_field": [1], "store": False}
    )
    assert response.status_code == 200


def test_paths_and_methods_that_are_not_there(server: Served) -> None:
    for response, status in ((server.http.get("/v1/none"), 404), (server.http.get("/v1/completions"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_a_large_body_is_refused_as_it_arrives(serving: Serving) -> None:
    server = serving(max_body_bytes=2000)
    large = CHAT | {"user": "x" * 3000}
    assert server.http.post("/v1/chat/completions", json=large).status_code == 413

    def parts() -> Any:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100
        yield b'"}'

    response = server.http.post("/v1/completions", content=parts(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert server.http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_key_is_needed_for_everything_that_costs(serving: Serving) -> None:
    server = serving(key="secret-1")
    for headers in (
        {},
        {"Authorization": "Bearer secret-2"},
        {"Authorization": "secret-1"},
        {"Authorization": "Bearer"},
    ):
        response = server.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert server.http.get("/outrider/info").status_code == 401
    assert server.http.get("/health").status_code == 200
    known = {"Authorization": "Bearer secret-1"}
    assert server.http.post("/v1/chat/completions", json=CHAT, headers=known).status_code == 200


def test_longer_answers_than_the_limit_are_refused(serving: Serving) -> None:
    server = serving(max_tokens=8)
    response = server.http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 9})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")
    free = server.http.post("/v1/chat/completions", json={"messages": CHAT["messages"], "ignore_eos": True})
    assert free.json()["usage"]["completion_tokens"] == 8


def test_names_of_other_hosts_are_refused(server: Served) -> None:
    port = httpx.URL(server.url).port
    for host, status in (("evil.example", 403), (f"evil.example:{port}", 403), (f"localhost:{port}", 200)):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == status


def test_every_answer_has_the_headers_of_a_safe_page(server: Served) -> None:
    for response in (server.http.get("/v1/models"), server.http.get("/v1/none"), server.http.get("/metrics")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers


def test_null_is_as_if_a_switch_were_left_out(server: Served) -> None:
    nulls = {"stream": None, "stream_options": {"include_usage": None}, "ignore_eos": None, "stop": None}
    for path, body in (("chat/completions", CHAT), ("completions", {"prompt": "abc", "max_tokens": 4, "echo": None})):
        assert server.http.post(f"/v1/{path}", json=body | nulls).status_code == 200


@pytest.mark.parametrize(
    "change", [{"model": "m" * 5000}, {"logit_bias": {"k" * 5000: 1}}, {"outrider_method": "x" * 1024}]
)
def test_what_a_client_sent_comes_back_shortened(server: Served, change: dict[str, Any]) -> None:
    message = server.http.post("/v1/chat/completions", json=CHAT | change).json()["error"]["message"]
    assert 10 < len(message) <= 1100


def test_a_body_of_another_type_is_refused(server: Served) -> None:
    # a page of another origin can send these without asking first
    for headers in ({}, {"Content-Type": "text/plain"}):
        response = server.http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
        assert response.status_code == 415
        assert "application/json" in response.json()["error"]["message"]


def test_a_prompt_that_no_tokens_can_hold_is_not_read(server: Served) -> None:
    response = server.http.post("/v1/completions", json={"prompt": "a" * 1_000_000})
    assert response.status_code == 400
    assert "1000000 characters" in response.json()["error"]["message"]


def test_a_list_of_wrong_items_is_one_error(server: Served) -> None:
    response = server.http.post("/v1/completions", json={"prompt": [["a"] * 100_000]})
    assert response.status_code == 400
    assert len(response.text) < 1000


def test_a_body_that_breaks_its_framing_while_it_is_answered_is_no_fault(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"PUT /v1/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = httpx.URL(server.url)
    for _ in range(3):
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            connection.sendall(head + b"[" * 66_000)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):
                pass
    assert server.http.get("/health").status_code == 200
    assert {record.levelname for record in caplog.records} <= {"WARNING"}, caplog.text
