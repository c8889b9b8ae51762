"""The gate in front of the web page: who is answered, how much is read, which files a request may name."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.gate import MOST_JSON, Gate


async def echo(scope, receive, send):
    """An application that answers with the length of what it read."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(gate, path, method="GET", body=b"", host="127.0.0.1:7860", parts=1):
    """Status, headers and body of an answer; the body of the request arrives in `parts`."""
    cuts = [len(body) * i // parts for i in range(parts + 1)]
    chunks = [body[a:b] for a, b in pairwise(cuts)]
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting[-1]["more_body"] = False
    sent = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"host", host.encode())]}
    asyncio.run(gate(scope, receive, send))
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)


@pytest.fixture
def gate(tmp_path):
    return Gate(echo, tmp_path, 1000, loopback=True)


def post(gate, content, **how):
    return ask(gate, "/gradio_api/queue/join", "POST", json.dumps(content).encode(), **how)[0]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860"])
def test_its_own_machine_is_answered(gate, host):
    assert ask(gate, "/", host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "", "10.0.0.1:7860"])
def test_a_rebound_name_is_refused_on_loopback_only(tmp_path, gate, host):
    assert ask(gate, "/", host=host)[0] == 403
    assert ask(Gate(echo, tmp_path, 1000, loopback=False), "/", host=host)[0] == 200


def test_every_answer_forbids_the_browser_to_load_from_elsewhere(gate):
    for path in ("/", "/monitoring"):
        policy = ask(gate, path)[1][b"content-security-policy"].decode()
        assert "default-src 'self'" in policy and "http:" not in policy and "*" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.com/x", "/gradio_api/file=HTTPS://example.com/x",
        "/gradio_api/proxy=http://example.com", "/gradio_api/vibe-edit/", "/monitoring/summary",
        "/gradio_api/call/draw", "/gradio_api/file%3Dhttp://example.com/x",
    ],
)  # fmt: skip
def test_routes_that_no_page_uses_are_not_there(gate, path):
    assert ask(gate, path)[0] == 404


def test_an_upload_is_limited_while_it_arrives(gate):
    assert ask(gate, "/gradio_api/upload", "POST", b"x" * 1000, parts=7)[0] == 200
    assert ask(gate, "/gradio_api/upload", "POST", b"x" * 1001, parts=7)[0] == 413


def test_any_other_body_is_limited_too(gate):
    assert ask(gate, "/gradio_api/queue/join", "POST", b" " * (MOST_JSON + 1), parts=3)[0] == 413


def test_a_body_reaches_the_application_whole(gate):
    content = json.dumps({"data": ["a" * 5000]}).encode()
    assert ask(gate, "/gradio_api/queue/join", "POST", content, parts=5)[2] == str(len(content)).encode()


def test_a_file_that_was_uploaded_may_be_named(gate, tmp_path):
    file = {"path": str(tmp_path / "ab" / "x.png"), "meta": {"_type": "gradio.FileData"}}
    assert post(gate, {"data": [[file], "path", {"path": None}]}) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "http://example.com/x",
        "HTTP://example.com",
        "a\0b",
        7,
        ["x"],
        "file:///x",
    ],
)
def test_no_other_file_can_be_named_however_deep(gate, path):
    assert post(gate, {"data": [{"value": [[{"path": path}]]}]}) == 403


def test_a_link_out_of_the_uploads_is_no_way_out(gate, tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    assert post(gate, {"data": [{"path": str(tmp_path / "link" / "passwd")}]}) == 403


@given(st.text(max_size=30))
def test_what_is_named_lies_in_the_uploads_or_is_refused(name):
    gate = Gate(echo, Path("/tmp/uploads-of-a-test"), 1000, loopback=True)
    try:
        inside = (gate.uploads / name).resolve().is_relative_to(gate.uploads)
    except (ValueError, OSError):
        inside = False
    status = post(gate, {"path": name})
    assert status == 403 or inside


def test_a_socket_is_closed(gate):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(gate({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
