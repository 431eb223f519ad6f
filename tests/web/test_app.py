"""The playground's server: what it answers, and what it does not."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Generator, Iterator

import pytest
import torch

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from ai_learning.generate import generate_text
from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.web import app as web
from ai_learning.web.app import STATIC, allowed_hosts, create_app

MODEL = GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(MODEL, ByteTokenizer(), "tiny"), base_url="http://127.0.0.1:8000")


def test_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "Playground" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text
    assert client.get("/api/model").json()["parameters"] == MODEL.n_params()


def test_next_token_is_the_models(client: TestClient) -> None:
    answer = client.post("/api/next", json={"text": "né"}).json()
    assert [(t["id"], t["text"]) for t in answer["tokens"]] == [(110, "n"), (195, "c3"), (169, "a9")]
    logits = MODEL(torch.tensor([[110, 195, 169]]))[0, -1]
    best = answer["next"][0]
    assert best["id"] == logits.argmax().item()
    probability = math.exp(best["logit"] - answer["log_sum"])
    assert probability == pytest.approx(logits.softmax(0).max().item(), rel=1e-5)
    assert client.post("/api/next", json={"text": "x" * 5000}).status_code == 200  # longer than the context


def test_generated_text_is_the_librarys(client: TestClient) -> None:
    ask = {"text": "ab", "max_new_tokens": 20, "seed": 3, "temperature": 0.9}
    text = client.post("/api/generate", json=ask).text
    assert text == generate_text(MODEL, ByteTokenizer(), "ab", 20, seed=3, temperature=0.9)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"text": 5}',
        f'{{"text": "{"x" * 20_001}"}}',
        '{"text": "x", "max_new_tokens": 1000000000}',
        '{"text": "x", "temperature": -1}',
        '{"text": "x", "temperature": NaN}',
        '{"text": "x", "temperature": Infinity}',
        '{"text": "x", "temperature": 1e-300}',
        '{"text": "x", "top_p": NaN}',
        '{"text": "x", "min_p": NaN}',
        '{"text": "x", "seed": 99999999999999999999}',
        '{"text": "a\\ud800b"}',  # a lone surrogate
    ],
)
def test_bad_requests(client: TestClient, body: str) -> None:
    answer = client.post("/api/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"]


def test_lone_surrogates_are_refused_for_the_next_token_too(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/api/next", content='{"text": "\\udfff"}', headers=headers).status_code == 422


def test_what_the_library_refuses_is_an_error_and_frees_its_place(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> Iterator[str]:
        raise ValueError("top_k=0 must be at least 1")
        yield ""

    with monkeypatch.context() as patch:
        patch.setattr(web, "stream_text", refuse)
        for _ in range(3):  # more than there are places
            answer = client.post("/api/generate", json={"text": "x"})
            assert (answer.status_code, answer.json()) == (422, {"detail": "top_k=0 must be at least 1"})
    assert client.post("/api/generate", json={"text": "x"}).status_code == 200


def test_foreign_hosts_and_origins_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    foreign = client.post("/api/next", json={"text": "x"}, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    own = client.post("/api/next", json={"text": "x"}, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/docs").status_code == 404 and client.get("/openapi.json").status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_loopback_answers_to_this_machines_names_only(host: str) -> None:
    client = TestClient(create_app(MODEL, ByteTokenizer(), "tiny", allowed_hosts(host)))
    bracketed = f"[{host}]" if ":" in host else host
    for name in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]", "[::1]:8000", f"{bracketed}:8000"):
        assert client.get("/", headers={"host": name}).status_code == 200, name
    own = {"host": "[::1]:8000", "origin": "http://[::1]:8000"}
    assert client.post("/api/next", json={"text": "x"}, headers=own).status_code == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "192.168.1.4:8000", "[::1", "[::2]:8000", ""):
        assert client.get("/", headers={"host": name}).status_code == 400, name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "workstation"])
def test_any_other_address_lets_the_network_in(host: str) -> None:
    client = TestClient(create_app(MODEL, ByteTokenizer(), "tiny", allowed_hosts(host)))
    for name in ("192.168.1.4:8000", "workstation.local:8000", "127.0.0.1:8000"):
        own = {"host": name, "origin": f"http://{name}"}
        assert client.post("/api/next", json={"text": "x"}, headers=own).status_code == 200
        foreign = {"host": name, "origin": "http://evil.example"}
        assert client.post("/api/next", json={"text": "x"}, headers=foreign).status_code == 403


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, threading.Event]]:
    """A real server (a test client waits for whole answers), and what lets its texts go on to their end."""
    import uvicorn

    go_on = threading.Event()

    def slow(*args: object, **options: object) -> Iterator[str]:
        yield "begun"
        while not go_on.wait(0.02):
            yield "."
        yield "ended"

    monkeypatch.setattr(web, "stream_text", slow)
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(MODEL, ByteTokenizer(), "tiny")
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1], go_on
    go_on.set()
    running.should_exit = True
    thread.join(20)
    listener.close()


def _ask(port: int) -> socket.socket:
    """A request for a text whose answer has begun."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    body = b'{"text": "x"}'
    head = "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    return connection


def _read_until(connection: socket.socket, expected: bytes) -> bytes:
    data = b""
    while expected not in data:
        part = connection.recv(4096)
        assert part, data
        data += part
    return data


def test_a_third_text_at_once_is_refused(server: tuple[int, threading.Event]) -> None:
    port, go_on = server
    two = [_ask(port), _ask(port)]
    for connection in two:
        assert b"200 OK" in _read_until(connection, b"begun")
    with _ask(port) as third:
        assert b" 429 " in _read_until(third, b"\r\n")  # the first line: a text would have no end
    go_on.set()
    for connection in two:
        _read_until(connection, b"ended")
        connection.close()
    with _ask(port) as again:  # both places are free
        assert b"200 OK" in _read_until(again, b"ended")


def test_clients_that_leave_free_their_places(server: tuple[int, threading.Event]) -> None:
    port, _ = server
    for _ in range(2):
        with _ask(port) as connection:
            _read_until(connection, b"begun")
    deadline = time.monotonic() + 20
    while True:
        with _ask(port) as connection:
            if b"200 OK" in _read_until(connection, b"\r\n"):
                break
        assert time.monotonic() < deadline, "the places of those who left were never given back"
        time.sleep(0.05)


def test_a_text_dropped_before_its_first_piece_is_sent_frees_its_place() -> None:
    app = create_app(MODEL, ByteTokenizer(), "tiny")
    route = next(r for r in app.routes if getattr(r, "path", "") == "/api/generate")
    for _ in range(3):  # more than there are places
        response = route.endpoint(web.Sampling(text="x"))  # type: ignore[attr-defined]
        del response  # the client left: nothing of it is ever read
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post("/api/generate", json={"text": "x"}).status_code == 200


def test_a_response_closes_its_text_when_the_client_leaves() -> None:
    def endless() -> Generator[str, None, None]:
        while True:
            yield "."

    async def receive() -> dict:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        await asyncio.sleep(0.001)

    pieces = endless()  # held here, so that it is not closed by being forgotten
    next(pieces)
    asyncio.run(web._ClosingResponse(pieces)({"type": "http"}, receive, send))
    assert pieces.gi_frame is None


def test_static_folder_holds_one_page() -> None:
    assert [p.name for p in STATIC.iterdir()] == ["index.html"]
