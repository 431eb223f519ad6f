"""Who is answered, and how much is read: foreign hosts and origins, malformed and huge requests."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ai_learning.web import guard
from ai_learning.web.app import STATIC, create_app
from ai_learning.web.bench import Bench
from ai_learning.web.guard import HEADERS, MAX_BODY, Guard, allowed_hosts

JSON = {"content-type": "application/json"}


def error(answer: object) -> str:
    """The one line of an answer that refuses."""
    said = answer.json()  # type: ignore[attr-defined]
    assert list(said) == ["error"] and said["error"] and "\n" not in said["error"], said
    return said["error"]


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "<title>AI Learning" in page.text
    for name, value in HEADERS.items():
        assert page.headers[name] == value
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, file.name
        assert client.get(f"/static/{file.name}").status_code == 200


def test_the_page_has_no_inline_code_that_its_own_policy_would_forbid() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
    assert page.count("<script") == 1 and '<script type="module" src="/static/main.js">' in page


def test_foreign_hosts_and_origins_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1:8000.evil.example",
    ):
        for path in ("/api/next", "/api/training/stop"):
            answer = client.post(path, json={"text": "x"}, headers={"origin": origin})
            assert answer.status_code == 403 and origin in error(answer)
    own = client.post("/api/next", json={"text": "x"}, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_a_foreign_form_cannot_start_anything(client: TestClient) -> None:
    """A form needs no permission to send these; only scripts with permission can send JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"content-type": kind} if kind else {}
        answer = client.post(
            "/api/training/start", content='{"source": "builtin:reference"}', headers=headers
        )
        assert answer.status_code == 415 and "JSON" in error(answer)
    assert client.get("/api/training").json()["running"] is None


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/static/../app.py", "/static/%2e%2e/app.py", "/docs", "/redoc", "/openapi.json"],
)
def test_what_is_not_there(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and error(answer)


def test_no_name_from_a_browser_is_a_path(client: TestClient, bench: Bench, checkpoint: Path) -> None:
    elsewhere = bench.runs / "elsewhere"  # files that a path would find
    elsewhere.mkdir(parents=True)
    bench.own_runs.mkdir()
    shutil.copy(checkpoint, elsewhere / "best.pt")
    (bench.runs / "elsewhere.json").write_text('{"steps": 1}')
    for name in ("../elsewhere", str(elsewhere)):
        assert client.post("/api/next", json={"text": "x", "model": name}).status_code == 404
        assert client.post("/api/training/resume", json={"name": name}).status_code == 404
    for name in ("../../etc/passwd", "/etc/passwd", "run-1/../../x", "..", "run-1\0"):
        for path, body in (
            ("/api/next", {"text": "x", "model": name}),
            ("/api/tokens", {"text": "x", "tokenizers": [name]}),
            ("/api/adapters/write", {"text": "x", "variant": "lora", "adapter": name}),
            ("/api/training/resume", {"name": name}),
            ("/api/agents/open", {"file": name}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 404 and error(answer), (path, name)
    assert client.get("/api/training/..%2f..%2fetc").status_code == 404


def test_wrong_methods(client: TestClient) -> None:
    for answer in (
        client.get("/api/next"),
        client.put("/api/next", json={}),
        client.delete("/api/next", headers=JSON),
    ):
        assert answer.status_code in (404, 405, 415) and error(answer)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '"text"',
        '{"text": 5}',
        '{"text": "x", "model": 5}',
        f'{{"text": "{"x" * 20_001}"}}',
        '{"text": "x", "max_new_tokens": 1000000000}',
        '{"text": "x", "max_new_tokens": 0}',
        '{"text": "x", "temperature": -1}',
        '{"text": "x", "temperature": NaN}',
        '{"text": "x", "temperature": Infinity}',
        '{"text": "x", "temperature": 1e-300}',
        '{"text": "x", "top_p": NaN}',
        '{"text": "x", "min_p": NaN}',
        '{"text": "x", "seed": 99999999999999999999}',
        '{"text": "a\\ud800b"}',  # a lone surrogate
        '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": "x", "max_new_tokens": ' + "9" * 5000 + "}",
        "\x00\xff",
    ],
)
def test_malformed_bodies(client: TestClient, body: str) -> None:
    for path in ("/api/generate", "/api/adapters/write"):
        answer = client.post(path, content=body.encode("latin-1"), headers=JSON)
        assert answer.status_code in (400, 422), answer.status_code
        assert len(error(answer)) < 300


def test_lone_surrogates_are_refused_everywhere(client: TestClient) -> None:
    for path, name in (("next", "text"), ("attention", "text"), ("tokens", "text"), ("merges", "corpus")):
        body = '{"text": "x", "%s": "\\udfff"}' % name  # noqa: UP031
        answer = client.post(f"/api/{path}", content=body, headers=JSON)
        assert answer.status_code == 422 and "unicode" in error(answer)


def test_a_body_that_says_it_is_huge(client: TestClient) -> None:
    answer = client.post("/api/next", content=b"{" + b" " * MAX_BODY + b"}", headers=JSON)
    assert answer.status_code == 413 and f"{MAX_BODY:,}" in error(answer)


def test_what_fails_inside_is_one_line_without_a_trace(client: TestClient, bench: Bench) -> None:
    bench.served.tokenizer = None  # type: ignore[assignment]
    answer = client.post("/api/next", json={"text": "x"})
    assert answer.status_code == 500 and "Traceback" not in answer.text and error(answer)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_loopback_answers_to_this_machines_names_only(host: str, bench: Bench) -> None:
    client = TestClient(create_app(bench, allowed_hosts(host)))
    bracketed = f"[{host}]" if ":" in host else host
    for name in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]", "[::1]:8000", f"{bracketed}:8000"):
        assert client.get("/", headers={"host": name}).status_code == 200, name
    own = {"host": "[::1]:8000", "origin": "http://[::1]:8000"}
    assert client.post("/api/next", json={"text": "x"}, headers=own).status_code == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "192.168.1.4:8000", "[::1", "[::2]:8000", ""):
        assert client.get("/", headers={"host": name}).status_code == 400, name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "workstation"])
def test_any_other_address_lets_the_network_in(host: str, bench: Bench) -> None:
    client = TestClient(create_app(bench, allowed_hosts(host)))
    for name in ("192.168.1.4:8000", "workstation.local:8000", "127.0.0.1:8000"):
        own = {"host": name, "origin": f"http://{name}"}
        assert client.post("/api/next", json={"text": "x"}, headers=own).status_code == 200
        foreign = {"host": name, "origin": "http://evil.example"}
        assert client.post("/api/next", json={"text": "x"}, headers=foreign).status_code == 403


# --- what only a real server shows ------------------------------------------------------------------------


@pytest.fixture
def port(bench: Bench, serve: Callable) -> Iterator[int]:
    with serve(create_app(bench)) as port:
        yield port


def send(port: int, head: str, *parts: bytes, pause: float = 0.0) -> tuple[int, dict]:
    """The status and JSON that come back for a request as it is written here."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n")
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # the answer came before all was sent
                break
            time.sleep(pause)
        data = b""
        while part := connection.recv(65536):
            data += part
    top, _, body = data.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


POST = "POST /api/next HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\nConnection: close\n"


def test_a_huge_body_in_chunks_that_does_not_say_so(port: int) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    status, said = send(
        port, POST + "Transfer-Encoding: chunked\n", *[chunk] * (MAX_BODY // 0x100000 + 2), b"0\r\n\r\n"
    )
    assert status == 413 and f"{MAX_BODY:,}" in said["error"]


def test_a_body_that_never_comes(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    status, said = send(port, POST + "Content-Length: 100\n", b'{"text":', pause=0.0)
    assert status == 408 and "0.3 s" in said["error"]
    assert send(port, POST + "Content-Length: 13\n", b'{"text": "x"}')[0] == 200


def test_too_many_requests_at_once() -> None:
    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        raise AssertionError("passed on")

    guarded = Guard(app, guard.LOOPBACK)  # type: ignore[arg-type]
    guarded.open_requests = guard.MAX_REQUESTS
    outer = FastAPI()
    outer.mount("/", guarded)
    answer = TestClient(outer, base_url="http://localhost").get("/")
    assert answer.status_code == 503 and "again" in error(answer)
    assert guarded.open_requests == guard.MAX_REQUESTS
