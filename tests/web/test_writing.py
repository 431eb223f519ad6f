"""Texts as they are written: at most two at a time, and a client that leaves frees its place."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest
from fastapi.testclient import TestClient

from ai_learning.web.app import create_app
from ai_learning.web.bench import Bench
from ai_learning.web.panels import write

from .conftest import BASE


def test_what_the_library_refuses_is_an_error_and_frees_its_place(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> Iterator[str]:
        raise ValueError("top_k=0 must be at least 1")
        yield ""

    with monkeypatch.context() as patch:
        patch.setattr(write, "stream_text", refuse)
        for _ in range(3):  # more than there are places
            answer = client.post("/api/generate", json={"text": "x"})
            assert (answer.status_code, answer.json()) == (422, {"error": "top_k=0 must be at least 1"})
    assert client.post("/api/generate", json={"text": "x"}).status_code == 200


@pytest.fixture
def server(
    bench: Bench, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, threading.Event]]:
    """A real server, and what lets its texts go on to their end."""
    go_on = threading.Event()

    def slow(*args: object, **options: object) -> Iterator[str]:
        yield "begun"
        while not go_on.wait(0.02):
            yield "."
        yield "ended"

    monkeypatch.setattr(write, "stream_text", slow)
    with serve(create_app(bench)) as port:
        yield port, go_on
        go_on.set()


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


def test_a_text_dropped_before_its_first_piece_is_sent_frees_its_place(bench: Bench) -> None:
    route = next(r for r in write.router(bench).routes if getattr(r, "path", "") == "/api/generate")
    for _ in range(3):  # more than there are places
        response = route.endpoint(write.Sampling(text="x"))  # type: ignore[attr-defined]
        del response  # the client left: nothing of it is ever read
    with TestClient(create_app(bench), base_url=BASE) as client:
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
    asyncio.run(write.ClosingResponse(pieces)({"type": "http"}, receive, send))
    assert pieces.gi_frame is None
